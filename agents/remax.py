"""ReMax: what the policy gets when it always does what it likes best, as the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience
from sppo.agents.config import AgentConfig
from sppo.agents.credit import outcome_advantage
from sppo.agents.plans import greedy_outcomes


@dataclass(frozen=True, kw_only=True)
class ReMaxConfig(AgentConfig):
    """Settings of ReMax; half the episodes of an update are sampled, the others are their greedy twins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes_per_update % 2:
            raise ValueError(
                f"episodes_per_update must be even, half sampled and half greedy, got {self.episodes_per_update}"
            )


class ReMax(Agent):
    """A_t = R - R(greedy episode from the same start).

    Source: Li et al. 2024, arXiv 2310.10505, algorithm 2.
    Departs from it: the shared clipped update, where ReMax takes one plain gradient step; no KL term by default. The
    greedy episodes count as episodes, and carry no loss.
    The mode may do far better than samples: of the start policy of Precision CartPole it succeeds in 88% of episodes,
    and samples in 8%. A baseline so far from the mean outcome adds variance, and there ReMax learns only with
    `normalize_advantage=True`.
    """

    Config = ReMaxConfig

    def starts(self) -> Any:
        return self.sampler.starts(self.config.episodes_per_update // 2)

    def collect(self, sampler: Any, starts: Any) -> Experience:
        baseline = greedy_outcomes(sampler, starts)
        traj = sampler.rollout(starts)
        return self.experience(
            traj,
            outcome_advantage(traj.outcomes, baseline, traj.valid),
            values=baseline[:, None],
            value_targets=traj.outcomes[:, None],
        )
