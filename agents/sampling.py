"""Samplers made of samplers, and batches joined into one. No domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sppo.agents.batch import Trajectories
from sppo.agents.protocols import Snapshot


class AsSeen:
    """A sampler of episodes as a learner sees them, whatever is sampled: episodes, greedy rows, continuations."""

    def __init__(self, sampler: Any, as_seen: Callable[[Trajectories], Trajectories]) -> None:
        self.sampler, self.as_seen = sampler, as_seen

    def rollout(self, *args: Any, **kwargs: Any) -> Trajectories:
        return self.as_seen(self.sampler.rollout(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


class Stream:
    """Slots that run side by side for `n_steps` per update; an episode cut there goes on in the next update.

    This is how stable-baselines3 collects. Each part of an episode is a row; a cut one is marked truncated.
    """

    def __init__(self, sampler: Any, n_steps: int) -> None:
        self.sampler, self.n_steps = sampler, n_steps
        self.live: Snapshot = {}
        self.cut = torch.zeros(0, dtype=torch.bool)  # (B,) rows of the last batch whose episode goes on

    def next(self, n_slots: int) -> Trajectories:
        """Parts of episodes, n_slots x n_steps steps in all."""
        n_live = len(next(iter(self.live.values()))) if self.live else 0
        fresh = n_slots - n_live
        pending: list[tuple[Any, NDArray[np.int64]]] = [(self.sampler.starts(fresh), np.full(fresh, self.n_steps))]
        if self.live:
            pending.append((self.live, np.full(n_live, self.n_steps)))
        parts: list[Trajectories] = []
        cut: list[Snapshot] = []
        cuts: list[NDArray[np.bool_]] = []
        while pending:
            starts, left = pending.pop()
            if not len(left):
                continue
            traj = self.sampler.rollout(starts, max_steps=left, keep_states=True)
            lengths = traj.lengths.numpy()
            # A row that ended by itself at the very cut has no state to go on from.
            rows = np.flatnonzero(traj.states.running(np.arange(len(left)), left))
            if len(rows):
                cut.append(traj.states.at(rows, lengths[rows]))
            parts.append(replace(traj, states=None))
            cuts.append(np.isin(np.arange(len(left)), rows))
            left = (left - lengths)[lengths < left]
            pending.append((self.sampler.starts(len(left)), left))
        self.live = {k: np.concatenate([c[k] for c in cut]) for k in cut[0]} if cut else {}
        self.cut = torch.from_numpy(np.concatenate(cuts))
        return pad_and_join(parts)


def pad_and_join(parts: Sequence[Trajectories]) -> Trajectories:
    """One batch of all rows, padded to the longest; every row is a group of its own, and states are left behind."""
    rest = {name: join_padded([getattr(part, name) for part in parts]) for name in JOINED}
    return Trajectories(**rest, group=torch.arange(sum(len(part) for part in parts)))


JOINED = [field.name for field in fields(Trajectories) if field.name not in ("group", "states")]


def join_padded(values: Sequence[Any]) -> Any:
    """Tensors (B, ...) below one another, their second axis filled up with zeros; dataclasses, field by field; None."""
    first = values[0]
    if first is None:
        return None
    if not isinstance(first, Tensor):
        return type(first)(**{f.name: join_padded([getattr(v, f.name) for v in values]) for f in fields(first)})
    if first.ndim == 1:
        return torch.cat(list(values))
    out = first.new_zeros(sum(map(len, values)), max(v.shape[1] for v in values), *first.shape[2:])
    row = 0
    for v in values:
        out[row : row + len(v), : v.shape[1]] = v
        row += len(v)
    return out
