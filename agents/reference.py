"""The policy as it was when learning began, and rewards that charge for moving away from it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sppo.agents.batch import Choices, Trajectories
from sppo.agents.losses import KLEstimator, kl_estimate


def frozen(policy: Any) -> Any:
    """A copy of a policy that learns nothing; it shares no weights with it but those that never change."""
    return copy.deepcopy(policy, {id(p): p for p in policy.parameters() if not p.requires_grad}).requires_grad_(False)


def evaluate(policy: Any, traj: Choices, rows_at_a_time: int | None) -> Tensor:
    """Log-probabilities (B, T) of the actions taken, outside autograd."""
    if not len(traj):
        return traj.logprobs
    size = rows_at_a_time or len(traj)
    with torch.no_grad():
        return torch.cat([policy.evaluate(traj[slice(i, i + size)])[0] for i in range(0, len(traj), size)])


class WithReference:
    """What an agent does with its policy as it was when learning began, where a loss or a reward reads that."""

    needs_reference: ClassVar[bool] = False  # also without a KL term
    reference: Any = None
    policy: Any
    config: Any

    @property
    def charges_in_reward(self) -> bool:
        """True where the divergence from the reference is taken off the rewards."""
        return bool(self.config.kl_coef) and self.config.kl_in == "reward"

    @property
    def kl_estimator(self) -> KLEstimator:
        """As configured, else k1 in the reward and k3 in the loss."""
        chosen: KLEstimator | None = self.config.kl_estimator
        return chosen or ("k1" if self.charges_in_reward else "k3")

    def freeze_reference(self) -> None:
        """Keep the policy as it is now, before the first update, if anything is to be compared with it."""
        if self.reference is None and (self.needs_reference or self.config.kl_coef):
            self.reference = frozen(self.policy)

    def ref_logprobs(self, traj: Choices) -> Tensor | None:
        """(B, T) under the reference, if there is one."""
        return None if self.reference is None else evaluate(self.reference, traj, self.config.microbatch_size)

    def penalised(self, traj: Trajectories) -> Trajectories:
        """With rewards less kl_coef times the divergence from the reference, if that is where it goes."""
        if not self.charges_in_reward:
            return traj
        ref_logprobs = self.ref_logprobs(traj)
        assert ref_logprobs is not None
        kl = kl_estimate(traj.logprobs, ref_logprobs, self.kl_estimator)
        return replace(traj, rewards=traj.rewards - self.config.kl_coef * torch.where(traj.valid, kl, 0.0))
