"""Sampling plans: how an algorithm spends its rollouts. One file, no domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sppo.agents.batch import Trajectories
from sppo.agents.protocols import Snapshot


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


def pad_and_join(parts: list[Trajectories]) -> Trajectories:
    """One batch of all rows, padded to the longest."""
    width = max(part.valid.shape[1] for part in parts)

    def pad(x: torch.Tensor, extra: int = 0) -> torch.Tensor:
        out = x.new_zeros(x.shape[0], width + extra, *x.shape[2:])
        out[:, : x.shape[1]] = x
        return out

    def join(name: str, f: Any = lambda x: x) -> torch.Tensor:
        return torch.cat([f(getattr(part, name)) for part in parts])

    return Trajectories(
        inputs=join("inputs", lambda x: pad(x, 1)),
        **{name: join(name, pad) for name in ("actions", "logprobs", "rewards", "valid")},
        **{name: join(name) for name in ("terminated", "truncated", "start_key", "success")},
        group=torch.arange(sum(len(part) for part in parts)),
    )
