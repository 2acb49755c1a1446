"""Does the verifier accept every gold answer of a data file? `python -m sppo.llm.tasks.check [TASK ...]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from sppo.llm.tasks.base import Prompt
from sppo.llm.tasks.files import BENCHMARKS, FileTask
from sppo.llm.tasks.registry import make_task


def rejected_golds(task: FileTask, prompts: Sequence[Prompt], form: str = "\\boxed{%s}") -> list[tuple[int, str, str]]:
    """(row, gold, reason) of the gold answers that are not accepted when written in this form."""
    responses = [f"The answer is {form % prompt.answer}" for prompt in prompts]
    scores = task.score_all(prompts, responses)
    return [(i, p.answer, s.reason) for i, (p, s) in enumerate(zip(prompts, scores, strict=True)) if s.reward < 1]


def main(names: Sequence[str]) -> None:
    """Print, for each task, how many rows load and what share of gold answers is accepted."""
    for name in names:
        try:
            task = make_task(name)
        except FileNotFoundError as error:
            print(f"{name:15s} not here: {error}")
            continue
        assert isinstance(task, FileTask)
        for split in ("train", "test") if len(task.files) > 1 else task.files:
            prompts = task.prompts("test" if split == "any" else split)
            for form in ("\\boxed{%s}", "#### %s") if name == "gsm8k" else ("\\boxed{%s}",):
                began = time.perf_counter()
                rejected = rejected_golds(task, prompts, form)
                took = time.perf_counter() - began
                share = 100 * (1 - len(rejected) / len(prompts))
                print(f"{name:15s} {split:5s} {form:10s} {len(prompts):6d} rows, {share:6.2f}% accepted, {took:.2f} s")
                for row, gold, reason in rejected:
                    print(f"    row {row}: {gold!r} {reason}")


if __name__ == "__main__":
    main(sys.argv[1:] or [*BENCHMARKS, "gsm8k"])
