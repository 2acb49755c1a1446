"""SPO-chain: segments with equal numbers of the steps at which the policy was in doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sppo.agents.batch import Trajectories
from sppo.agents.losses import probability_mask
from sppo.agents.plans import before_cut_points
from sppo.agents.vineppo import ContinuationAgent, ContinuationConfig


@dataclass(frozen=True, kw_only=True)
class SPOChainConfig(ContinuationConfig):
    """Settings of SPO-chain.

    Args:
        cut_threshold: rho in (0, 1); a cut-point is a step whose action had a probability below it (where actions are
            continuous, one of the share rho of the batch's steps with the lowest densities).
        cut_interval: cut-points in a segment.
        mask_threshold: as for every agent, here on by default: only cut-points carry loss.
    """

    cut_threshold: float = 0.9
    cut_interval: int = 5
    mask_threshold: float | None = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cut_threshold < 1:
            raise ValueError(f"cut_threshold must lie strictly between 0 and 1, got {self.cut_threshold}")
        if self.cut_interval < 1:
            raise ValueError(f"cut_interval must be at least 1, got {self.cut_interval}")


class SPOChain(ContinuationAgent):
    """A segment ends just before every fifth cut-point; its advantage goes to its cut-points.

    Source: Segment Policy Optimization, arXiv 2505.23564, section 4.1.
    """

    Config = SPOChainConfig

    def segments(self, sampler: Any, traj: Trajectories) -> Tensor:
        c, continuous = self.config, traj.actions.ndim == 3
        cut_points = probability_mask(traj.logprobs, traj.valid, c.cut_threshold, density=continuous)
        return before_cut_points(cut_points, c.cut_interval, traj.valid)
