"""What a text task is: prompts with answers, and a score for every response."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

Messages = list[dict[str, str]]
"""A chat: dictionaries with `role` and `content`."""

BOXED_SUFFIX = "Please output the final answer within \\boxed{}."


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One start state of a task."""

    key: int  # int64, at least 0, the same in every run: see stable_key
    prompt: str | Messages  # plain text, or a chat for the tokenizer's template
    answer: str  # the gold answer, as text
    alternatives: tuple[str, ...] = ()  # other answers that are as right
    data_source: str = ""  # where it is from: metrics may be split by it
    extra: Mapping[str, Any] = field(default_factory=dict)  # the row's other columns

    @property
    def text(self) -> str:
        """The prompt as plain text: of a chat, the contents line by line."""
        return self.prompt if isinstance(self.prompt, str) else "\n".join(m["content"] for m in self.prompt)


class Score(NamedTuple):
    """A response's outcome."""

    reward: float  # in [0, 1] for the built-in tasks
    reason: str  # one word, to be counted as reward/REASON: ok, wrong, no_answer, unparsable, timeout, ...


@runtime_checkable
class Task(Protocol):
    """Prompts, and a verifier of responses."""

    name: str

    def prompts(self, split: str) -> Sequence[Prompt]:
        """The prompts of a split, always in the same order; ValueError for a split that the task does not have."""

    def score(self, prompt: Prompt, response: str) -> Score:
        """The outcome of one response: text without the stop token."""

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Outcomes of many responses, in order; in parallel where that helps."""

    def answer(self, prompt: Prompt, response: str) -> str | None:
        """What a response answers, written so that equal answers are equal text as far as can be told cheaply and
        without the gold answer: for majority votes. None where it answers nothing."""


class TaskBase:
    """Scores a batch one by one; tasks that can do better override `score_all`, the others `score`."""

    name: str
    step_separator = "\n"
    """What ends a reasoning step in a response."""

    def score(self, prompt: Prompt, response: str) -> Score:
        """The outcome of one response."""
        return self.score_all([prompt], [response])[0]

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Outcomes of many responses, in order."""
        return [self.score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]

    def answer(self, prompt: Prompt, response: str) -> str | None:
        """The whole response, unless the task knows better."""
        return response.strip() or None


def stable_key(*parts: str) -> int:
    """A non-negative int64 that depends on the texts alone, not on the run: a key, or a coin for a split."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def held_out(share: float, *parts: str) -> bool:
    """Whether these texts belong to the held-out `share` of all texts."""
    return stable_key("split", *parts) < share * 2**63


def user_message(text: str, *, system: str | None = None) -> Messages:
    """A chat of one question."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raise ValueError where a task does not have this split."""
    if split not in splits:
        raise ValueError(f"task {name} has the splits {', '.join(splits)}, got {split!r}")
