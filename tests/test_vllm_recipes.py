"""A recipe with the engine that it names, on two ranks of a CPU and with small models of the same families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra sppo[data]")
pytest.importorskip("math_verify", reason="needs the extra sppo[math]")

from launched import CLI, done, ends, rank, reach, started, torchrun
from small_recipes import first_rows, small_models
from small_runs import assert_looks_whole, newest_checkpoint, records

from sppo.experiments.recipes import train_line

pytestmark = pytest.mark.vllm

BUDGET = "--episodes 64 --evals 1 --eval-episodes 4 --checkpoint-freq 1".split()
"""The critic's first prediction, and seven updates of eight responses."""


def shorter(line: list[str], **values: object) -> list[str]:
    """The line from `train` on, with other values of options that it has, and a budget of few responses."""
    line = line[line.index("train") :]
    for name, value in values.items():
        line[line.index(name) + 1] = str(value)
    seconds = line.index("--seconds")
    line[seconds : seconds + 6] = BUDGET  # --evals and --checkpoint-freq too
    for option, more in (("--settings", "episodes_per_update 8 n_minibatches 2"), ("--text", "threads 1")):
        end = next(i for i in range(line.index(option) + 1, len(line)) if line[i].startswith("--"))
        line[end:end] = more.split()
    return line


def test_a_recipe_is_evaluated_killed_and_goes_on_with_its_own_engine(tmp_path: Path) -> None:
    models = small_models(tmp_path / "models")
    line = shorter(
        train_line("dapo-7b-small-critic", "sppo", tmp_path),
        max_completion_length=8,
        max_prompt_length=400,
        kv_cache_gib=0.05,
        critic=models["r1-distill-qwen-1.5b"],
        **{"--model": models["r1-distill-qwen-7b"]},
    )
    run = Path(line[line.index("--out") + 1])
    (tmp_path / "data").mkdir()
    with first_rows(tmp_path / "data"):
        with started(*torchrun(2, *CLI), *line) as launcher:
            reach(launcher, run / "checkpoints" / "00000002")
            assert "Signal 9 (SIGKILL) received" in ends(launcher, rank(launcher))
        assert not (run / "result.json").exists()
        said = done(*torchrun(2, *CLI), *line, "--resume")
    assert f"{run}: success" in said
    assert_looks_whole(run)
    text = json.loads((run / "config.json").read_text())["text"]
    assert (text["engine"], text["shard_dtype"], text["checkpointing"], text["ranks"]) == ("vllm", "bfloat16", True, 2)
    assert [r["time/n_updates"] for r in records(run / "progress.jsonl")] == list(range(1, 8))
    assert [r["episodes"] for r in records(run / "evals.jsonl")] == [0, 64], "on MATH-500"
    assert newest_checkpoint(run).name == newest_checkpoint(run / "ranks" / "1").name == "00000007"
