"""Every dataset of reasoning-gym by name, scored by its own `score_answer` in a killable process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np

from sppo.llm.tasks.base import Prompt, Score, TaskBase, check_split, stable_key, user_message
from sppo.llm.tasks.names import unknown
from sppo.llm.verifier_pool import Pool, draw


@cache
def _pool() -> Pool:
    """Shared by all these tasks. Their scorers run code on what a model wrote: one evaluates powers of powers."""
    return Pool(seconds=5.0, warm_up=("import_reasoning", ()))


def _library() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("reasoning_gym tasks need reasoning-gym: pip install sppo[reasoning]") from error
    return reasoning_gym


def _part(part: Any) -> Any:
    """A part of the composite dataset, given as the library's DatasetSpec or as a dictionary of its fields."""
    from reasoning_gym.composite import DatasetSpec

    return DatasetSpec(**{"weight": 1.0, "config": {}, **part}) if isinstance(part, dict) else part


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
        self.chat, self.binary = chat, binary
        if dataset == "composite":
            options["datasets"] = [_part(part) for part in options.get("datasets", [])]
        try:
            library.create_dataset(dataset, seed=0, size=1, **options)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{self.name} does not take the options {options}: {error}") from error
        self._options = pickle.dumps(options)

    def prompts(self, split: str) -> list[Prompt]:
        """The questions of `train` or `test`."""
        check_split(self.name, split, tuple(self.sizes))
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        drawn = draw(self.dataset, self._options, self.seeds, self.sizes)
        test = {prompt.key: prompt for prompt in map(self._prompt, drawn["test"])}
        train = {prompt.key: prompt for prompt in map(self._prompt, drawn["train"]) if prompt.key not in test}
        if not train and drawn["train"]:
            raise ValueError(f"{self.name}: all {len(drawn['train'])} train questions are test questions too")
        return {"train": list(train.values()), "test": list(test.values())}

    def _prompt(self, entry: dict[str, Any]) -> Prompt:
        question = str(entry["question"])
        plain = f"{self.system}\n{question}\n" if self.system else question
        return Prompt(
            key=stable_key(question),
            prompt=user_message(question, system=self.system or None) if self.chat else plain,
            answer=str(entry["answer"]),
            data_source=self.name,
            extra={"entry": entry},
        )

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Outcomes in order; reason `partial` for a score between 0 and 1."""
        from reasoning_gym.utils import extract_answer

        scores: list[Score | None] = []
        jobs: dict[int, tuple[Any, ...]] = {}
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            answer = extract_answer(response) if len(response) <= MAX_RESPONSE else None
            if answer is None or len(answer) > MAX_ANSWER:
                long = len(response) > MAX_RESPONSE or answer is not None
                scores.append(Score(0.0, "too_long" if long else "no_answer"))
            else:
                scores.append(None)
                jobs[i] = (self.dataset, self._options, prompt.extra["entry"], answer)
        for i, reply in zip(jobs, _pool().ask_all("reasoning", list(jobs.values())), strict=True):
            if reply.status != "ok":
                scores[i] = Score(0.0, reply.status)
                continue
            value = float(reply.result)
            reason = "ok" if value >= 1 else "partial" if value > 0 else "wrong"
            scores[i] = Score(float(value >= 1) if self.binary else min(max(value, 0.0), 1.0), reason)
        return [score for score in scores if score is not None]

    @cached_property
    def alphabet(self) -> str:
        """Every character of questions and demonstrations, for a new model that reads plain text."""
        prompts = [prompt for split in self._splits.values() for prompt in split]
        return "".join(sorted(set("".join(p.text + p.answer for p in prompts) + IN_TAGS.format(""))))

    @cached_property
    def _answered_with(self) -> list[str]:
        return sorted(set("".join(prompt.answer for prompt in self._splits["train"])))

    def demonstration(self, prompt: Prompt, generator: np.random.Generator, p_slip: float = 0.0) -> str:
        """The gold answer in its tags, without steps and without the stop token.

        Args:
            p_slip: chance of each character of the answer to come out as any of those that answers are made of.
                A model that is trained on such answers has the skill, and room for reinforcement learning.
        """
        slips = generator.random(len(prompt.answer)) < p_slip
        others = generator.choice(self._answered_with, len(prompt.answer))
        said = [other if slip else own for own, other, slip in zip(prompt.answer, others, slips, strict=True)]
        return IN_TAGS.format("".join(said))

    def answer(self, prompt: Prompt, response: str) -> str | None:
        """What stands in the last pair of <answer></answer> tags."""
        from reasoning_gym.utils import extract_answer

        said = extract_answer(response) if len(response) <= MAX_RESPONSE else None
        return said.strip() or None if said is not None and len(said) <= MAX_ANSWER else None


IN_TAGS = "<answer>{}</answer>"
MAX_RESPONSE = 1_000_000  # characters: the library's pattern is tried at every one of them
MAX_ANSWER = 20_000
