"""Data files of every schema, users' reward functions, and what is said when a file does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sppo.llm.tasks import BOXED_SUFFIX, make_task
from sppo.llm.tasks.files import BENCHMARKS, FileTask, with_suffix
from sppo.llm.tasks.rows import data_folder

pytest.importorskip("pyarrow")
pytest.importorskip("math_verify")

FIXTURES = Path(__file__).parent / "fixtures"
REAL = {"dapo-math-17k": 17398, "math500": 500, "amc23": 40, "aime24": 240}


def boxed(task, prompts, form="\\boxed{%s}"):
    return [score.reason for score in task.score_all(prompts, [form % p.answer for p in prompts])]


@pytest.mark.parametrize("name", ["verl", "verl_misspelt"])
def test_verl_parquet(name: str) -> None:
    task = make_task(str(FIXTURES / f"{name}.parquet"))
    prompts = task.prompts("train")
    assert len(prompts) == 6
    # the prompt is complete: nothing is added
    assert prompts[0].prompt == [{"role": "user", "content": f"Compute $2+3$. {BOXED_SUFFIX}"}]
    assert (prompts[0].answer, prompts[0].data_source) == ("5", "math_synthetic")
    assert prompts[0].extra["ability"] == "math" and prompts[3].extra["extra_info"] == {"index": 3}
    assert boxed(task, prompts) == ["ok"] * 6
    assert boxed(task, prompts, "#### %s") == ["no_answer"] * 6


def test_gsm8k_takes_boxes_and_hashes() -> None:
    task = make_task("gsm8k", path=str(FIXTURES / "gsm8k.jsonl"))
    prompts = task.prompts("train")
    assert [p.answer for p in prompts] == ["7", "1,234"]
    assert prompts[0].text.endswith(f"How many? {BOXED_SUFFIX}")
    assert boxed(task, prompts) == boxed(task, prompts, "so\n#### %s") == ["ok", "ok"]
    # the later of the two counts
    assert task.score(prompts[0], "\\boxed{7} #### 8").reason == "wrong"
    assert task.score(prompts[0], "#### 8\n\\boxed{7}").reason == "ok"
    assert task.score(prompts[1], "#### $1234").reason == "ok"


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_columns(suffix: str) -> None:
    task = make_task(str(FIXTURES / f"columns.{suffix}"), chat=False, suffix="Box it.")
    prompts = task.prompts("test")
    assert [p.answer for p in prompts] == ["42", "0.25"]
    assert isinstance(prompts[0].prompt, str) and prompts[0].prompt.endswith(" Box it.")
    assert [int(p.extra["level"]) for p in prompts] == [1, 2]
    assert [s.reason for s in task.score_all(prompts, ["\\boxed{42}", "\\boxed{\\frac14}"])] == ["ok", "ok"]


def test_named_columns_and_worked_solutions(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"q": "Two?", "worked": "It is \\\\boxed{2}.", "n": 1}\n')
    (prompt,) = make_task("columns", path=str(file), prompt="q", answer="worked").prompts("train")
    assert prompt.answer == "2" and prompt.extra["worked"] == "It is \\boxed{2}."
    with pytest.raises(ValueError, match="row 0 does not fit the schema columns: no answer column a; it has q, worked"):
        make_task("columns", path=str(file), prompt="q", answer="a").prompts("train")
    with pytest.raises(ValueError, match="no prompt column prompt or question or"):
        make_task("columns", path=str(file)).prompts("train")


def test_several_answers_of_which_any_is_right(tmp_path: Path) -> None:
    file = tmp_path / "any.jsonl"
    file.write_text('{"prompt": "A root of x^2 = 4?", "answer": ["2", "-2"]}\n')
    task = make_task(str(file))
    (prompt,) = task.prompts("train")
    scores = task.score_all([prompt] * 3, ["\\boxed{-2}", "\\boxed{2}", "\\boxed{3}"])
    assert [s.reason for s in scores] == ["ok", "ok", "wrong"]


def test_suffix_is_added_once() -> None:
    once = with_suffix("Two?", BOXED_SUFFIX)
    assert once == f"Two? {BOXED_SUFFIX}" == with_suffix(once, BOXED_SUFFIX)
    chat = [{"role": "system", "content": "Hi."}, {"role": "user", "content": "Two?"}]
    assert with_suffix(chat, "Box.")[-1]["content"] == "Two? Box." and chat[-1]["content"] == "Two?"


def test_held_out_share_of_one_file(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(f'{{"prompt": "{i} + 1?", "answer": {i + 1}}}\n' for i in range(400)))
    task = make_task(str(file), test_share=0.25)
    train, test = task.prompts("train"), task.prompts("test")
    assert len(train) + len(test) == 400 and 70 < len(test) < 130
    assert not {p.key for p in train} & {p.key for p in test}
    assert len(make_task(str(file)).prompts("test")) == 400


def test_repetitions_share_a_key(tmp_path: Path) -> None:
    file = tmp_path / "twice.jsonl"
    file.write_text('{"prompt": "1 + 1?", "answer": "2"}\n' * 3)
    assert len({p.key for p in make_task(str(file)).prompts("test")}) == 1
    assert len(make_task(str(file), unique=True).prompts("test")) == 1


def test_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, content: bytes, **options):
        (tmp_path / name).write_bytes(content)
        return make_task(str(tmp_path / name), **options).prompts("train")

    with pytest.raises(ValueError, match=r"empty\.jsonl is empty: it has no rows"):
        load("empty.jsonl", b"")
    with pytest.raises(ValueError, match=r"empty\.json is empty"):
        load("empty.json", b"")
    with pytest.raises(ValueError, match=r"empty\.csv is empty"):
        load("empty.csv", b"prompt,answer\n")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be read as parquet"):
        load("bad.parquet", b"PAR1 not really")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: not JSON"):
        load("bad.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt"\n')
    with pytest.raises(ValueError, match="a row must be an object with named columns, got int"):
        load("list.json", b"[1, 2]")
    with pytest.raises(ValueError, match="the prompt is empty"):
        load("blank.jsonl", b'{"prompt": " ", "answer": "b"}\n')
    with pytest.raises(FileNotFoundError, match=r"no data file .*nowhere\.jsonl"):
        make_task(str(tmp_path / "nowhere.jsonl")).prompts("train")
    with pytest.raises(ValueError, match="schema must be one of verl, gsm8k, columns"):
        make_task(str(tmp_path / "list.json"), schema="other")
    monkeypatch.setenv("SPPO_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no aime25-x8.parquet or .* in .*\(\$SPPO_DATA = "):
        make_task("aime25")


def test_rows_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    file = str(FIXTURES / "verl_missing.parquet")
    with pytest.raises(
        ValueError, match=r"2 rows have no gold answer \(reward_model.ground_truth\), the first is row 1"
    ):
        make_task(file).prompts("train")
    assert [p.answer for p in make_task(file, skip_missing=True).prompts("train")] == ["1"]
    assert "left out" in caplog.text


def test_benchmarks_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_DATA", str(tmp_path))
    for name, (split, files) in BENCHMARKS.items():
        (tmp_path / files[0]).write_bytes((FIXTURES / "verl.parquet").read_bytes())
        task = make_task(name)
        assert len(task.prompts(split)) == 6
        with pytest.raises(ValueError, match=f"task {name} has the splits {split}, got"):
            task.prompts("test" if split == "train" else "train")
    assert len(make_task("dapo-math-17k", test_share=0.5).prompts("test")) < 6


def test_reward_functions_of_users() -> None:
    rewards = FIXTURES / "rewards.py"
    task = make_task(str(FIXTURES / "columns.json"), reward=f"{rewards}:shout")
    prompts = task.prompts("train")
    assert prompts[0].text == "Compute $7\\cdot 6$."  # no instruction to box
    assert task.score_all(prompts, ["YES", "YES"]) == [(1.0, "ok"), (0.0, "no_reward")]
    assert task.score(prompts[0], "no") == (0.0, "wrong")
    task = make_task(str(FIXTURES / "columns.json"), reward=f"{rewards}:contains", chat=False)
    assert [s.reward for s in task.score_all(prompts, ["it is 42", "42"])] == [1.0, 0.0]
    task = make_task("arithmetic", reward=f"{rewards}:compute_score")
    prompt = task.prompts("test")[0]
    assert task.score_all([prompt] * 2, [prompt.answer, "?"]) == [(0.5, "partial"), (0.0, "wrong")]
    task = make_task("addition", reward=lambda prompts, completions, **columns: [float("nan")] * len(prompts))
    assert task.score(task.prompts("test")[0], "") == (0.0, "not_finite")


def test_reward_functions_that_do_not_fit() -> None:
    rewards = FIXTURES / "rewards.py"
    with pytest.raises(ValueError, match="a reward function takes .* got .text."):
        make_task("addition", reward=f"{rewards}:neither")
    with pytest.raises(ValueError, match="has no function nothing; it has compute_score, contains"):
        make_task("addition", reward=f"{rewards}:nothing")
    with pytest.raises(ValueError, match="no file .*gone.py"):
        make_task("addition", reward="gone.py:f")
    with pytest.raises(ValueError, match="is named as path.py:function"):
        make_task("addition", reward="gone")
    task = make_task("addition", reward=lambda completions, **columns: [1.0])
    with pytest.raises(ValueError, match="must return 2 rewards, got 1"):
        task.score_all(task.prompts("test")[:2], ["", ""])


@pytest.mark.parametrize("name", [*REAL, "gsm8k"])
def test_real_files_load_and_their_golds_are_accepted(name: str) -> None:
    """Every row loads, and every gold answer, boxed, is right; GSM8K's also after ####."""
    try:
        task = make_task(name)
    except FileNotFoundError:
        pytest.skip(f"{name} is not in {data_folder()} ($SPPO_DATA)")
    assert isinstance(task, FileTask)
    rows = {"gsm8k": {"train": 7473, "test": 1319}}.get(name) or {BENCHMARKS[name][0]: REAL.get(name)}
    for split, n in rows.items():
        prompts = task.prompts(split)
        assert len(prompts) == n
        for form in ("\\boxed{%s}", "#### %s") if name == "gsm8k" else ("\\boxed{%s}",):
            assert set(boxed(task, prompts, form)) == {"ok"}


def test_a_first_row_without_its_answer_does_not_hide_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    rows = [{"question": "1+1?", "answer": "no mark"}, {"question": "2+2?", "answer": "work\n#### 4"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="1 rows have no gold answer"):
        make_task(str(path)).prompts("train")
    assert make_task(str(path), skip_missing=True).prompts("train")[0].answer == "4"


def test_a_csv_row_with_too_many_fields_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("prompt,answer\n1+1,2\n1+1,2,3\n")
    with pytest.raises(ValueError, match="row 1 has more fields than the header"):
        make_task(str(path)).prompts("train")
