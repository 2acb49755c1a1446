"""One probability ratio for the whole episode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sppo.agents.batch import Experience
from sppo.agents.grpo import GRPO, GRPOConfig
from sppo.agents.losses import Aggregation, clipped_surrogate
from sppo.agents.update import PolicyLoss, Stats


@dataclass(frozen=True, kw_only=True)
class GSPOConfig(GRPOConfig):
    """Settings of GSPO: ratios of whole episodes stay close to 1, and so does the range to which they are clipped."""

    clip_range: float = 3e-4
    clip_range_high: float | None = 4e-4
    aggregation: Aggregation = "sequence_mean"


def mean_over_steps(x: Tensor, carries: Tensor) -> Tensor:
    """The mean of each row over the steps that carry loss, at each step of the row: (B, T); 0 where a row has none.

    Args:
        x: (B, T).
        carries: (B, T) bool, True where the step carries loss.
    """
    n = carries.sum(1, keepdim=True).clamp(min=1)
    return (torch.where(carries, x, 0.0).sum(1, keepdim=True) / n).expand(x.shape)


class SequenceLoss(PolicyLoss):
    """The clipped surrogate with s = exp(mean_t log r_t) in place of each r_t; always over rows."""

    @property
    def memoryless(self) -> bool:
        return False

    def objective(self, batch: Experience, logprobs: Tensor) -> tuple[Tensor, Stats]:
        assert batch.advantages is not None
        carries, low, high = batch.weight != 0, self.clip_low, self.clip_high
        log_ratio = mean_over_steps(logprobs - batch.traj.logprobs, carries)
        zero = torch.zeros_like(log_ratio)
        loss = clipped_surrogate(log_ratio, zero, batch.advantages, clip_low=low, clip_high=high)
        ratio = log_ratio.detach().exp()
        return loss, {"train/clip_fraction": ((ratio < 1 - low) | (ratio > 1 + high)).float()}


class GSPO(GRPO):
    """GRPO's advantages, A_i = (R_i - mean) / (std + 1e-6), and the sequence's ratio s_i = exp(mean_t log r_t).

    L = -mean_i min(s_i A_i, clip(s_i, 1 - clip_range, 1 + clip_range_high) A_i)

    Source: Zheng et al. 2025, arXiv 2507.18071, eq. 5-7.
    Departs from it: with a probability mask, the ratio is of the steps that carry loss.
    """

    Config = GSPOConfig
    Loss = SequenceLoss
