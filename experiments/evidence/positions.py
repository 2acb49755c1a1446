"""Advantages and values along episodes, by relative position, and how much of the outcome the values explain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sppo.agents import Agent, Trajectories
from sppo.agents.diagnostics import explained_variance
from sppo.experiments.stats import Floats, Interval, Rows, bootstrap_rows

POSITIONS = np.linspace(0, 1, 11)
"""t / T, from the first step to the last."""
RESAMPLES = 1000


def profile(agent: Agent, batches: int) -> dict[str, Floats]:
    """Outcomes (E,), lengths (E,), advantages (E, 11) and, of agents that predict, values (E, 11), of new episodes.

    What does not change along an episode has one column.
    """
    parts: dict[str, list[Tensor]] = {"outcomes": [], "lengths": [], "advantages": [], "values": []}
    for _ in range(batches):
        experience = agent.collect(agent.sampler, agent.starts())
        traj = experience.traj
        assert isinstance(traj, Trajectories)
        parts["outcomes"].append(traj.outcomes)
        parts["lengths"].append(traj.lengths)
        for name in ("advantages", "values"):
            along = getattr(experience, name)
            if along is not None:
                parts[name].append(_at_positions(along, traj.lengths))
    # Three digits: a few hundred episodes do not tell more, and the file of all measurements stays small.
    found = {name: torch.cat(each).double().numpy().round(3) for name, each in parts.items() if each}
    return {name: x[:, :1] if x.ndim == 2 and (x == x[:, :1]).all() else x for name, x in found.items()}


def _at_positions(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, 11) of (B, T) or (B, 1), each row's own length counting."""
    steps = (torch.from_numpy(POSITIONS).to(lengths.device) * (lengths[:, None] - 1)).round().long()
    return x.expand(-1, int(lengths.max())).gather(1, steps)


def mean_by_outcome(advantages: Floats, outcomes: Floats) -> dict[bool, list[Interval]]:
    """The mean advantage at each position of episodes that succeeded and of others, with intervals over episodes."""
    kinds = {True: outcomes >= 1, False: outcomes < 1}
    return {kind: [_mean(column[rows]) for column in advantages.T] for kind, rows in kinds.items()}


def explained(values: Floats, outcomes: Floats) -> list[Interval]:
    """1 - Var(R - V) / Var(R) at each position (`diagnostics.explained_variance`), with intervals over episodes."""

    def at(values: Floats) -> Interval:
        def figure(rows: Rows) -> Floats:
            v, r = (torch.from_numpy(x[rows.reshape(-1, len(x))]) for x in (values, outcomes))
            found = [explained_variance(*pair) for pair in zip(v, r, strict=True)]
            return np.array(found).reshape(rows.shape[:-1])

        return bootstrap_rows(outcomes.shape, figure, 0, resamples=RESAMPLES)

    return [at(column) for column in values.T]


def brier(values: Floats, outcomes: Floats) -> list[Interval]:
    """The mean of (V - R)^2 at each position, with intervals over episodes."""
    return [_mean(column) for column in ((values - outcomes[:, None]) ** 2).T]


def _mean(x: Floats) -> Interval:
    return bootstrap_rows(x.shape, lambda rows: x[rows].mean(-1), 0, resamples=RESAMPLES)
