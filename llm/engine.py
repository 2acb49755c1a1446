"""What generates: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What one prefix was continued with."""

    tokens: Tensor  # (n,) int64, the stop token included
    logprobs: Tensor  # (n,) float32, of each token at the sampling temperature
    stopped: bool  # True where the last token is a stop token, False where the limit came first


class Engine(Protocol):
    """Continues token prefixes with the policy it holds."""

    def generate(
        self,
        prefixes: Sequence[Tensor],
        max_new_tokens: Sequence[int],
        *,
        greedy: bool,
        generator: np.random.Generator,
    ) -> list[Completion]:
        """One completion per prefix (int64 ids), in order, each of at most its own number of tokens."""

    def sync(self) -> None:
        """Take over the policy's present weights, where the engine keeps a copy."""
