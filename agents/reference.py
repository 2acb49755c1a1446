"""The policy as it was when learning began, and rewards that charge for moving away from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sppo.agents.batch import Choices, Trajectories


def frozen(policy: Any) -> Any:
    """A copy of a policy that learns nothing and shares no storage with it."""
    return copy.deepcopy(policy).requires_grad_(False)


def evaluate(policy: Any, traj: Choices, rows_at_a_time: int | None) -> Tensor:
    """Log-probabilities (B, T) of the actions taken, outside autograd."""
    size = rows_at_a_time or max(len(traj), 1)
    with torch.no_grad():
        return torch.cat([policy.evaluate(traj[slice(i, i + size)])[0] for i in range(0, max(len(traj), 1), size)])


class Penalised:
    """A sampler whose rewards are changed by `penalise`, whatever is sampled: episodes, greedy rows, continuations."""

    def __init__(self, sampler: Any, penalise: Callable[[Trajectories], Trajectories]) -> None:
        self.sampler, self.penalise = sampler, penalise

    def rollout(self, *args: Any, **kwargs: Any) -> Trajectories:
        return self.penalise(self.sampler.rollout(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)
