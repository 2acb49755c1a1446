"""Memory plans of runs of language models: what they count, and when they are made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from small_runs import SUMS

from sppo.experiments import text, text_memory
from sppo.experiments.compare import execute
from sppo.experiments.config import from_json, to_json
from sppo.experiments.domains import resolve
from sppo.experiments.memory import Setting
from sppo.experiments.plan_command import PlanCommand
from sppo.experiments.room import table
from sppo.experiments.run_commands import RunOptions, Train
from sppo.experiments.text_memory import memory_plan


def test_a_run_that_the_machine_cannot_hold_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "load_model", None)
    huge = {"episodes_per_update": 4_000_000, "n_minibatches": 1, "microbatch_size": 1_000_000}
    job = ([resolve(replace(SUMS, settings=huge))], [tmp_path / "run"])
    with pytest.raises(ValueError, match=r"sppo needs \d{3,}\.\d GiB per rank and the device has .*activations \d{3,}"):
        execute([job])
    assert not (tmp_path / "run").exists()


def test_the_plan_is_of_all_that_is_generated(tmp_path: Path) -> None:
    """The longest prompts are the last; 16 are answered in an evaluation, 8 in an update, and any number go on."""
    data = tmp_path / "questions.jsonl"
    prompts = ["1+1="] * 300 + ["1+" * 20 + "1="]
    data.write_text("".join(json.dumps({"prompt": p, "answer": "2"}) + "\n" for p in prompts))
    config = replace(SUMS, env_id=f"text/{data}", start="arithmetic", env_kwargs={"chat": False, "suffix": ""})

    def cache(**changes: Any) -> int:
        plan = memory_plan(resolve(replace(config, **changes)))
        return plan.phases["generation"]["KV cache"]

    token = 2 * 4 * 128 * 4  # bytes: keys and values of 4 layers with 128 numbers of 4 bytes
    assert cache() == 16 * (42 + 12) * token
    assert cache(text={**SUMS.text, "max_prompt_length": 9}) == 16 * (42 + 12) * token, "the evaluation has them all"
    assert cache(n_eval_episodes=4) == 8 * (42 + 12) * token
    assert cache(agent="vineppo") == 256 * (42 + 12) * token


def test_the_plan_of_a_run_is_printed_part_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve(replace(SUMS, agent="ppo"))
    expected = table([memory_plan(config)])
    assert expected.splitlines()[0].split() == ["GiB", "per", "rank", "ppo"] and "activations" in expected
    for chosen in (config, replace(SUMS, agent="ppo")):
        (tmp_path / "config.json").write_text(json.dumps(to_json(chosen)))
        for name in (tmp_path, tmp_path / "config.json"):
            PlanCommand(model=str(name))()
            assert capsys.readouterr().out == expected + "\n"
    # a run of ranks is planned without them
    (tmp_path / "config.json").write_text(json.dumps(to_json(replace(config, text=config.text | {"ranks": 2}))))
    PlanCommand(model=str(tmp_path), setting=Setting(on_gpu=True))()
    assert "engine" in capsys.readouterr().out
    with pytest.raises(ValueError, match="ppo needs"):
        PlanCommand(model=str(tmp_path), device_gib=0.001)()
    with pytest.raises(ValueError, match=r"config\.json says how the run is: with it only --device-gib"):
        PlanCommand(model=str(tmp_path), setting=Setting(rows=2))()
    (tmp_path / "config.json").write_text('{"env_id": "sppo/SparseChain-v0"}')
    with pytest.raises(ValueError, match="must be of a run on text to have a memory plan, got sppo/SparseChain-v0"):
        PlanCommand(model=str(tmp_path))()


def test_a_dry_run_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    Train(task="arithmetic", run=RunOptions(text={"max_completion_length": "12"}, dry_run=True))()
    said = capsys.readouterr()
    (shown,) = map(json.loads, said.out.splitlines())
    shown = {name: value for name, value in shown.items() if name != "folder"}
    assert said.err.endswith(table([memory_plan(from_json(shown))]) + "\n")


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, (4, 4)),
        ({"batch_size": 3}, (3, 4)),  # a critic of starts is cut by n_minibatches
        ({"batch_size": 8}, (8, 4)),
        ({"batch_size": 8, "microbatch_size": 2}, (2, 2)),
        ({"microbatch_steps": 64}, (2, 3)),  # of up to 20 + 12 tokens, and of prompts with a step each
    ],
)
def test_the_plan_counts_the_rows_of_a_pass(settings: dict[str, Any], rows: tuple[int, int]) -> None:
    """Of 8 in two minibatches."""

    def read(**settings: Any) -> list[int]:
        phases = memory_plan(resolve(replace(SUMS, settings=SUMS.settings | settings))).phases
        return [phases[name]["activations"] for name in ("policy", "critic")]

    for all_rows, row, n in zip(read(**settings), read(microbatch_size=1), rows, strict=True):
        assert all_rows == pytest.approx(n * row)


def test_a_model_whose_memory_cannot_be_planned_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(model: str) -> Any:
        raise ValueError(f"the shape of {model!r} is not known")

    config = resolve(SUMS)
    monkeypatch.setattr(text_memory, "shape_of", unknown)
    text.check([config])
    assert "memory is not planned: the shape of" in caplog.text

    def broken(*_: object) -> Any:
        raise ValueError("another fault")

    monkeypatch.setattr(text_memory, "_longest_prompt", broken)
    with pytest.raises(ValueError, match="another fault"):
        text.check([config])
