"""Groups from the same start: the mean of the siblings as baseline, their spread as unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.credit import group_statistics, outcome_advantage
from sppo.agents.groups import GroupAgent, GroupConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """Settings of GRPO.

    Args:
        std_correction: 0 for a standard deviation with divisor G, 1 for G - 1.
    """

    std_correction: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std_correction not in (0, 1):
            raise ValueError(f"std_correction must be 0 (divisor G) or 1 (G - 1), got {self.std_correction}")


class GRPO(GroupAgent):
    """A_i = (R_i - mean of the group) / (std of the group + 1e-6), std with divisor G.

    Source: Shao et al. 2024, arXiv 2402.03300, eq. 3 with outcome supervision.
    Departs from it: no KL term by default; the mean over all steps by default (aggregation="sequence_mean" is the
    paper's). Departs from verl: divisor G, where verl has G - 1 (std_correction=1).
    """

    Config = GRPOConfig

    def credit(self, traj: Trajectories) -> Experience:
        outcomes = self.outcomes(traj)
        mean, std, _ = group_statistics(outcomes, traj.group, self.config.std_correction)
        return self.experience(traj, outcome_advantage(outcomes, mean, traj.valid) / (std + 1e-6).float()[:, None])
