"""A policy's weights on their way to an engine that keeps a copy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sppo.llm.policy import TextPolicy

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(policy: TextPolicy) -> tuple[int, ...]:
    """What changes with the bits of any weight that learns: a number for each, or the version of a sharded policy.

    Weights may be views of the tensor that the optimiser steps, so their own version counters would not tell.
    """
    if hasattr(policy, "version"):  # all ranks must see the same, and each has other slices
        version: Any = policy.version
        return (version,)
    learn = [p.detach() for p in policy.model.parameters() if p.requires_grad]
    return tuple(torch.stack([p.view(BITS[p.element_size()]).sum() for p in learn]).tolist())


class Weight(NamedTuple):
    """What vLLM's transfer asks of a weight."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Weights:
    """A policy's weights by name, in the engine's type, each made whole when its turn comes, on the device from which
    it is sent. vLLM's WeightSource."""

    def __init__(self, policy: TextPolicy, dtype: torch.dtype, device: torch.device) -> None:
        self.policy, self.dtype, self.device = policy, dtype, device

    def metadata(self) -> list[Weight]:
        return [Weight(name, self.dtype, tuple(p.shape)) for name, p in self._named()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self._named():
            yield name, getattr(p, "full_tensor", lambda p=p: p)().detach().to(self.device, self.dtype)

    def _named(self) -> Iterator[tuple[str, Any]]:
        for name, p in self.policy.model.named_parameters(remove_duplicate=False):
            if "lora_" not in name:
                yield name.replace(".base_layer.", "."), p


def shared_folder() -> tempfile.TemporaryDirectory[str]:
    """In memory, where there is such a place."""
    return tempfile.TemporaryDirectory(prefix="sppo-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
