"""How rows reach a network: on the device of its weights, and outside autograd a bounded number of tokens at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from sppo.agents.batch import Choices, Rows
from sppo.llm.limits import TOKENS


def device_of(base: Any) -> torch.device:
    """Where a body's weights are."""
    return next(base.parameters()).device


def moved(x: Any, device: torch.device) -> Any:
    """Tensors, alone or in dataclasses and tuples, on a device."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, tuple):
        return tuple(moved(y, device) for y in x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return type(x)(**{f.name: moved(getattr(x, f.name), device) for f in dataclasses.fields(x)})
    return x


def a_pass(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that reads rows with a network: they go to where its weights are, and what it says of them comes back.

    Outside autograd, rows go in parts of at most TOKENS tokens, the longest first; but where `whole_rows` says that
    whoever asks bounds them.
    """

    @wraps(method)
    def run(self: Any, traj: Choices, *args: Tensor, **options: Any) -> Any:
        here, there = traj.valid.device, self.device

        def part(rows: Rows) -> Any:
            given = traj.choices()[rows], *(x[rows] for x in args)
            return moved(method(self, *moved(given, there), **options), here)

        reads = self.reads(traj)
        n = max(1, TOKENS // int(reads.max())) if len(reads) else 1
        if torch.is_grad_enabled() or len(reads) <= n or getattr(self.base, "whole_rows", False):
            return part(slice(None))
        order = torch.argsort(reads, descending=True, stable=True)
        parts, back = [part(rows) for rows in order.split(n)], torch.argsort(order)
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[back]
        return tuple(None if x[0] is None else torch.cat(x)[back] for x in zip(*parts, strict=True))

    return run
