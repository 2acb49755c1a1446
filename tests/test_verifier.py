"""The verifier: right answers, hostile ones, and processes that die."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("math_verify")

from sppo.llm.tasks import Score
from sppo.llm.verifier import REASONS, Verifier
from sppo.llm.verifier_pool import Pool

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
from answers import HOSTILE, RIGHT

sys.path.pop(0)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    made = Verifier(workers=2, seconds=3.0)
    yield made
    made.close()


def box(answer: str) -> str:
    return f"So it is \\boxed{{{answer}}}."


def reason(verifier: Verifier, gold: str, answer: str) -> str:
    return verifier.verify(box(answer), gold).reason


def test_right_answers(verifier: Verifier) -> None:
    scores = verifier.verify_all([box(a) for _, a in RIGHT], [g for g, _ in RIGHT])
    assert [pair for pair, score in zip(RIGHT, scores, strict=True) if score != (1.0, "ok")] == []


def test_hostile_answers(verifier: Verifier) -> None:
    """No wrong accept, within a bounded time: at most the limit (and a restart) for each, on every worker at once."""
    assert len(HOSTILE) >= 60
    began = time.perf_counter()
    scores = verifier.verify_all([box(a) for _, a in HOSTILE], [g for g, _ in HOSTILE])
    took = time.perf_counter() - began
    assert [pair for pair, score in zip(HOSTILE, scores, strict=True) if score.reward > 0] == []
    assert {score.reason for score in scores} <= set(REASONS) - {"ok", "bad_gold"}
    assert {"wrong", "unparsable", "unevaluated", "too_long", "timeout"} <= {score.reason for score in scores}
    # About eight of them never end. Generous: the machine may be busy with other things.
    assert took < 60


@pytest.mark.parametrize(
    ("gold", "answer", "told"),
    [
        ("5", "6=5", "wrong"),
        ("5", "2+3=5", "ok"),
        ("5", "2+3", "unevaluated"),
        ("5", "x=6=5", "wrong"),
        ("x=5", "y=5", "wrong"),
        (r"50\%", "50", "ok"),
        (r"50\%", "0.5", "ok"),
        (r"50\%", "1/2", "ok"),
        (r"50\%", "5", "wrong"),
        ("50", r"50\%", "ok"),
        ("50", "0.5", "wrong"),
        ("0.5", r"50\%", "ok"),
        ("0.5", r"0.5\%", "wrong"),
        (r"\frac13", "0.333333", "wrong"),
        ("5050", r"\sum_{k=1}^{100} k", "unevaluated"),
        (r"\sum_{k=1}^{n} k", r"\sum_{k=1}^{n} k", "ok"),
        ("5t", "5", "wrong"),
        ("5", "5t", "wrong"),
        ("5", "5 7", "unparsable"),
        ("5", "(" * 300 + "5" + ")" * 300, "too_long"),
        ("5", "(" * 150 + "x" + ")" * 150, "unparsable"),
        ("5", r"\{" + ",".join(map(str, range(3000))) + r"\}", "too_long"),
        ("5", " ", "no_answer"),
    ],
)
def test_decisions(verifier: Verifier, gold: str, answer: str, told: str) -> None:
    assert reason(verifier, gold, answer) == told


def test_only_the_last_box_counts(verifier: Verifier) -> None:
    assert verifier.verify(r"\boxed{5} \boxed{7}", "5") == Score(0.0, "wrong")
    assert verifier.verify(r"\boxed{5} \boxed{7}", "7") == Score(1.0, "ok")
    assert verifier.verify(r"\boxed{1} or \boxed{-2}", "1,-2") == Score(0.0, "wrong")


def test_every_response_gets_a_reason() -> None:
    verifier = Verifier(workers=1)
    responses = ["", "5", r"\boxed{", r"\boxed{}", r"\boxed{5}", r"\boxed{6}", "\x00\ud800\\boxed{5}", "x" * 10**6]
    scores = verifier.verify_all(responses, ["5"] * len(responses))
    assert [s.reason for s in scores] == ["no_answer"] * 4 + ["ok", "wrong", "ok", "no_answer"]
    assert verifier.counts == {"no_answer": 5, "ok": 2, "wrong": 1}
    # numbers need no process
    assert all(worker.process is None for worker in verifier.pool.workers)
    with pytest.raises(ValueError, match="zip"):
        verifier.verify_all(["a", "b"], ["5"])


def test_one_that_never_ends_costs_the_others_nothing() -> None:
    verifier = Verifier(workers=1, seconds=1.0)
    answers = [r"\sqrt{16}", r"2^{2^{2^{2^{2^{2}}}}}\pi", r"\sqrt{25}", r"\sqrt{9}"]
    began = time.perf_counter()
    scores = verifier.verify_all([box(a) for a in answers], ["4", r"\pi", "5", "4"])
    assert [s.reason for s in scores] == ["ok", "timeout", "ok", "wrong"]
    assert time.perf_counter() - began < 30
    verifier.close()


def test_after_a_worker_was_killed() -> None:
    verifier = Verifier(workers=1)
    assert reason(verifier, "5", r"\sqrt{25}") == "ok"
    process = verifier.pool.workers[0].process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    answers = [rf"\sqrt{{{n * n}}}" for n in range(2, 8)]
    scores = verifier.verify_all([box(a) for a in answers], [str(n) for n in range(2, 8)])
    assert [s.reason for s in scores] == ["ok"] * 6
    verifier.close()
    assert reason(verifier, "4", r"\sqrt[3]{64}") == "ok"  # closed, and started anew
    verifier.close()


def test_a_worker_killed_while_it_works_gets_a_second_try() -> None:
    pool = Pool(workers=1, seconds=20.0, warm_up=("sleep", (0.0,)))
    replies: list[str] = []
    thread = threading.Thread(target=lambda: replies.append(pool.ask("sleep", 1.0).status))
    thread.start()

    def kill() -> int:
        until = time.monotonic() + 15
        while (process := pool.workers[0].process) is None and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.4)
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        return process.pid

    killed = kill()
    thread.join(30)
    assert replies == ["ok"]
    assert pool.workers[0].process is not None and pool.workers[0].process.pid != killed
    pool.close()


def test_a_job_that_kills_its_worker_is_told_from_one_that_fails() -> None:
    pool = Pool(workers=1, seconds=20.0)
    assert pool.ask("die").status == "died"
    assert pool.ask("sleep", "long").status == "error"
    assert pool.ask("sleep", 0.0).status == "ok"
    pool.close()
    with pytest.raises(RuntimeError, match="could not start: error"):
        Pool(workers=1, warm_up=("sleep", ("long",))).ask("sleep", 0.0)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        Pool(workers=0)


def test_from_many_threads(verifier: Verifier) -> None:
    results: dict[int, list[str]] = {}

    def work(n: int) -> None:
        scores = verifier.verify_all([box(rf"\sqrt{{{n * n}}}"), box(rf"\sqrt{{{n}}}\pi")], [str(n), "3"])
        results[n] = [s.reason for s in scores]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(50, 58)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {n: ["ok", "wrong"] for n in range(50, 58)}


def test_workers_load_no_torch_and_nothing_of_ours(verifier: Verifier) -> None:
    assert reason(verifier, "12", r"\sqrt{144}") == "ok"
    loaded = verifier.pool.ask("modules").result
    assert "math_verify" in loaded
    assert not {"torch", "transformers", "sppo"} & set(loaded)


def test_reasoning_gym_tasks() -> None:
    pytest.importorskip("reasoning_gym")
    from sppo.llm.tasks import make_task

    task = make_task("reasoning_gym:countdown", train_size=20, test_size=5)
    train, test = task.prompts("train"), task.prompts("test")
    assert not {p.key for p in train} & {p.key for p in test} and len(test) == 5
    assert [m["role"] for m in train[0].prompt] == ["system", "user"]
    tagged = [f"<think>8 <answer>0</answer></think><answer>{train[0].answer}</answer>", train[0].answer, ""]
    assert task.score_all(train[:1] * 3, tagged) == [(1.0, "ok"), (0.0, "no_answer"), (0.0, "no_answer")]
    binary = make_task("reasoning_gym:countdown", train_size=20, test_size=5, binary=True)
    assert task.score(train[0], "<answer>1</answer>").reason == binary.score(train[0], "<answer>1</answer>").reason
    assert binary.score(train[0], "<answer>1</answer>").reward == 0
    with pytest.raises(ValueError, match="dataset 'knight_knaves'; did you mean 'knights_knaves'"):
        make_task("reasoning_gym:knight_knaves")
    with pytest.raises(ValueError, match="reasoning_gym:countdown does not take the options"):
        make_task("reasoning_gym:countdown", colour="red")


def test_demonstrations_of_reasoning_gym() -> None:
    """Right unless they slip, and of letters of the task's alphabet; a slip hits the right one of k by chance:
    1 - p + p / k of the letters stay, 0.7 + 0.3 / 44 = 0.71 with the 44 of these words."""
    pytest.importorskip("reasoning_gym")
    from sppo.llm.tasks import make_task

    task = make_task("reasoning_gym:spell_backward", train_size=400, test_size=5, system="", chat=False)
    prompts, rng = task.prompts("train"), np.random.default_rng(0)
    shown = [task.demonstration(prompt, rng) for prompt in prompts]
    assert prompts[0].prompt.startswith("Spell this word backward") and set(prompts[0].prompt) <= set(task.alphabet)
    assert task.score_all(prompts[:3], shown[:3]) == [(1.0, "ok")] * 3
    slipped = [task.demonstration(prompt, rng, p_slip=0.3) for prompt in prompts]
    letters = [
        a == b for p, said in zip(prompts, slipped, strict=True) for a, b in zip(p.answer, said[8:], strict=False)
    ]
    assert all(len(said) == len(own) for said, own in zip(slipped, shown, strict=True))
    assert len(letters) > 2000 and np.mean(letters) == pytest.approx(0.71, abs=0.04)
    assert set("".join(slipped)) <= set(task.alphabet) and len(task.alphabet) == len(set(task.alphabet))


@pytest.mark.slow
def test_every_reasoning_gym_dataset() -> None:
    """Each is drawn, and scores its own answer fully where it gives one."""
    pytest.importorskip("reasoning_gym")
    from sppo.llm.tasks import make_task
    from sppo.llm.tasks.reasoning import dataset_names

    assert len(dataset_names()) > 100
    for name in dataset_names():
        options = {"datasets": [{"name": "leg_counting"}]} if name == "composite" else {}
        task = make_task(f"reasoning_gym:{name}", train_size=3, test_size=2, **options)
        prompts = [p for p in task.prompts("test") if p.answer != "None"]
        scores = task.score_all(prompts, [f"<answer>{p.answer}</answer>" for p in prompts])
        assert all(s == (1.0, "ok") for s in scores), (name, scores)
        assert {s.reward for s in task.score_all(prompts, [""] * len(prompts))} <= {0.0}
