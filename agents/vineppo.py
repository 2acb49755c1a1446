"""VinePPO: the value of every step's state by fresh continuations from it, instead of a critic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.credit import discounted_sum
from sppo.agents.plans import at_step_starts, continuation_returns
from sppo.agents.segments import segment_advantage, segment_numbers


@dataclass(frozen=True, kw_only=True)
class ContinuationConfig(AgentConfig):
    """Settings of methods that value states by continuations.

    Args:
        num_continuations: K, fresh continuations from each segment's start.
    """

    num_continuations: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_continuations < 1:
            raise ValueError(f"num_continuations must be at least 1, got {self.num_continuations}")


class ContinuationAgent(Agent, ABC):
    """A of a segment = V(state at its end) - V(state at its start), each V the mean outcome of K continuations.

    V of the terminal state is R, never sampled. A subclass says where segments begin. An update begins
    `episodes_per_update` episodes; their continuations count as environment steps alone.
    """

    Config = ContinuationConfig

    @abstractmethod
    def segments(self, sampler: Any, traj: Trajectories) -> Tensor:
        """(B, T) bool, True where a segment begins; `plans.segment_starts` makes one of any marks."""

    def collect(self, sampler: Any, starts: Any) -> Experience:
        traj = sampler.rollout(starts, keep_states=True)
        begins = self.segments(sampler, traj)
        values = continuation_returns(sampler, traj, begins, self.config.num_continuations).mean(1)
        rewards = traj.rewards * traj.valid
        return self.experience(
            traj,
            segment_advantage(values, rewards, begins, traj.valid),
            values=values[segment_numbers(begins)] * traj.valid,
            value_targets=discounted_sum(rewards, 1.0),
        )


@dataclass(frozen=True, kw_only=True)
class VinePPOConfig(ContinuationConfig):
    """Settings of VinePPO.

    Args:
        stride: steps of a segment where the domain does not mark its reasoning steps.
    """

    stride: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 step, got {self.stride}")


class VinePPO(ContinuationAgent):
    """Segments are reasoning steps where the domain marks them (lines of text), else of a fixed stride.

    Source: Kazemnejad et al. 2024, arXiv 2410.01679 (K = 9).
    Departs from it: no KL term by default.
    """

    Config = VinePPOConfig

    def segments(self, sampler: Any, traj: Trajectories) -> Tensor:
        return at_step_starts(sampler, traj, self.config.stride)
