"""Leave one out: the mean of the other siblings as baseline."""

from __future__ import annotations

from dataclasses import dataclass

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.credit import group_statistics, outcome_advantage
from sppo.agents.groups import GroupAgent, GroupConfig


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """Settings of RLOO; the paper's runs have 5 episodes from each start, here 4 divides the batch sizes in use."""

    num_generations: int = 4


class RLOO(GroupAgent):
    """A_i = R_i - mean of the siblings' R without i = (R_i - mean of the group) * G / (G - 1).

    Source: Ahmadian et al. 2024, arXiv 2402.14740.
    """

    Config = RLOOConfig

    def credit(self, traj: Trajectories) -> Experience:
        outcomes = self.outcomes(traj)
        mean, _, size = group_statistics(outcomes, traj.group)
        centred = outcome_advantage(outcomes, mean, traj.valid)
        return self.experience(traj, centred * (size / (size - 1)).float()[:, None])
