"""Credit for parts of episodes: segments between valued states, and trees of segments. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sppo.agents.credit import group_statistics


def segment_advantage(values: Tensor, rewards: Tensor, starts: Tensor, valid: Tensor) -> Tensor:
    """What each segment of an episode changed, given to each of its steps.

    A of segment k = (rewards within it) + V(s at the start of segment k + 1) - V(s at its own start), and 0 for the
    value behind the last. With a reward at the end alone: V(next) - V(this), where V of the terminal state is R.

    Source: VinePPO, arXiv 2410.01679, eq. 6; Segment Policy Optimization, arXiv 2505.23564, eq. 3.

    Args:
        values: (N,) expected rewards from each marked state on, row by row.
        rewards: (B, T).
        starts: (B, T) bool, True where a segment begins: N of them, the first step of every row included.
        valid: (B, T) bool, True where the policy chose an action; a prefix of each row.

    Returns:
        (B, T), 0 where not valid.

    Raises:
        ValueError: if there is not one value per segment, or a row does not begin with one.
    """
    rows = starts.nonzero()[:, 0]
    if tuple(values.shape) != tuple(rows.shape):
        raise ValueError(f"values must be (N,) = {tuple(rows.shape)}, one per segment, got {tuple(values.shape)}")
    if not bool((starts[:, 0] >= valid[:, 0]).all()) or bool((starts > valid).any()):
        raise ValueError("starts must mark the first step of every row, and valid steps alone")
    number = segment_numbers(starts)
    earned = torch.zeros_like(values).index_add(0, number[valid], rewards[valid].to(values))
    goes_on = torch.cat([rows[1:] == rows[:-1], rows.new_zeros(1, dtype=torch.bool)])
    advantages = earned + torch.where(goes_on, values.roll(-1), 0.0) - values
    return advantages[number] * valid


def segment_numbers(starts: Tensor) -> Tensor:
    """(B, T) int64: which of the N segments, counted row by row, each step belongs to."""
    return starts.flatten().cumsum(0).view(starts.shape) - 1


def tree_values(parent: Tensor, returns: Tensor) -> Tensor:
    """Values of a tree's nodes, from its leaves up: V(leaf) = R, V(node) = mean of its children's V.

    Source: Segment Policy Optimization, arXiv 2505.23564, section 4.2.

    Args:
        parent: (N,) int64, the row of each node's parent, above its own; negative where there is none.
        returns: (N,) R of the episodes that end in leaves; of other nodes it is not read.

    Returns:
        (N,).

    Raises:
        ValueError: if a node comes before its parent.
    """
    above: Sequence[int] = parent.tolist()
    values: list[float] = returns.tolist()
    total, count = [0.0] * len(values), [0] * len(values)
    for i in reversed(range(len(values))):
        if above[i] >= i:
            raise ValueError(f"a node must come after its parent: node {i} has parent {above[i]}")
        if count[i]:
            values[i] = total[i] / count[i]
        if above[i] >= 0:
            total[above[i]] += values[i]
            count[above[i]] += 1
    return torch.tensor(values, dtype=torch.float64)


def sibling_advantage(values: Tensor, parent: Tensor, *, scale_by_std: bool = False) -> Tensor:
    """A(node) = V(node) - mean of its siblings' V, itself included; optionally over (their std + 1e-6), divisor G.

    Source: Segment Policy Optimization, arXiv 2505.23564, section 4.2. In a tree of depth one this is Dr.GRPO's
    advantage, and with `scale_by_std` GRPO's.

    Args:
        values: (N,).
        parent: (N,) int64; nodes with the same number are siblings, negative numbers included.
        scale_by_std: divide by the spread.

    Returns:
        (N,) float32; exactly 0 where all siblings have one value.
    """
    mean, std, _ = group_statistics(values, parent.unique(return_inverse=True)[1])
    advantages = torch.where(std < 1e-9, 0.0, values.double() - mean)
    return (advantages / (std + 1e-6) if scale_by_std else advantages).float()
