"""What torchrun starts in tests/test_vllm.py: SPPO learns a toy task, vLLM on every rank. Writes the success rates."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from fake_text import ToyTask
from test_vllm import KV, toy

from sppo.agents import SPPO
from sppo.llm.engine_vllm import VLLMEngine
from sppo.llm.fsdp import FSDPLearner, join
from sppo.llm.policy import critic_base
from sppo.llm.sampler import TextSampler
from sppo.llm.shared import SharedEngine, SharedTask


def main(folder: Path, mode: str, updates: int) -> None:
    """`mode` is process, server, or dies: one rank's server is killed after the first update."""
    ranks, policy = join(), toy()
    assert ranks is not None
    engine = SharedEngine(VLLMEngine(policy, server=mode != "process", kv_cache_gib=KV), policy, ranks)
    sampler = TextSampler(
        SharedTask(ToyTask(), ranks),
        policy,
        engine,
        max_completion_length=8,
        critic=lambda: critic_base(policy.model, layers=1),
    )
    sampler.learner = partial(FSDPLearner, ranks=ranks)  # type: ignore[attr-defined]
    agent = SPPO(sampler, episodes_per_update=64, learning_rate=3e-3, n_epochs=1, n_minibatches=2)
    metrics = [agent.train_once()]
    if mode == "dies" and ranks.rank == 1:
        os.kill(engine.engine._holder.process.pid, signal.SIGKILL)
        print("killed at", time.time(), flush=True)
    metrics += [agent.train_once() for _ in range(updates - 1)]
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps(metrics))
    engine.close()
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
