"""How the experience of one update is cut: minibatches in a new order each pass, and microbatches of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from sppo.agents.batch import Experience, side_by_side

if TYPE_CHECKING:
    from sppo.agents.update import Loss

Parts = Sequence[Experience | None]
"""Of each of several networks side by side."""


def per_pass(data: Experience, loss: Loss, n_minibatches: int, batch_size: int | None) -> int:
    """Minibatches in one pass over the data, none of them empty unless all is."""
    rows = int(data.traj.valid.count_nonzero()) if loss.memoryless else len(data)
    n = n_minibatches if batch_size is None else -(-rows // batch_size)
    return max(1, min(n, rows // loss.block))


def minibatches(
    data: Experience, loss: Loss, n_epochs: int, n: int, generator: np.random.Generator
) -> Iterator[Experience]:
    """Each pass's `n` minibatches, in a new order each pass; rows of one block stay together.

    Some are empty where there are fewer blocks.
    """
    if loss.memoryless:
        data = data.steps()
    n_blocks = len(data) // loss.block
    bounds = np.linspace(0, n_blocks, n + 1).round().astype(int) * loss.block
    for _ in range(n_epochs):
        blocks = torch.from_numpy(generator.permutation(n_blocks))
        order = (blocks[:, None] * loss.block + torch.arange(loss.block)).flatten()
        shuffled = data[order.to(data.weight.device)]
        for first, last in zip(bounds, bounds[1:], strict=False):
            yield shuffled[slice(first, last)]


def some_silent(data: Experience) -> bool:
    """Whether there are steps without signal."""
    assert data.advantages is not None
    return int((data.weight * data.advantages).count_nonzero()) < int(data.traj.valid.count_nonzero())


def microbatches(parts: Parts, size: int | None, steps: int | None, block: int) -> list[Experience]:
    """The networks' rows side by side, all at once where there are several networks; none where there are none."""
    if not any(part is not None and len(part) for part in parts):
        return []
    minibatch = side_by_side(parts)
    if len(parts) > 1 or (steps is None and (size is None or size >= len(minibatch))):
        return [minibatch]
    if block == 1:
        minibatch = minibatch.by_length()
    lengths = minibatch.traj.sizes.tolist()
    bounds, longest = [0], 0
    for first in range(0, len(lengths), block):
        end, longest = first + block, max(longest, *lengths[first : first + block])
        rows = end - bounds[-1]
        if rows > block and (rows > (size or rows) or rows * longest > (steps or rows * longest)):
            bounds.append(first)
            longest = max(lengths[first:end])
    return [minibatch[slice(*ends)] for ends in pairwise([*bounds, len(lengths)])]
