"""Groups from the same start: the mean of the siblings as baseline, their spread as unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.credit import group_statistics, outcome_advantage


@dataclass(frozen=True, kw_only=True)
class GroupConfig(AgentConfig):
    """Settings of methods that sample several episodes from each start.

    Args:
        num_generations: G, episodes from each start; an update has episodes_per_update / G starts.
    """

    num_generations: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generations < 2:
            raise ValueError(f"num_generations must be at least 2 to have siblings, got {self.num_generations}")
        if self.episodes_per_update % self.num_generations:
            raise ValueError(
                f"episodes_per_update must be a multiple of num_generations = {self.num_generations}, "
                f"got {self.episodes_per_update}"
            )
        if self.n_steps is not None:
            raise ValueError("groups need whole episodes: n_steps must be None")


class GroupAgent(Agent):
    """Samples G episodes from each start; they share its noise and differ by the policy's sampling alone."""

    Config = GroupConfig

    def starts(self) -> Any:
        c = self.config
        return np.repeat(self.sampler.starts(c.episodes_per_update // c.num_generations), c.num_generations)


class GRPO(GroupAgent):
    """A_i = (R_i - mean of the group) / (std of the group + 1e-6), std with divisor G.

    Source: Shao et al. 2024, arXiv 2402.03300, without its KL term.
    Departs from verl: divisor G where verl has G - 1.
    """

    def credit(self, traj: Trajectories) -> Experience:
        mean, std, _ = group_statistics(traj.outcomes, traj.group)
        return self.experience(traj, outcome_advantage(traj.outcomes, mean, traj.valid) / (std + 1e-6)[:, None])
