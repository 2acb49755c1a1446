"""Tasks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sppo.llm.tasks.addition import AdditionTask
from sppo.llm.tasks.arithmetic import ArithmeticTask
from sppo.llm.tasks.base import Task
from sppo.llm.tasks.files import BENCHMARKS, benchmark, data_file, gsm8k
from sppo.llm.tasks.functions import FunctionTask, RewardFunction
from sppo.llm.tasks.names import unknown
from sppo.llm.tasks.rows import SUFFIXES

_makers: dict[str, Callable[..., Task]] = {"arithmetic": ArithmeticTask, "addition": AdditionTask, "gsm8k": gsm8k}


def register_task(name: str, maker: Callable[..., Task]) -> None:
    """Make `maker(**options)` known as `make_task(name, **options)`."""
    if name in _makers:
        raise ValueError(f"there is a task {name!r} already")
    _makers[name] = maker


def task_names() -> list[str]:
    """What `make_task` takes, besides paths of data files; NAME stands for any of reasoning-gym's datasets."""
    return sorted({*_makers, *BENCHMARKS, "verl", "columns", "reasoning_gym:NAME"})


def make_task(name: str, *, reward: RewardFunction | str | None = None, **options: Any) -> Task:
    """A task by name.

    Args:
        name: one of `task_names()`, or the path of a .parquet, .jsonl, .json or .csv file.
        reward: a user's reward function, or its place as `path.py:function`, in place of the task's own.
        options: the task's own.

    Raises:
        ValueError: for an unknown name, naming the nearest, or an option the task does not have.
        FileNotFoundError: where a data file is not there.
    """
    if reward is not None and _is_file_task(name):
        # The user's function says what it needs: no answer, and no instruction to box it.
        options = {"needs_answer": False, "suffix": "", **options}
    task = _make(name, options)
    return task if reward is None else FunctionTask(task, reward)


def _is_file_task(name: str) -> bool:
    return name.endswith(SUFFIXES) or name in (*BENCHMARKS, "gsm8k", "verl", "columns")


def _make(name: str, options: dict[str, Any]) -> Task:
    if name.startswith("reasoning_gym:"):
        from sppo.llm.tasks.reasoning import ReasoningTask

        return ReasoningTask(name.removeprefix("reasoning_gym:"), **options)
    try:
        if name in _makers:
            return _makers[name](**options)
        if name in BENCHMARKS:
            return benchmark(name, **options)
        if name in ("verl", "columns"):
            return data_file(name, **{"schema": name, **options})
        if name.endswith(SUFFIXES):
            return data_file(Path(name).stem, path=name, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"task {name}: {str(error).split(') ')[-1].split('() ')[-1]}{_options_of(name)}") from error
    raise ValueError(unknown("task", name, task_names()) + "; or the path of a data file")


def _options_of(name: str) -> str:
    from sppo.llm.tasks.files import FileTask

    maker = _makers.get(name, FileTask)
    source = FileTask if _is_file_task(name) else maker
    names = [n for n, p in inspect.signature(source).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return f"; its options are {', '.join(names)}"
