"""`What is a + b?` as a chat: small enough for a model of 135 million parameters, and for a look at its answers."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np

from sppo.llm.tasks.base import Prompt, Score, TaskBase, check_split, held_out, stable_key, user_message

# A minus after a digit is a subtraction, not a sign.
_NUMBER = re.compile(r"(?<![0-9.])-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")


class AdditionTask(TaskBase):
    """Questions `What is a + b?`, 0 <= a, b <= `most`; the last number of the response is taken for its answer.

    a + b and b + a are in the same split.

    Args:
        most: the greatest summand.
        test_share: of all pairs, held out by hash.
        suffix: text after the question.
        chat: pose it as a chat message, not as plain text.
        seed: of the order.
    """

    def __init__(
        self, *, most: int = 20, test_share: float = 0.2, suffix: str = "", chat: bool = True, seed: int = 0
    ) -> None:
        if most < 1:
            raise ValueError(f"most must be positive, got {most}")
        self.name = "addition"
        pairs = [(a, b) for a in range(most + 1) for b in range(most + 1)]
        self._splits: dict[str, list[Prompt]] = {"train": [], "test": []}
        for i in np.random.default_rng(seed).permutation(len(pairs)):
            a, b = pairs[i]
            question = f"What is {a} + {b}?" + (f" {suffix}" if suffix else "")
            split = "test" if held_out(test_share, self.name, f"{min(a, b)}+{max(a, b)}") else "train"
            self._splits[split].append(
                Prompt(
                    key=stable_key(question),
                    prompt=user_message(question) if chat else question,
                    answer=str(a + b),
                    data_source=self.name,
                )
            )

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of `train` or `test`."""
        check_split(self.name, split, tuple(self._splits))
        return self._splits[split]

    def score(self, prompt: Prompt, response: str) -> Score:
        """Reward 1 where the response's last number is the sum."""
        said = self.answer(prompt, response)
        if said is None:
            return Score(0.0, "no_answer")
        right = said == prompt.answer
        return Score(float(right), "ok" if right else "wrong")

    def answer(self, prompt: Prompt, response: str) -> str | None:
        """The response's last number, exactly."""
        numbers = _NUMBER.findall(response)
        if not numbers:
            return None
        said = numbers[-1].replace(",", "")
        return str(Fraction(said)) if len(said) < 40 else said
