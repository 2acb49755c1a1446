"""The prompts that a run on text trains and is evaluated on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache

from sppo.experiments.config import RunConfig
from sppo.experiments.tasks import TEXT
from sppo.experiments.text_config import TextConfig
from sppo.llm.policy import TextPolicy
from sppo.llm.tasks import Prompt, Task, make_task

_log = logging.getLogger(__name__)


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


def fitting(prompts: Sequence[Prompt], policy: TextPolicy, text: TextConfig) -> list[Prompt]:
    """The prompts that leave room for a response.

    Raises:
        ValueError: if none does.
    """
    context = policy.context
    limits = [text.max_prompt_length, None if context is None else context - text.max_completion_length]
    limit = min((n for n in limits if n is not None), default=None)
    if limit is None:
        return list(prompts)
    kept = policy.no_longer(prompts, limit)
    if not kept:
        raise ValueError(
            f"none of the {len(prompts)} prompts has at most {limit} tokens (the model's context is {context}, "
            f"max_completion_length {text.max_completion_length}, max_prompt_length {text.max_prompt_length})"
        )
    if len(kept) < len(prompts):
        _log.warning(
            "%d of %d prompts are longer than %d tokens; left out", len(prompts) - len(kept), len(prompts), limit
        )
    return kept
