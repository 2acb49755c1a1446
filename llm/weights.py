"""A policy's weights on their way to an engine that keeps a copy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sppo.agents.batch import Choices
from sppo.llm.policy import Prefixes, TextPolicy

Request = tuple[list[int], int, int]  # prefix, most new tokens, seed
Answer = tuple[list[int], list[float], bool]  # tokens, log-probabilities, whether a stop token ended it

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""In nats, of the mean difference between a policy and its copy."""
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


def check_arrived(policy: TextPolicy, ask: Callable[[list[Request]], list[Answer]], tolerance: float) -> None:
    """Let the copy answer a few fixed beginnings, and compare its log-probabilities with the policy's.

    Raises:
        RuntimeError: if they differ by more than `tolerance` on average.
    """
    draw = np.random.default_rng(0)
    prefixes = [draw.integers(len(policy.tokenizer), size=n) for n in (3, 5, 8, 8)]
    answers = ask([(prefix.tolist(), 4, seed) for seed, prefix in enumerate(prefixes)])
    tokens, theirs = (pad_sequence([torch.tensor(a[i]) for a in answers], batch_first=True) for i in (0, 1))
    valid = torch.arange(tokens.shape[1]) < torch.tensor([[len(a[0])] for a in answers])
    inputs = Prefixes.of([torch.from_numpy(prefix) for prefix in prefixes])
    choices = Choices(inputs=inputs, actions=tokens, logprobs=theirs, valid=valid)
    # Not without autograd: then ranks that share a policy would share out these rows, of which each has its own.
    own = policy.evaluate(choices)[0].detach()
    difference = float((own - theirs)[valid].abs().mean())
    if not difference <= tolerance:
        raise RuntimeError(
            f"the weights did not reach vLLM as they are: it gives the probe's tokens a mean log-probability of "
            f"{float(theirs[valid].mean()):.4g}, the trainer {float(own[valid].mean()):.4g}; they differ by "
            f"{difference:.3g} on average, and may by {tolerance:g}"
        )
