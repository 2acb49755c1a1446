"""Every dataset of reasoning-gym by name, scored by its own `score_answer` in a killable process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from sppo.llm.tasks.base import Prompt, Score, TaskBase, check_split, stable_key, user_message
from sppo.llm.tasks.names import unknown
from sppo.llm.verifier_pool import Pool


@cache
def _pool() -> Pool:
    """Shared by all these tasks. Their scorers run code on what a model wrote: one evaluates powers of powers."""
    return Pool(seconds=5.0)


def _library() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("reasoning_gym tasks need reasoning-gym: pip install sppo[reasoning]") from error
    return reasoning_gym


def dataset_names() -> list[str]:
    """All that reasoning-gym offers."""
    _library()
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


class ReasoningTask(TaskBase):
    """A procedural dataset; train and test come from different seeds, and no test question is in train.

    Args:
        dataset: its name in reasoning-gym.
        train_size, test_size: questions drawn; repeated ones are dropped.
        seed: of the train split; the test split's is 10 000 019 more.
        system: the instruction before the question, by default the library's, which asks for
            <answer></answer> tags: the last pair holds the answer. "" for none.
        chat: pose it as chat messages, not as plain text.
        binary: pay 1 for the full score alone, and 0 for partial ones.
        options: of the dataset's own configuration.
    """

    def __init__(
        self,
        dataset: str,
        *,
        train_size: int = 2000,
        test_size: int = 200,
        seed: int = 0,
        system: str | None = None,
        chat: bool = True,
        binary: bool = False,
        **options: Any,
    ) -> None:
        library = _library()
        if dataset not in dataset_names():
            raise ValueError(unknown("reasoning-gym dataset", dataset, dataset_names()))
        self.name, self.dataset = f"reasoning_gym:{dataset}", dataset
        self.sizes = {"train": train_size, "test": test_size}
        self.seeds = {"train": seed, "test": seed + 10_000_019}
        self.system = library.utils.SYSTEM_PROMPTS["default"] if system is None else system
        self.chat, self.binary, self.options = chat, binary, options
        self._splits: dict[str, list[Prompt]] = {}
        self._check_options()

    def _check_options(self) -> None:
        try:
            _library().create_dataset(self.dataset, seed=0, size=1, **self.options)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"{self.name} does not take the options {self.options}: {error}") from error

    def prompts(self, split: str) -> list[Prompt]:
        """The questions of `train` or `test`."""
        check_split(self.name, split, tuple(self.sizes))
        if split not in self._splits:
            taken = {p.key for p in self.prompts("test")} if split == "train" else set()
            self._splits[split] = [prompt for prompt in self._draw(split) if prompt.key not in taken]
            if not self._splits[split]:
                raise ValueError(f"{self.name}: all {self.sizes[split]} train questions are test questions too")
        return self._splits[split]

    def _draw(self, split: str) -> list[Prompt]:
        data = _library().create_dataset(self.dataset, seed=self.seeds[split], size=self.sizes[split], **self.options)
        found: dict[int, Prompt] = {}
        for i in range(len(data)):
            entry = data[i]
            question = str(entry["question"])
            key = stable_key(question)
            plain = f"{self.system}\n{question}\n" if self.system else question
            found.setdefault(
                key,
                Prompt(
                    key=key,
                    prompt=user_message(question, system=self.system or None) if self.chat else plain,
                    answer=str(entry["answer"]),
                    data_source=self.name,
                    extra={"entry": entry},
                ),
            )
        return list(found.values())

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Outcomes in order; reason `partial` for a score between 0 and 1."""
        from reasoning_gym.utils import extract_answer

        scores: list[Score | None] = []
        jobs: dict[int, tuple[Any, ...]] = {}
        options = json.dumps({**self.options, "seed": 0, "size": 1}, default=str)
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            answer = extract_answer(response) if len(response) <= MAX_RESPONSE else None
            if answer is None or len(answer) > MAX_ANSWER:
                long = len(response) > MAX_RESPONSE or answer is not None
                scores.append(Score(0.0, "too_long" if long else "no_answer"))
            else:
                scores.append(None)
                jobs[i] = (self.dataset, options, prompt.extra["entry"], answer)
        for i, reply in zip(jobs, _pool().ask_all("reasoning", list(jobs.values())), strict=True):
            if reply.status != "ok":
                scores[i] = Score(0.0, reply.status)
                continue
            value = float(reply.result)
            reason = "ok" if value >= 1 else "partial" if value > 0 else "wrong"
            scores[i] = Score(float(value >= 1) if self.binary else min(max(value, 0.0), 1.0), reason)
        return [score for score in scores if score is not None]


MAX_RESPONSE = 1_000_000  # characters: the library's pattern is tried at every one of them
MAX_ANSWER = 20_000
