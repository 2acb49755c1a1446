"""Evaluation: the estimators by hand and by enumeration, and `sppo eval` end to end on the model that ships."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
pytest.importorskip("pyarrow", reason="needs the extra sppo[data]")

import pyarrow.parquet as parquet
from fake_text import toy_policy

from sppo.experiments import evaluate, scores
from sppo.experiments.asking import respond
from sppo.experiments.evaluate import Eval
from sppo.experiments.tasks import task as about_task
from sppo.llm.engine_hf import HFEngine
from sppo.llm.tasks import Prompt, Score, TaskBase, make_task

FIXTURES = Path(__file__).parent / "fixtures"


def test_pass_at_k_by_hand() -> None:
    # n = 4, c = 1: of the six pairs, three hold the right one; c = 3: no pair is all wrong
    assert scores.pass_at_k(np.array([0, 1, 3, 4]), 4, 2).tolist() == pytest.approx([0, 1 / 2, 1, 1])
    # n = 5, c = 2, k = 2: 3 of the 10 pairs are all wrong
    assert scores.pass_at_k(np.array([2]), 5, 2)[0] == pytest.approx(0.7)
    assert scores.pass_at_k(np.array([2]), 5, 1)[0] == pytest.approx(0.4)
    for k in (0, 6):
        with pytest.raises(ValueError, match=r"1..n = 1..5"):
            scores.pass_at_k(np.array([2]), 5, k)
    with pytest.raises(ValueError, match="successes must be in 0..n"):
        scores.pass_at_k(np.array([6]), 5, 1)


def test_majority_by_hand() -> None:
    # a a b, a right. One: 2/3. Pairs aa ab ab: 1, 1/2, 1/2 (a tie is worth half). All three: a.
    assert scores.majority_at_k(["a", "a", "b"], [1, 1, 0]).tolist() == pytest.approx([2 / 3, 2 / 3, 1])
    # Silence does not vote: in the pairs a- a- -- the one answer wins, and with none nothing is won.
    assert scores.majority_at_k(["a", None, None], [1, 0, 0]).tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    # A three-way tie of which one is right.
    assert scores.majority_at_k(["a", "b", "c"], [1, 0, 0]).tolist() == pytest.approx([1 / 3] * 3)
    assert scores.majority_at_k([None, None], [0, 0]).tolist() == [0, 0]
    # One answer scored 1 once and 0 once (a verifier's time-out) is worth a half.
    assert scores.majority_at_k(["a", "a"], [1, 0]).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="as many"):
        scores.majority_at_k(["a"], [1, 0])


def test_majority_is_the_mean_over_all_subsets(rng: np.random.Generator) -> None:
    worth = {"a": 1.0, "b": 0.0, "c": 0.25, "d": 0.0, None: 0.0}
    for _ in range(30):
        answers = rng.choice(np.array(["a", "b", "c", "d", None], object), 8).tolist()
        found = scores.majority_at_k(answers, [worth[a] for a in answers])
        for k in range(1, 9):
            won = []
            for chosen in combinations(answers, k):
                votes = {a: chosen.count(a) for a in chosen if a is not None}
                winners = [worth[a] for a, count in votes.items() if count == max(votes.values())]
                won.append(np.mean(winners) if winners else 0.0)
            assert found[k - 1] == pytest.approx(np.mean(won))


def rows_of(rewards: list[list[float]]) -> list[dict]:
    return [
        {
            "key": key,
            "answer": str(reward),
            "reward": reward,
            "reason": "ok" if reward else "wrong",
            "tokens": 3 + key,
            "stopped": key == 0,
            "budget": 8 - key,
            "data_source": "xy"[key % 2],
        }
        for key, some in enumerate(rewards)
        for reward in some
    ]


def test_a_summary_by_hand() -> None:
    found = scores.summarise(rows_of([[1, 1, 0, 1], [0, 0, 0, 1]]), 8)
    assert list(found["scores"]) == ["avg@4", *(f"{name}@{k}" for name in ("pass", "maj") for k in (1, 2, 4))]
    estimates = {name: interval[0] for name, interval in found["scores"].items()}
    # 3/4 and 1/4; at most one wrong in the first: every pair passes; in the second 3 of 6 pairs hold the right one
    assert estimates["avg@4"] == estimates["pass@1"] == estimates["maj@1"] == 0.5
    assert estimates["pass@2"] == pytest.approx((1 + 0.5) / 2)
    assert (estimates["pass@4"], estimates["maj@4"]) == (1.0, 0.5)
    # Two prompts, 0.75 and 0.25: replicates are 0.25, 0.5, 0.75 with chances 1/4, 1/2, 1/4.
    assert tuple(found["scores"]["avg@4"]) == (0.5, 0.25, 0.75)
    assert (found["prompts"], found["responses"], found["tokens"], found["cut"]) == (2, 8, 3.5, 0.5)
    assert found["prompts_with_less_room"] == 1
    assert found["reasons"] == {"ok": 0.5, "wrong": 0.5}
    assert found["data_sources"] == {"x": 0.75, "y": 0.25}
    with pytest.raises(ValueError, match=r"as many responses, got \[1, 2\]"):
        scores.summarise(rows_of([[1], [0, 0]]), 8)


def test_tasks_weigh_the_same_in_their_mean() -> None:
    # 1.0 of one prompt and 0.25 of four: 0.625, not 2/5. Only the second varies, between 0 and 1.
    mean, low, high = scores.mean_of_tasks([rows_of([[1]]), rows_of([[1], [0], [0], [0]])])
    assert mean == 0.625
    assert 0.5 <= low < mean < high <= 1


class Echo(TaskBase):
    name = "echo"

    def score(self, prompt: Prompt, response: str) -> Score:
        return Score(float(len(response) % 2), "odd" if len(response) % 2 else "even")


def test_a_prompt_beyond_the_context_is_counted_and_the_rest_goes_on() -> None:
    policy = toy_policy()  # a context of 512 tokens
    prompts = [Prompt(key=i, prompt="a" * length, answer="7") for i, length in enumerate((600, 5, 509))]
    rows = respond(
        policy,
        HFEngine(policy),
        Echo(),
        prompts,
        n=3,
        max_completion_length=6,
        greedy=False,
        generator=np.random.default_rng(0),
    )
    assert [(row["key"], row["sample"]) for row in rows] == [(key, i) for key in range(3) for i in range(3)]
    assert [row["budget"] for row in rows[::3]] == [0, 6, 3]
    assert {(row["reason"], row["reward"], row["answer"]) for row in rows[:3]} == {("too_long_prompt", 0.0, None)}
    for row in rows[3:]:
        assert row["tokens"] <= row["budget"] and (row["stopped"] or row["tokens"] == row["budget"])
        assert row["reward"] == len(row["response"]) % 2
    summary = scores.summarise(rows, 6)
    assert summary["reasons"]["too_long_prompt"] == pytest.approx(1 / 3)
    assert summary["prompts_with_less_room"] == 1


@pytest.mark.parametrize(
    ("task", "same", "other"),
    [
        ("arithmetic", ["1+2=3", "03"], ["", "1+2=", "4"]),
        ("addition", ["It is 1,000", "1000.0"], ["none", "1001"]),
        (
            str(FIXTURES / "verl.parquet"),
            ["\\boxed{\\frac{1}{2}}", "\\boxed{0.5}", "\\boxed{x = 1/2}", "\\boxed{$.50$}"],
            ["0.5", "\\boxed{50\\%}", "\\boxed{}", "\\boxed{" + "5" * 5000 + "}"],
        ),
        (str(FIXTURES / "verl.parquet"), ["\\boxed{\\text{East}}", "\\boxed{east.}"], ["\\boxed{\\text{west}}"]),
        (str(FIXTURES / "gsm8k.jsonl"), ["#### 7", "\\boxed{7} ", "#### 7 dollars"], ["7", "#### 8"]),
    ],
)
def test_answers_that_vote_together(task: str, same: list[str], other: list[str]) -> None:
    if task.startswith(str(FIXTURES)):
        pytest.importorskip("math_verify")
    made = make_task(task)
    prompt = made.prompts("train")[0]
    votes = [made.answer(prompt, response) for response in same]
    assert None not in votes and len(set(votes)) == 1
    assert votes[0] not in [made.answer(prompt, response) for response in other]


def command(out: Path, **options) -> Eval:
    return Eval(**{"prompts": 6, "n": 4, "batch_size": 8, "out": out, **options})


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(tmp_path / "a")()
    table = parquet.read_table(tmp_path / "a/arithmetic/responses.parquet").to_pylist()
    assert len(table) == 24 and [row["sample"] for row in table] == [0, 1, 2, 3] * 6
    task = make_task("arithmetic", **about_task("text/arithmetic").env_kwargs)
    for prompt, row in zip(task.prompts("test"), table[::4], strict=False):
        assert (row["key"], row["prompt"], row["gold"]) == (prompt.key, prompt.text, prompt.answer)
        assert task.score(prompt, row["response"]) == (row["reward"], row["reason"])
    summary = json.loads((tmp_path / "a/summary.json").read_text())["tasks"]["arithmetic"]
    assert summary["scores"]["avg@4"][0] == pytest.approx(np.mean([row["reward"] for row in table]))
    assert 0 < summary["scores"]["avg@4"][0] < 1
    assert "| arithmetic | 6 " in (tmp_path / "a/summary.md").read_text()
    assert "avg@4" in capsys.readouterr().out
    # The same seed gives the same responses.
    command(tmp_path / "b")()
    assert parquet.read_table(tmp_path / "b/arithmetic/responses.parquet").to_pylist() == table


def test_stopped_and_resumed_equals_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path / "whole")()
    calls = []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return respond(*args, **kwargs)

    monkeypatch.setattr(evaluate, "respond", stops)
    with pytest.raises(KeyboardInterrupt):
        command(tmp_path / "cut")()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="--resume"):
        command(tmp_path / "cut")()
    with pytest.raises(ValueError, match=r"another evaluation: temperature 0.6 there, 1.0 here"):
        command(tmp_path / "cut", resume=True, temperature=1.0)()
    assert len(list((tmp_path / "cut/arithmetic/parts").iterdir())) == 2
    command(tmp_path / "cut", resume=True)()
    whole, cut = (parquet.read_table(tmp_path / f"{x}/arithmetic/responses.parquet") for x in ("whole", "cut"))
    assert whole.equals(cut)
    assert not (tmp_path / "cut/arithmetic/parts").exists()


def test_greedy_is_one_response(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n must be .* got 4"):
        command(tmp_path, greedy=True)()
    command(tmp_path, greedy=True, n=None)()
    assert parquet.read_table(tmp_path / "arithmetic/responses.parquet").num_rows == 6


def test_files_are_looked_for_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_DATA", str(tmp_path))
    monkeypatch.setattr(Eval, "_load", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(FileNotFoundError, match="aime25.*SPPO_DATA"):
        command(tmp_path / "out", task=("arithmetic", "aime25"), model="arithmetic")()
    with pytest.raises(ValueError, match="unknown task 'arithmetik'"):
        command(tmp_path / "out", task=("arithmetik",))()
    with pytest.raises(ValueError, match="splits train, test, got 'dev'"):
        command(tmp_path / "out", split="dev")()
    with pytest.raises(ValueError, match="unknown model 'arithmetc'"):
        command(tmp_path / "out", model="arithmetc")()
    assert not (tmp_path / "out").exists()


def test_a_problem_that_stands_twice_is_one_prompt(tmp_path: Path) -> None:
    file = tmp_path / "twice.jsonl"
    lines = [json.dumps({"prompt": f"{a}+2=", "answer": str(a + 2)}) for a in (1, 1, 3, 1)]
    file.write_text("\n".join(lines))
    pytest.importorskip("math_verify")
    options = {"chat": "false", "suffix": ""}
    command(tmp_path / "out", task=(str(file),), task_options=options, max_completion_length=8, n=2)()
    (summary,) = json.loads((tmp_path / "out/summary.json").read_text())["tasks"].values()
    assert (summary["prompts"], summary["responses"], summary["repetitions_left_out"]) == (2, 4, 2)
