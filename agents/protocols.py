"""The seams between an algorithm and its domain: what a sampler, a policy, a critic and a learner must offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from gymnasium import Space

    from sppo.agents.batch import Choices, Experience, Trajectories

Snapshot = dict[str, NDArray[Any]]
"""Complete states of n episodes, time included: named arrays, all with leading axis n."""


@runtime_checkable
class Episodes(Protocol):
    """A batch of episodes of one control task, stepped in lockstep; only those still running are stepped."""

    @property
    def single_observation_space(self) -> Space[Any]: ...

    @property
    def single_action_space(self) -> Space[Any]: ...

    @property
    def running(self) -> NDArray[np.int64]:
        """(m,) rows that have not ended, ascending."""

    @property
    def success(self) -> NDArray[np.bool_]:
        """(n,) True where the episode has ended in success."""

    def begin(self, seeds: NDArray[np.int64]) -> NDArray[np.float32]:
        """Start one episode per seed, its start state (and noise) a function of the seed; observations (n, D)."""

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Act in the m running rows: observations (m, D), rewards, terminated, truncated (m,), in `running`'s order.

        Rows that ended leave `running`."""

    def drop(self, rows: NDArray[np.bool_]) -> None:
        """Stop stepping some of the m running rows: a mask in `running`'s order. They count as not successful."""

    def snapshot(self) -> Snapshot:
        """States of the m running rows, in `running`'s order."""

    def restore(self, snapshot: Snapshot) -> NDArray[np.float32]:
        """Replace the batch by these n states, all running; observations (n, D)."""


class Policy(Protocol):
    """A differentiable distribution over actions; one without a mode to act greedily by says `has_mode = False`."""

    memoryless: bool
    """True where an action depends on the current state alone, so that minibatches may be cut over steps."""

    def evaluate(self, traj: Choices, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of the actions taken and, if asked for, entropies (B, T), both in nats."""


class Critic(Protocol):
    """A value function; its unit (logit or return) stays inside."""

    memoryless: bool
    """True where a value depends on the current state alone, so that minibatches may be cut over steps."""

    def loss(self, traj: Choices, targets: Tensor) -> Tensor:
        """Per-prediction loss: (B, T) for a step critic, (B, 1) for a start critic, as the targets."""


class StepCritic(Critic, Protocol):
    def values(self, traj: Choices) -> Tensor:
        """(B, T + 1) in units of return, of every state up to and including the last."""


class StartCritic(Critic, Protocol):
    def value(self, traj: Choices) -> Tensor:
        """(B,) in units of return, from the start state alone."""


class Learner(Protocol):
    """Owns a module's gradients and optimiser, on one process or many."""

    def zero_grad(self) -> None: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, learns: Sequence[bool]) -> list[float]:
        """Clip and take an optimiser step for each of S networks that learns; gradient norms before clipping (S,)."""

    def own_rows(self, batch: Experience, block: int) -> Experience:
        """The rows that this rank takes through the network, of those that all ranks hold; at least one block."""

    def total(self, x: Tensor) -> Tensor:
        """Sum over ranks of what each made of its share."""


@runtime_checkable
class Sampler(Protocol):
    """Runs the policy in its domain: `rollout` is the one primitive behind every sampling plan.

    Agents with a critic also call `step_critic` or `start_critic`, `predict` is theirs, and saving reads `generators`.
    It may have `learner` (makes a Learner), `network` (settings of new networks) and `step_ends` (marks the ends of
    reasoning steps).
    """

    policy: Any
    counts: dict[str, int]  # "env_steps" and "episodes" so far, and what else is to be saved

    @property
    def horizon(self) -> int | None:
        """The most steps that the task allows, if it has a limit."""

    def starts(self, n: int) -> Any:
        """n fresh starts."""

    def rollout(
        self,
        starts: Any,
        *,
        greedy: bool = False,
        max_steps: int | NDArray[np.int64] | None = None,
        keep_states: bool = False,
    ) -> Trajectories:
        """Run one episode from each start (fresh, or states to resume from) to its end or for `max_steps` steps."""
