"""From episodes and their credit to what the losses read: weights, shares, and the rows that count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.credit import whiten
from sppo.agents.losses import aggregation_weights, probability_mask, truncated_importance
from sppo.agents.reference import WithReference
from sppo.agents.update import PolicyLoss


class WithExperience(WithReference):
    """What an agent makes of episodes and their credit, and which of it its losses read."""

    Loss: ClassVar[type[PolicyLoss]] = PolicyLoss
    critic_sees: ClassVar[Literal["start", "steps"] | None] = None
    sampler: Any

    def experience(
        self,
        traj: Trajectories,
        advantages: Tensor,
        *,
        values: Tensor | None = None,
        value_targets: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Experience:
        """Experience with this agent's aggregation and probability mask, and, if so configured, whitened advantages.

        Args:
            traj: B rows.
            advantages: (B, T).
            values: (B, T) or (B, 1) predictions, to log how good they were.
            value_targets: (B, T) or (B, 1) of the critic.
            keep: (B,) bool, False for rows that were sampled and are not learned from, nor counted in the divisor.
        """
        c, carries = self.config, traj.valid
        if keep is not None:
            carries = carries & keep[:, None]
        if c.normalize_advantage:
            advantages = whiten(advantages, carries)
        if c.mask_threshold is not None:
            continuous = traj.actions.ndim == 3
            carries = carries & probability_mask(traj.logprobs, carries, c.mask_threshold, density=continuous)
        weight, share = self.weights(carries)
        if c.importance_sampling is not None and traj.behaviour_logprobs is not None:
            drawn, level, cap = traj.behaviour_logprobs, c.importance_sampling, c.importance_cap
            weight = weight * truncated_importance(traj.logprobs, drawn, traj.valid, level, cap)
        return Experience(
            traj=traj, weight=weight, share=share, advantages=advantages, values=values, value_targets=value_targets
        )

    def weights(self, carries: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and share (B, T) of each step that carries loss (B, T), under this agent's aggregation."""
        return aggregation_weights(carries, self.config.aggregation, getattr(self.sampler, "horizon", None))

    def policy_loss(self, policy: Any) -> PolicyLoss:
        """The loss that a policy minimises."""
        return self.Loss(policy, **self.loss_settings())

    def loss_settings(self) -> dict[str, Any]:
        """What every policy loss is told."""
        c = self.config
        return {
            "clip_low": c.clip_range,
            "clip_high": c.clip_range_high or c.clip_range,
            "ent_coef": c.ent_coef,
            "kl_coef": 0.0 if self.charges_in_reward else c.kl_coef,
            "kl_estimator": self.kl_estimator,
        }

    def policy_experience(self, experience: Experience) -> Experience:
        """What the policy's loss reads: the rows that count."""
        counts = experience.share.any(1)
        if not bool(counts.all()):
            experience = experience[counts.nonzero().squeeze(1)]
        traj = experience.traj.choices()
        return replace(experience, traj=traj, values=None, value_targets=None, ref_logprobs=self.ref_logprobs(traj))

    def critic_experience(self, experience: Experience) -> Experience:
        """What the critic's loss reads: every step, whatever the policy learns from; a start critic, one per row."""
        traj = experience.traj.choices()
        if self.critic_sees == "steps":
            weight, share = self.weights(traj.valid)
        else:
            traj = traj.beginnings()
            weight = share = torch.ones(len(experience), 1, device=experience.weight.device)
        return replace(experience, traj=traj, weight=weight, share=share, advantages=None, values=None)

    def critic_batch_size(self) -> int | None:
        """`batch_size` counts steps; a start critic's minibatches are cut over rows by `n_minibatches`."""
        return self.config.batch_size if self.critic_sees == "steps" else None
