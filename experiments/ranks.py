"""The ranks that share a run, as many as torchrun started, and what of a run they share."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppo.experiments.text_config import TextConfig
    from sppo.llm.engine import Engine
    from sppo.llm.policy import TextPolicy
    from sppo.llm.tasks import Task

# Everything of torch.distributed is imported when ranks have been started: the command line loads this file.


def started() -> int | None:
    """How many processes torchrun started, this one among them; None without it."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else None


def started_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_first() -> bool:
    """True in the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def check_started(wanted: int | None) -> None:
    """Raises: ValueError unless torchrun started as many ranks as share the run."""
    if wanted != started():
        raise ValueError(f"the run is shared by {wanted or 'no'} ranks, and torchrun started {started() or 'none'}")


@cache
def ranks() -> Any:
    """The `Ranks` that share this process's runs, met once; None without torchrun."""
    if started() is None:
        return None
    from sppo.llm.fsdp import join

    return join()


def shared_engine(make_engine: Callable[[TextPolicy, TextConfig], Engine], policy: TextPolicy, text: TextConfig) -> Any:
    """Each rank's own engine; transformers' reads a whole copy of the policy."""
    if ranks() is None:
        return make_engine(policy, text)
    from sppo.llm.shared import SharedEngine

    if text.engine != "hf":
        return SharedEngine(make_engine(policy, text), policy, ranks())
    replica: Any = copy.deepcopy(policy).to(ranks().device)
    engine: Any = SharedEngine(make_engine(replica, text), policy, ranks(), replica)
    engine.copies_weights = text.shard_dtype != "float32"  # then what learns rounds differently
    return engine


def shared_task(task: Task) -> Any:
    """Scored by each rank in part."""
    if ranks() is None:
        return task
    from sppo.llm.shared import SharedTask

    return SharedTask(task, ranks())


def shared_learner(text: TextConfig, microbatch_size: int | None) -> Any:
    """What makes the learner of a network that all ranks shard, policy and critic each on its own mesh."""
    from sppo.llm.fsdp import FSDPLearner, ShardConfig
    from sppo.llm.policy import TextPolicy

    shards = ShardConfig(
        dtype=text.shard_dtype,
        checkpointing=text.checkpointing,
        offload=text.offload,
        rows=None if microbatch_size is None else -(-microbatch_size // ranks().size),
    )

    def make(module: Any, **options: Any) -> FSDPLearner:
        over = text.shard_over if isinstance(module, TextPolicy) else text.critic_shard_over
        return FSDPLearner(module, ranks=ranks(), config=replace(shards, over=over), **options)

    return make
