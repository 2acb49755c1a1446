"""Chained integer arithmetic at character level: `17+5-9=` answered by worked steps, `17+5=22;22-9=13`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from sppo.llm.tasks.base import Prompt, Score, TaskBase, check_split, held_out, stable_key

SLIPS = (-10, -2, -1, 1, 2, 10)
"""Of a hand: a neighbouring number, a carry."""
_INTEGER = re.compile(r"-?[0-9]{1,18}")


class ArithmeticTask(TaskBase):
    """Evaluate a chain of integers, products first; the outcome is the integer after the response's last `=`.

    A chain belongs to the test split by its hash, so no seed or size ever mixes the two.

    Args:
        terms: fewest and most operands of a chain.
        operands: smallest and greatest operand, not negative.
        operators: some of `+-*`, drawn with equal chances.
        train_size, test_size: prompts of the splits.
        test_share: of all chains.
        seed: of the chains drawn.
    """

    alphabet = "0123456789+-*=;"
    """Every character of prompts and demonstrations; the stop token comes on top."""
    step_separator = ";"

    def __init__(
        self,
        *,
        terms: tuple[int, int] = (3, 5),
        operands: tuple[int, int] = (1, 99),
        operators: str = "+-",
        train_size: int = 20_000,
        test_size: int = 512,
        test_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not 2 <= terms[0] <= terms[1]:
            raise ValueError(f"terms must be (fewest, most) with at least 2, got {terms}")
        if not 0 <= operands[0] <= operands[1]:
            raise ValueError(f"operands must be (smallest, greatest), not negative, got {operands}")
        if not operators or set(operators) - set("+-*"):
            raise ValueError(f"operators must be some of + - *, got {operators!r}")
        if not 0 < test_share < 1:
            raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
        self.name = "arithmetic"
        self.terms, self.operands, self.operators, self.seed = terms, operands, operators, seed
        self.sizes, self.test_share = {"train": train_size, "test": test_size}, test_share

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of `train` or `test`."""
        check_split(self.name, split, ("train", "test"))
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        # Two streams, so that the size of one split does not change the other.
        return {split: self._draw(split, np.random.default_rng([self.seed, i])) for i, split in enumerate(self.sizes)}

    def _draw(self, split: str, generator: np.random.Generator) -> list[Prompt]:
        found: dict[str, Prompt] = {}
        misses = 0
        while len(found) < self.sizes[split]:
            n = int(generator.integers(self.terms[0], self.terms[1] + 1))
            numbers = generator.integers(self.operands[0], self.operands[1] + 1, n).tolist()
            chosen = generator.integers(len(self.operators), size=n - 1).tolist()
            signs = [*(self.operators[i] for i in chosen), "="]
            text = "".join(f"{number}{sign}" for number, sign in zip(numbers, signs, strict=True))
            if text in found or held_out(self.test_share, text) != (split == "test"):
                misses += 1
                if misses > 1000 + 100 * self.sizes[split]:
                    raise ValueError(
                        f"{self.sizes[split]} different chains for {split} cannot be found among terms {self.terms}, "
                        f"operands {self.operands}, operators {self.operators!r}; found {len(found)}"
                    )
                continue
            answer = worked_steps(text)[-1].split("=")[1]
            found[text] = Prompt(key=stable_key(text), prompt=text, answer=answer, data_source=self.name)
        return list(found.values())

    def score(self, prompt: Prompt, response: str) -> Score:
        """Reward 1 where the integer after the last `=` (or the whole response) is the answer."""
        if not response.strip():
            return Score(0.0, "no_answer")
        said = self.answer(prompt, response)
        if said is None:
            return Score(0.0, "unparsable")
        right = said == prompt.answer
        return Score(float(right), "ok" if right else "wrong")

    def answer(self, prompt: Prompt, response: str) -> str | None:
        """The integer after the last `=`, without leading zeros."""
        said = response.rsplit("=", 1)[-1].strip()
        return str(int(said)) if _INTEGER.fullmatch(said) else None

    def demonstration(
        self,
        prompt: Prompt,
        generator: np.random.Generator,
        p_wrong: Mapping[str, float] | None = None,
        slips: Sequence[int] = SLIPS,
    ) -> str:
        """Worked steps, without the stop token.

        Args:
            p_wrong: operator -> chance of each of its steps to come out wrong; what follows builds on the wrong value.
                A model that is trained on such steps has the skill, and room for reinforcement learning.
            slips: what a wrong step is off by.
        """

        def result(right: int, sign: str) -> int:
            if generator.random() >= (p_wrong or {}).get(sign, 0.0):
                return right
            return right + int(generator.choice(slips))

        assert isinstance(prompt.prompt, str)
        return self.step_separator.join(worked_steps(prompt.prompt, result))


def worked_steps(chain: str, result=lambda right, sign: right) -> list[str]:
    """The steps that evaluate `a+b*c=`, each `a+b=c`: products first, else from the left.

    Args:
        result: what a step with this right value and operator gives.
    """
    tokens = re.findall(r"[0-9]+|[+\-*]", chain.rstrip("="))
    numbers, signs = [int(t) for t in tokens[::2]], tokens[1::2]
    steps = []
    while signs:
        at = signs.index("*") if "*" in signs else 0
        a, sign, b = numbers[at], signs.pop(at), numbers.pop(at + 1)
        right = {"+": a + b, "-": a - b, "*": a * b}[sign]
        numbers[at] = result(right, sign)
        steps.append(f"{a}{sign}{b}={numbers[at]}")
    return steps
