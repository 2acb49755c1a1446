"""What generates: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

    copies_weights: bool
    """True where it has weights of its own, whose log-probabilities differ a little from the policy's."""

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
        """Take over the policy's present weights, where the engine keeps a copy; `generate` does it by itself."""


def stop_tokens(tokenizer: Any, ids: Sequence[int] | None = None) -> list[int]:
    """These ids, by default all that end an answer of the model that the tokenizer was loaded with.

    Raises:
        ValueError: if there is none.
    """
    stops = [tokenizer.eos_token_id, *getattr(tokenizer, "other_stops", ())] if ids is None else list(ids)
    if not stops or None in stops:
        raise ValueError("no stop token: the tokenizer has none, so stop_token_ids must name one")
    return stops


def check_room(prefixes: Sequence[Tensor], max_new_tokens: Sequence[int], context: int | None) -> None:
    """Raise ValueError for an empty prefix, or one that leaves no room in a model's context."""
    for i, (prefix, limit) in enumerate(zip(prefixes, max_new_tokens, strict=True)):
        if len(prefix) == 0:
            raise ValueError(f"prefix {i} is empty: at least one token is needed to start from")
        if context is not None and len(prefix) + limit > context:
            raise ValueError(
                f"prefix {i} has {len(prefix)} tokens and may grow by {limit}, "
                f"more than the model's context of {context}"
            )
