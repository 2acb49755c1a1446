"""Sampling plans: repeated starts, greedy episodes, segments, continuations and trees, all over `Sampler.rollout`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppo.agents.batch import Trajectories
from sppo.agents.sampling import pad_and_join


def repeat(starts: Any, n: int) -> Any:
    """Each start, fresh or a state to resume from, n times, next to one another; copies share its state and noise."""
    if isinstance(starts, dict):
        return {name: np.repeat(array, n, axis=0) for name, array in starts.items()}
    return np.repeat(starts, n)


def greedy_outcomes(sampler: Any, starts: Any) -> Tensor:
    """(B,) R of one greedy episode from each start.

    Raises:
        ValueError: if the policy says that it has no mode (`has_mode = False`).
    """
    if not getattr(sampler.policy, "has_mode", True):
        raise ValueError(f"a greedy episode needs a policy with a mode, and {type(sampler.policy).__name__} has none")
    outcomes: Tensor = sampler.rollout(starts, greedy=True).outcomes
    return outcomes


# Where segments begin: (B, T) bool, True at the first step of each row and at each further one that starts a segment.


def segment_starts(marks: Tensor, valid: Tensor) -> Tensor:
    """The marked steps (B, T) and the first of every row, as far as the policy acted there.

    Raises:
        ValueError: if the marks are not (B, T) bool.
    """
    if marks.shape != valid.shape or marks.dtype != torch.bool:
        raise ValueError(f"marks must be (B, T) = {tuple(valid.shape)} bool, got {tuple(marks.shape)} {marks.dtype}")
    return (marks | (steps_of(valid) == 0)) & valid


def steps_of(valid: Tensor) -> Tensor:
    """(B, T) int64, the number of each step in its row."""
    return torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)


def every(stride: int, valid: Tensor) -> Tensor:
    """A segment each `stride` steps."""
    return segment_starts(steps_of(valid) % stride == 0, valid)


def at_step_starts(sampler: Any, traj: Trajectories, stride: int) -> Tensor:
    """A segment for each reasoning step where the domain marks their ends (`sampler.step_ends`), else by stride."""
    if not hasattr(sampler, "step_ends"):
        return every(stride, traj.valid)
    return segment_starts(sampler.step_ends(traj).roll(1, 1), traj.valid)


def before_cut_points(cut_points: Tensor, interval: int, valid: Tensor) -> Tensor:
    """Segments with `interval` cut-points (B, T) bool each, but for the last; each begins at a cut-point."""
    before = cut_points.cumsum(1) - cut_points.long()
    return segment_starts(cut_points & (before % interval == 0) & (before > 0), valid)


def continuation_returns(sampler: Any, traj: Trajectories, starts: Tensor, n: int) -> Tensor:
    """Rewards earned by n fresh continuations from each marked state, all in one rollout.

    Continuations count as environment steps, not as episodes.

    Args:
        sampler: rolls out.
        traj: with its states kept.
        starts: (B, T) bool, N of them True: the states before these steps.
        n: continuations from each.

    Returns:
        (N, n), row by row; the mean over n estimates V of the state.

    Raises:
        ValueError: if the trajectories have no states.
    """
    if traj.states is None:
        raise ValueError("continuations need the states that a rollout passed through: keep_states=True")
    rows, steps = starts.nonzero(as_tuple=True)
    states = traj.states.at(rows.cpu().numpy(), steps.cpu().numpy())
    outcomes: Tensor = sampler.rollout(repeat(states, n)).outcomes
    return outcomes.view(-1, n)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Trees of segments as flat arrays; N nodes, parents before children, siblings next to one another."""

    traj: Trajectories  # a row per node: its own segment
    parent: Tensor  # (N,) int64, the parent's row; -1 - i for the nodes that begin at start i
    leaf: Tensor  # (N,) bool, True where an episode ended
    returns: Tensor  # (N,) rewards from the start to the node's end
    lengths: Tensor  # (N,) int64, steps from the start to the node's end


def grow_tree(sampler: Any, starts: Any, branching: Sequence[int], segment_length: int) -> Tree:
    """From each start branching[0] segments, from the end of each branching[1] more, and so on.

    Segments have `segment_length` steps; those of the last level run to the end. A node that ends early is a leaf.
    What counts as an episode is a leaf.

    Args:
        sampler: rolls out.
        starts: n fresh starts.
        branching: segments from each state, level by level.
        segment_length: M, steps.
    """
    parts: list[Trajectories] = []
    levels: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # what Tree has beside the trajectories
    states, n_nodes, origin = starts, 0, -1 - torch.arange(len(starts))
    returns, lengths = torch.zeros(len(starts)), torch.zeros(len(starts), dtype=torch.int64)
    for level, width in enumerate(branching):
        last = level == len(branching) - 1
        limit = None if last else segment_length
        traj = sampler.rollout(repeat(states, width), max_steps=limit, keep_states=not last)
        origin, returns, lengths = (x.repeat_interleave(width) for x in (origin, returns, lengths))
        returns, lengths, own = returns + traj.outcomes, lengths + traj.lengths, traj.lengths.cpu().numpy()
        # Rows cut by a limit of the environment's own have no state to go on from.
        goes_on = np.zeros(len(own), bool) if last else traj.states.running(np.arange(len(own)), own)
        parts.append(traj)
        levels.append((origin, torch.from_numpy(~goes_on), returns, lengths))
        rows = np.flatnonzero(goes_on)
        if not len(rows):
            break
        states = traj.states.at(rows, own[rows])
        origin, returns, lengths = n_nodes + torch.from_numpy(rows), returns[rows], lengths[rows]
        n_nodes += len(traj)
    parent, leaf, returns, lengths = (torch.cat(x) for x in zip(*levels, strict=True))
    sampler.counts["episodes"] += int(leaf.sum()) - len(parts[0])
    return Tree(traj=pad_and_join(parts), parent=parent, leaf=leaf, returns=returns, lengths=lengths)
