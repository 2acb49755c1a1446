"""Passes through a network shared out among ranks: each reads a part of the rows, and all get what is said of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sppo.llm.limits import TOKENS
from sppo.llm.passes import moved

DIFFERENTIABLE = ("evaluate", "loss")
PASSES = (*DIFFERENTIABLE, "value", "values")
"""Methods of policies and critics that run the network."""


def shared_pass(
    one: Callable[..., Any], reads: Callable[[Any], Tensor], ranks: Any, rows: int | None
) -> Callable[..., Any]:
    """A pass that may be asked for on all ranks at once, for the same rows.

    Outside autograd, each rank's rows go in parts of at most TOKENS tokens and `rows` rows, equally many parts on all
    ranks: `reads` says how many tokens each row has.
    """

    def run(traj: Any, *args: Any, **options: Any) -> Any:
        out = one(*(moved(x, ranks.device) for x in (traj, *args)), **options)
        return moved(out, torch.device("cpu"))

    def call(traj: Any, *args: Any, **options: Any) -> Any:
        if (torch.is_grad_enabled() and one.__name__ in DIFFERENTIABLE) or not len(traj):
            return run(traj, *args, **options)
        each = -(-len(traj) // ranks.size)
        mine = (torch.arange(each) * ranks.size + ranks.rank) % len(traj)  # equally many for all: some rows twice
        n = min(rows or each, max(1, TOKENS // int(reads(traj).max())))
        parts = [run(traj[own], *(x[own] for x in args), **options) for own in mine.split(n)]
        columns = list(zip(*parts, strict=True)) if isinstance(parts[0], tuple) else [parts]
        told = [None if column[0] is None else ranks.interleaved(torch.cat(column))[: len(traj)] for column in columns]
        return tuple(told) if isinstance(parts[0], tuple) else told[0]

    return call
