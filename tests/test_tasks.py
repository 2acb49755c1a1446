"""Tasks: what they ask, how they score, and that they are the same in every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sppo.llm.tasks import Prompt, Score, Task, make_task, register_task, stable_key, task_names
from sppo.llm.tasks.arithmetic import ArithmeticTask, worked_steps


def test_arithmetic_steps_by_hand() -> None:
    # left to right; products first
    assert worked_steps("17+5-9+30=") == ["17+5=22", "22-9=13", "13+30=43"]
    assert worked_steps("2+3*4-20=") == ["3*4=12", "2+12=14", "14-20=-6"]
    assert worked_steps("1-9+3=") == ["1-9=-8", "-8+3=-5"]


def test_arithmetic_alphabet_and_answers() -> None:
    task = ArithmeticTask(operators="+-*", operands=(0, 12), train_size=300, test_size=100)
    generator = np.random.default_rng(0)
    assert len(task.alphabet) == len(set(task.alphabet)) <= 20
    for prompt in [*task.prompts("train"), *task.prompts("test")]:
        shown = task.demonstration(prompt, generator)
        assert set(prompt.text + shown) <= set(task.alphabet)
        # Python's own arithmetic is the referee
        assert int(prompt.answer) == eval(prompt.text.rstrip("="))
        assert task.score(prompt, shown) == Score(1.0, "ok")


def test_arithmetic_wrong_steps_are_carried_on() -> None:
    task = ArithmeticTask(terms=(5, 5), train_size=400, test_size=10)
    generator = np.random.default_rng(0)
    right = 0
    for prompt in task.prompts("train"):
        steps = task.demonstration(prompt, generator, p_wrong={"+": 0.2, "-": 0.2, "*": 0.2}).split(";")
        for before, after in zip(steps, steps[1:], strict=False):
            result = before.split("=")[1]
            assert after.startswith(result + "+") or after.startswith(result + "-")
        right += task.score(prompt, ";".join(steps)).reward
    # four steps, each right with 0.8: 0.8^4 = 0.41, plus the few slips that cancel
    assert 0.34 < right / 400 < 0.53


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ("22", (1.0, "ok")),
        ("17+5=22", (1.0, "ok")),
        ("17+5=21", (0.0, "wrong")),
        ("", (0.0, "no_answer")),
        ("17+5=", (0.0, "unparsable")),
        ("=2+2", (0.0, "unparsable")),
        ("=" + "2" * 5000, (0.0, "unparsable")),
        ("17+5=22;", (0.0, "unparsable")),
    ],
)
def test_arithmetic_scores(response: str, outcome: tuple[float, str]) -> None:
    prompt = Prompt(key=1, prompt="17+5=", answer="22")
    assert ArithmeticTask().score(prompt, response) == outcome


@pytest.mark.parametrize("seed", [0, 1])
def test_arithmetic_splits_never_mix(seed: int) -> None:
    task = ArithmeticTask(terms=(2, 3), operands=(0, 9), train_size=2000, test_size=100, seed=seed)
    other = ArithmeticTask(terms=(2, 3), operands=(0, 9), train_size=2000, test_size=100, seed=seed + 7)
    train = {p.text for p in [*task.prompts("train"), *other.prompts("train")]}
    test = {p.text for p in [*task.prompts("test"), *other.prompts("test")]}
    assert len({p.text for p in task.prompts("train")}) == 2000
    assert not train & test


def test_arithmetic_says_when_there_are_too_few_chains() -> None:
    with pytest.raises(ValueError, match="50 different chains for train cannot be found"):
        ArithmeticTask(terms=(2, 2), operands=(0, 3), operators="+", train_size=50).prompts("train")
    with pytest.raises(ValueError, match="operators must be some of"):
        ArithmeticTask(operators="/")
    with pytest.raises(ValueError, match="has the splits train, test, got 'dev'"):
        ArithmeticTask().prompts("dev")


def test_addition_holds_out_pairs() -> None:
    task = make_task("addition")
    train, test = task.prompts("train"), task.prompts("test")
    assert len(train) + len(test) == 21 * 21
    assert 0.1 < len(test) / 441 < 0.3
    pairs = [{tuple(sorted(int(n) for n in p.text[8:-1].split(" + "))) for p in split} for split in (train, test)]
    assert not pairs[0] & pairs[1]
    assert train[0].prompt == [{"role": "user", "content": train[0].text}]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("7", "ok"),
        ("The answer is 7.", "ok"),
        ("3 + 4 = 7", "ok"),
        ("**7**", "ok"),
        ("7.0", "ok"),
        ("3 + 4 = 8", "wrong"),
        ("-7", "wrong"),
        ("14-7", "ok"),
        ("70", "wrong"),
        ("", "no_answer"),
        ("seven", "no_answer"),
        ("7" * 9999, "wrong"),
    ],
)
def test_addition_scores(response: str, reason: str) -> None:
    prompt = Prompt(key=1, prompt="What is 3 + 4?", answer="7")
    assert make_task("addition").score(prompt, response) == (float(reason == "ok"), reason)


def test_built_in_tasks_are_tasks() -> None:
    for name in ("arithmetic", "addition"):
        task = make_task(name)
        assert isinstance(task, Task)
        prompts = task.prompts("test")
        keys = [p.key for p in prompts]
        assert len(set(keys)) == len(keys) and 0 <= min(keys) and max(keys) < 2**63
        assert [s.reason for s in task.score_all(prompts[:2], [prompts[0].answer, ""])] == ["ok", "no_answer"]


def test_prompts_are_the_same_in_every_run(tmp_path: Path) -> None:
    code = "from sppo.llm.tasks import *; print([p.key for n in ('arithmetic', 'addition')"
    code += " for p in make_task(n).prompts('test')])"
    runs = [
        subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=tmp_path)
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    # a key is in saved runs: it must not change with the code
    assert stable_key("17+5=") == stable_key("17+5=") != stable_key("17+5", "=")


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'arithmetik'; did you mean 'arithmetic'\?"):
        make_task("arithmetik")
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'term'; its options are terms, operands"):
        make_task("arithmetic", term=3)
    assert {"gsm8k", "aime25", "minerva", "deepscaler", "reasoning_gym:NAME"} <= set(task_names())
    with pytest.raises(ValueError, match="already"):
        register_task("addition", ArithmeticTask)


def test_importing_the_tasks_is_light(tmp_path: Path) -> None:
    heavy = ("torch", "pyarrow", "reasoning_gym", "math_verify", "sympy", "transformers")
    code = f"import sys, sppo.llm.tasks; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True).strip() == "[]"
