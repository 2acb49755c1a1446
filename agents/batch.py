"""What every algorithm sees of its domain: padded batches of trajectories, and the experience made from them.

Shape letters: B rows (episodes), T steps or tokens, right-padded, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Rows = Tensor | slice
_T = TypeVar("_T", bound="_Indexed")


class _Indexed:
    """Row indexing over every field that is not None."""

    def __getitem__(self: _T, rows: Rows) -> _T:
        return self._map(lambda x: take(x, rows))

    def _map(self: _T, f: Callable[[Any], Any]) -> _T:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: None if value is None else f(value) for name, value in values.items()})


def take(x: Any, rows: Rows) -> Any:
    """x[rows]; for tensors by index_select, which is several times faster, above all on one column."""
    if isinstance(rows, slice) or not isinstance(x, Tensor):
        return x[rows]
    if x.ndim == 2 and x.shape[1] == 1:
        return x[:, 0].index_select(0, rows).unsqueeze(1)
    return x.index_select(0, rows)


@dataclass(frozen=True, kw_only=True)
class Choices(_Indexed):
    """What the policy saw and did: all that a loss reads of an episode.

    `inputs` is opaque to the algorithms: only the policy and the critics open it. It takes row indices, and, where the
    policy is memoryless, (row, step) index pairs. It may have `lengths` (B,): what is read before the first action.
    """

    inputs: Any
    actions: Tensor  # (B, T) or (B, T, A)
    logprobs: Tensor  # (B, T) under the policy that sampled
    valid: Tensor  # (B, T) bool, True where the policy chose an action

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: the number of steps taken."""
        return self.valid.sum(1)

    @property
    def sizes(self) -> Tensor:
        """(B,) int64: the steps that a network reads of each row, those before the first action included."""
        return self.lengths + getattr(self.inputs, "lengths", 0)

    def choices(self) -> Choices:
        """These fields alone."""
        return Choices(**{f.name: getattr(self, f.name) for f in fields(Choices)})

    def beginnings(self) -> Choices:
        """The first step of each row."""
        first = {name: getattr(self, name)[:, :1] for name in ("actions", "logprobs", "valid")}
        return Choices(inputs=self.inputs, **first)


@dataclass(frozen=True, kw_only=True)
class Trajectories(Choices):
    """B episodes, or parts of episodes, of at most T steps each."""

    rewards: Tensor  # (B, T)
    terminated: Tensor  # (B,) bool, True where the task is over
    truncated: Tensor  # (B,) bool, True where cut by a limit that the task does not know of
    group: Tensor  # (B,) int64, shared by rows from the same start
    start_key: Tensor  # (B,) int64, stable across batches; -1 for continuous starts
    success: Tensor  # (B,) bool, True where the episode ended in success
    behaviour_logprobs: Tensor | None = None  # (B, T) of what the actions were drawn from, where `logprobs` are not
    states: Any = None  # with keep_states: states.at(rows, steps) gives starts to resume from

    def __post_init__(self) -> None:
        want, got = tuple(self.valid.shape), tuple(self.logprobs.shape)
        if got != want:
            raise ValueError(f"logprobs must be (B, T) = {want}, got {got}")

    @property
    def outcomes(self) -> Tensor:
        """(B,) the undiscounted sum of rewards."""
        return (self.rewards * self.valid).sum(1)


@dataclass(frozen=True, kw_only=True)
class Experience(_Indexed):
    """Trajectories with the credit given to each step, and how much each step weighs in a loss.

    A minibatch's loss is sum(weight * per_step_loss) / sum(share), both sums over all its rows on all ranks; see
    `losses.aggregation_weights`. A start critic's experience has one column: weight, share and targets are (B, 1).
    """

    traj: Choices  # Trajectories, until they reach a loss
    weight: Tensor  # (B, T), 0 where a step carries no loss
    share: Tensor  # (B, T), what each step adds to the divisor
    advantages: Tensor | None = None  # (B, T)
    values: Tensor | None = None  # (B, T) the critic's predictions when the credit was given, in units of return
    value_targets: Tensor | None = None  # (B, T) or (B, 1)
    ref_logprobs: Tensor | None = None  # (B, T) under the reference policy, for losses that read it

    def __len__(self) -> int:
        return len(self.traj)

    def steps(self) -> Experience:
        """Every valid step as a row of its own (N, 1), for memoryless policies and critics."""
        rows, cols = self.traj.valid.nonzero(as_tuple=True)
        flat = cols * len(self) + rows

        def pick(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x[rows, cols].unsqueeze(1)
            # Batches are stored step by step, so this is a view, and one column of indices does.
            steps_first = x[:, : self.traj.valid.shape[1]].transpose(0, 1)
            return steps_first.reshape(-1, *x.shape[2:]).index_select(0, flat).unsqueeze(1)

        columns = replace(self, traj=None)._map(pick)  # type: ignore[arg-type]
        return replace(columns, traj=self.traj.choices()._map(pick))

    def with_signal(self, block: int = 1) -> Experience:
        """Without the rows, or blocks of rows, that have no weight or no advantage at any step: their gradient is 0."""
        assert self.advantages is not None
        rows = (self.weight * self.advantages != 0).any(1)
        if block > 1:
            rows = rows.view(-1, block).any(1).repeat_interleave(block)
        return self if bool(rows.all()) else self[rows.nonzero().squeeze(1)]

    def by_length(self) -> Experience:
        """Rows ordered by size, so that microbatches of neighbours hold little padding."""
        return self[torch.argsort(self.traj.sizes, stable=True)]


def join(parts: Sequence[_T]) -> _T:
    """The rows of all parts, one below the other; their widths must be equal."""

    def cat(values: list[Any]) -> Any:
        if values[0] is None:
            return None
        return join(values) if isinstance(values[0], _Indexed) else torch.cat(values)

    kind = type(parts[0])
    return kind(**{f.name: cat([getattr(part, f.name) for part in parts]) for f in fields(kind)})  # type: ignore[arg-type]


def side_by_side(parts: Sequence[Experience | None]) -> Experience:
    """Equal shares of rows for each network: shorter parts, and missing ones, are filled up with rows of no weight."""
    parts = [part if part is not None and len(part) else None for part in parts]
    some = next(part for part in parts if part is not None)
    if len(parts) == 1:
        return some
    n = max(len(part) for part in parts if part is not None)
    filled = []
    for part in parts:
        size = len(part) if part is not None else 0
        if part is None or size < n:
            padded = (some if part is None else part)[torch.arange(n).clamp(max=len(part or some) - 1)]
            real = (torch.arange(n) < size).float()[:, None]
            part = replace(padded, weight=padded.weight * real, share=padded.share * real)
        filled.append(part)
    return join(filled)
