"""Methods that sample several episodes from each start, and what any of them may switch on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.credit import group_statistics, overlong_penalty
from sppo.agents.plans import repeat
from sppo.agents.sampling import pad_and_join


@dataclass(frozen=True, kw_only=True)
class GroupConfig(AgentConfig):
    """Settings of methods that sample several episodes from each start.

    Args:
        num_generations: G, episodes from each start; an update has episodes_per_update / G starts.
        dynamic_sampling: groups whose outcomes are all equal are not learned from, and up to so many times others are
            sampled in their place; 0 learns from all.
        overlong_buffer: C / L; outcomes of episodes that are longer than L - C, of a horizon L, are lowered by up to 1.
    """

    num_generations: int = 8
    dynamic_sampling: int = 0
    overlong_buffer: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generations < 2:
            raise ValueError(f"num_generations must be at least 2 to have siblings, got {self.num_generations}")
        if self.episodes_per_update % self.num_generations:
            raise ValueError(
                f"episodes_per_update must be a multiple of num_generations = {self.num_generations}, "
                f"got {self.episodes_per_update}"
            )
        if self.dynamic_sampling < 0:
            raise ValueError(f"dynamic_sampling must not be negative, got {self.dynamic_sampling}")
        if self.dynamic_sampling and self.kl_coef and self.kl_in == "reward":
            raise ValueError(
                "dynamic_sampling looks for equal outcomes, and kl_in='reward' leaves none: take kl_in='loss'"
            )
        if not 0 <= self.overlong_buffer < 1:
            raise ValueError(f"overlong_buffer must be in [0, 1), got {self.overlong_buffer}")


@dataclass(frozen=True, kw_only=True)
class SuccessConfig(GroupConfig):
    """Settings of group methods that learn from success alone, which nothing charged to the outcome changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlong_buffer:
            raise ValueError("overlong_buffer lowers outcomes, and this method learns from success: it must be 0")
        if self.reward_noise:
            raise ValueError("reward_noise flips outcomes, and this method learns from success: it must be 0")
        if self.kl_coef and self.kl_in == "reward":
            raise ValueError("kl_in='reward' lowers outcomes, and this method learns from success: take kl_in='loss'")


class GroupAgent(Agent):
    """Samples G episodes from each start; they share its noise and differ by the policy's sampling alone."""

    Config = GroupConfig

    def starts(self) -> Any:
        return self._starts(self.config.episodes_per_update // self.config.num_generations)

    def _starts(self, n_groups: int) -> Any:
        return repeat(self.sampler.starts(n_groups), self.config.num_generations)

    @property
    def collects_plainly(self) -> bool:
        return type(self).collect is GroupAgent.collect and not self.config.dynamic_sampling

    def collect(self, sampler: Any, starts: Any) -> Experience:
        traj = self._by_start(sampler.rollout(starts))
        for _ in range(self.config.dynamic_sampling):
            missing = (len(starts) - int(_differ(traj).sum())) // self.config.num_generations
            if missing <= 0:
                break
            traj = self._by_start(pad_and_join([traj, sampler.rollout(self._starts(missing))]))
        return self.credit(traj)

    def _by_start(self, traj: Trajectories) -> Trajectories:
        """With groups of G neighbours, so that a prompt that is drawn twice in one update makes two."""
        return replace(traj, group=torch.arange(len(traj)) // self.config.num_generations)

    def experience(self, traj: Trajectories, *args: Any, keep: Tensor | None = None, **rest: Any) -> Experience:
        if self.config.dynamic_sampling:
            keep = _differ(traj) if keep is None else keep & _differ(traj)
        return super().experience(traj, *args, keep=keep, **rest)

    def outcomes(self, traj: Trajectories) -> Tensor:
        """(B,) R, less the penalty for length."""
        share = self.config.overlong_buffer
        if not share:
            return traj.outcomes
        horizon = getattr(self.sampler, "horizon", None)
        if horizon is None:
            raise ValueError("overlong_buffer needs a task with a horizon, and this one has none")
        return traj.outcomes + overlong_penalty(traj.lengths, horizon, share * horizon)


def _differ(traj: Trajectories) -> Tensor:
    """(B,) True where the outcomes of the row's group differ."""
    return group_statistics(traj.outcomes, traj.group)[1] > 0
