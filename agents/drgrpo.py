"""GRPO done right: neither the group's spread nor an episode's length decides how much it weighs."""

from __future__ import annotations

from dataclasses import dataclass

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.credit import group_statistics, outcome_advantage
from sppo.agents.groups import GroupAgent, GroupConfig
from sppo.agents.losses import Aggregation


@dataclass(frozen=True, kw_only=True)
class DrGRPOConfig(GroupConfig):
    """Settings of Dr.GRPO: sums over steps, divided by episodes times the horizon."""

    aggregation: Aggregation = "constant_horizon"


class DrGRPO(GroupAgent):
    """A_i = R_i - mean of the group, in a loss that sums over steps and divides by (episodes x horizon).

    Source: Liu et al. 2025, arXiv 2503.20783.
    """

    Config = DrGRPOConfig

    def credit(self, traj: Trajectories) -> Experience:
        outcomes = self.outcomes(traj)
        mean, _, _ = group_statistics(outcomes, traj.group)
        return self.experience(traj, outcome_advantage(outcomes, mean, traj.valid))
