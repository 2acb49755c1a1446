"""Rewards that users bring: a function in TRL's signature or verl's, over the prompts of any task."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sppo.llm.tasks.base import Prompt, Score, Task, TaskBase

RewardFunction = Callable[..., Any]


def load_function(where: str) -> RewardFunction:
    """The function of `path/to/file.py:name` or `package.module:name`.

    Raises:
        ValueError: if the text, the file or the name in it does not fit.
    """
    source, colon, name = where.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"a reward function is named as path.py:function or module:function, got {where!r}")
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"no file {path.resolve()} for the reward function {where!r}")
        spec = importlib.util.spec_from_file_location(f"reward_function_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        there = sorted(n for n, v in vars(module).items() if inspect.isfunction(v))
        raise ValueError(f"{source} has no function {name}; it has {', '.join(there) or 'none'}")
    return function


def signature_of(function: RewardFunction) -> str:
    """trl or verl, by the names of the function's parameters.

    Raises:
        ValueError: if they are neither's.
    """
    names = set(inspect.signature(function).parameters)
    if {"solution_str", "ground_truth"} <= names:
        return "verl"
    if "completions" in names:
        return "trl"
    raise ValueError(
        "a reward function takes (prompts, completions, **columns) as in TRL, or "
        f"(data_source, solution_str, ground_truth, extra_info) as in verl; got ({', '.join(sorted(names))})"
    )


class FunctionTask(TaskBase):
    """Another task's prompts under a user's reward function.

    An exception in the function is the user's to mend, so it ends the run; a reward of None (TRL: not applicable) or
    one that is not finite is 0 with reason no_reward or not_finite.

    Args:
        base: the task whose prompts are posed.
        function: see `signature_of`; also as `path.py:function`. TRL's gets chats as chats, the prompt's columns
            as keyword arguments (the gold answer as `answer`), and returns a list of floats.
    """

    def __init__(self, base: Task, function: RewardFunction | str, *, name: str | None = None) -> None:
        self.base = base
        self.step_separator = getattr(base, "step_separator", self.step_separator)
        self.function = load_function(function) if isinstance(function, str) else function
        self.style = signature_of(self.function)
        self.name = name or f"{base.name}+{getattr(self.function, '__name__', 'reward')}"

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The base task's prompts."""
        return self.base.prompts(split)

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Outcomes in order; TRL's function is called once, verl's once per response."""
        if not prompts:
            return []
        rewards = self._trl(prompts, responses) if self.style == "trl" else self._verl(prompts, responses)
        return [_score(reward) for reward in rewards]

    def answer(self, prompt: Prompt, response: str) -> str | None:
        """As the base task reads it."""
        return self.base.answer(prompt, response)

    def _trl(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Any]:
        rows = [{**prompt.extra, "answer": prompt.answer} for prompt in prompts]
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(k for row in rows for k in row)}
        completions = [
            response if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": response}]
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        given = {**columns, "prompts": [prompt.prompt for prompt in prompts], "completions": completions}
        parameters = inspect.signature(self.function).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            given = {name: value for name, value in given.items() if name in parameters}
        rewards = list(self.function(**given))
        if len(rewards) != len(prompts):
            raise ValueError(f"reward function of {self.name} must return {len(prompts)} rewards, got {len(rewards)}")
        return rewards

    def _verl(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Any]:
        return [
            self.function(
                data_source=prompt.data_source,
                solution_str=response,
                ground_truth=prompt.answer,
                **({"extra_info": prompt.extra.get("extra_info", {})} if self._takes_extra else {}),
            )
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    @property
    def _takes_extra(self) -> bool:
        parameters = inspect.signature(self.function).parameters
        return "extra_info" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _score(reward: Any) -> Score:
    if isinstance(reward, dict):  # verl allows metrics beside the score
        reward = reward["score"]
    if reward is None:
        return Score(0.0, "no_reward")
    value = float(reward)
    if not math.isfinite(value):
        return Score(0.0, "not_finite")
    return Score(value, "ok" if value >= 1 else "wrong" if value <= 0 else "partial")
