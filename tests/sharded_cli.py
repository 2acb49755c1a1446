"""What torchrun starts in tests/test_sharded_runs.py: the command line, with responses that do not depend on the ranks.

Each rank generates all of them as one process would, and keeps its share.
"""

from __future__ import annotations

from typing import Any

from sppo.experiments.cli import main
from sppo.llm.shared import SharedEngine


def generate(self: SharedEngine, prefixes: Any, max_new_tokens: Any, **options: Any) -> list[Any]:
    if self.version != getattr(self.policy, "version", 0):
        self.sync()
    done = self.engine.generate(prefixes, max_new_tokens, **options)[self.ranks.part(len(prefixes))]
    return [completion for part in self.ranks.gather(done) for completion in part]


if __name__ == "__main__":
    SharedEngine.generate = generate  # type: ignore[method-assign]
    main()
