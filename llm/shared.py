"""Generation and scoring shared out among ranks: each does a part, and all get the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sppo.llm.engine import Completion
from sppo.llm.fsdp import Ranks, whole_weights


class SharedEngine:
    """Each rank generates a share of the completions, and all get all of them.

    Args:
        engine: this rank's own.
        policy: that learns; sharded, or not yet.
        ranks: that share the work.
        replica: the whole policy that `engine` reads, where it reads one: brought up to date from the slices.
    """

    def __init__(self, engine: Any, policy: Any, ranks: Ranks, replica: Any = None) -> None:
        self.engine, self.policy, self.ranks, self.replica = engine, policy, ranks, replica
        self.version = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def sync(self) -> None:
        """Take over the policy's present weights."""
        if self.replica is not None:
            for name, weight in whole_weights(self.policy):
                self.replica.get_parameter(name).data.copy_(weight)
        self.engine.sync()
        self.version = getattr(self.policy, "version", 0)

    def generate(
        self,
        prefixes: Sequence[Tensor],
        max_new_tokens: Sequence[int],
        *,
        greedy: bool,
        generator: np.random.Generator,
    ) -> list[Completion]:
        """See `Engine.generate`; `generator` moves on alike on all ranks, each draws from a branch of its own."""
        if self.version != getattr(self.policy, "version", 0):
            self.sync()
        mine, seed = self.ranks.part(len(prefixes)), int(generator.integers(2**63 - 1))
        own = np.random.default_rng([seed, self.ranks.rank])
        done = self.engine.generate(prefixes[mine], max_new_tokens[mine], greedy=greedy, generator=own)
        return [completion for part in self.ranks.gather(done) for completion in part]


class SharedTask:
    """Each rank scores a share of the responses, and all get all scores."""

    def __init__(self, task: Any, ranks: Ranks) -> None:
        self.task, self.ranks = task, ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def score_all(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[Any]:
        """One score per response, in order."""
        mine = self.ranks.part(len(prompts))
        return [s for part in self.ranks.gather(self.task.score_all(prompts[mine], responses[mine])) for s in part]
