"""Preferences between episodes from the same start: a success is preferred to a failure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.credit import preference_pairs
from sppo.agents.groups import GroupAgent, SuccessConfig
from sppo.agents.losses import Aggregation
from sppo.agents.update import PolicyLoss, Stats


@dataclass(frozen=True, kw_only=True)
class DPOConfig(SuccessConfig):
    """Settings of DPO: one pass over each update's pairs, since nothing clips what a second would do.

    Args:
        beta: how much a log-ratio to the reference counts; the larger, the closer to it the policy stays.
    """

    beta: float = 0.1
    n_epochs: int = 1
    aggregation: Aggregation = "sequence_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}")


@dataclass(frozen=True)
class PreferenceLoss(PolicyLoss):
    """-log sigmoid(beta (h_success - h_failure)) at each step of both, h the sum of log(pi / reference) over a row."""

    block: int = 2
    beta: float = 0.1

    @property
    def memoryless(self) -> bool:
        return False

    def objective(self, batch: Experience, logprobs: Tensor) -> tuple[Tensor, Stats]:
        assert batch.ref_logprobs is not None
        h = torch.where(batch.weight != 0, logprobs - batch.ref_logprobs, 0.0).sum(1)
        margin = self.beta * (h[0::2] - h[1::2])  # (P,)
        loss, right = (
            x.repeat_interleave(2)[:, None].expand(logprobs.shape) for x in (-logsigmoid(margin), margin > 0)
        )
        return loss, {"train/preference_accuracy": right.float()}


class DPO(GroupAgent):
    """The Bradley-Terry likelihood of (success, failure) pairs from the same start, against the frozen reference.

    L = -mean over pairs of log sigmoid(beta (h_success - h_failure)),  h = sum_t log(pi(a_t|s_t) / reference(a_t|s_t))

    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7.
    Departs from it: pairs are sampled anew from the policy for each update (online DPO), the verifier tells which is
    preferred, and the reference is the policy as it was when learning began.
    """

    Config = DPOConfig
    Loss = PreferenceLoss
    needs_reference = True

    def loss_settings(self) -> dict[str, Any]:
        return super().loss_settings() | {"beta": self.config.beta}

    def credit(self, traj: Trajectories) -> Experience:
        rows = preference_pairs(traj.success, traj.group)
        keep = torch.zeros_like(traj.success).index_fill(0, rows, True)
        sign = torch.where(traj.success, 1.0, -1.0)[:, None] * (keep[:, None] & traj.valid)
        return replace(self.experience(traj, sign, keep=keep), advantages=sign)  # never whitened

    def policy_experience(self, experience: Experience) -> Experience:
        counting = experience[experience.share.any(1).nonzero().squeeze(1)]
        assert isinstance(counting.traj, Trajectories)
        return super().policy_experience(counting[preference_pairs(counting.traj.success, counting.traj.group)])
