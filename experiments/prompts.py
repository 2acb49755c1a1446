"""The prompts that a run on text trains and is evaluated on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from sppo.experiments.config import RunConfig
from sppo.experiments.tasks import TEXT
from sppo.llm.tasks import Prompt, Task, make_task


def training_task(config: RunConfig) -> Task:
    """The task of a run."""
    return _cached(config.env_id.removeprefix(TEXT), json.dumps(config.env_kwargs))


def evaluation_task(config: RunConfig) -> Task:
    """The same, unless the run is evaluated on another."""
    name = config.text["eval_task"]
    return training_task(config) if name is None else _cached(name, "{}")


@cache
def _cached(name: str, options: str) -> Task:
    try:
        return make_task(name, **json.loads(options))
    except TypeError as error:
        raise ValueError(f"task {name}, options {options}: {error}") from error


def evaluation_prompts(config: RunConfig) -> Sequence[Prompt]:
    """The test prompts of the task that a run is evaluated on."""
    try:
        return evaluation_task(config).prompts("test")
    except ValueError as error:
        raise ValueError(f"{error}; --text eval_task NAME evaluates on another task") from error
