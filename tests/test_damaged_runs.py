"""Damaged folders of runs: the message names the file and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_runs import write_run

from sppo.experiments.summary import summarize


def break_json(run: Path) -> None:
    (run / "config.json").write_text("{")


def break_result(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"finished": True, "success_rate": "high", "seconds": 1}))


def drop_key(run: Path) -> None:
    (run / "config.json").write_text('{"agent": "ppo", "seed": 0}')


def drop_column(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds\n0,0,0\n")


def cut_row(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n0,0,0,0.1\n10,2000,1\n")


def go_back(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n10,20,1,0.1\n5,30,2,0.2\n")


def stand_still(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n1,20,1,0.1\n5,20,2,0.2\n")


def empty(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n")


def remove(run: Path) -> None:
    (run / "evals.csv").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_json, r"seed1/config\.json must be readable JSON"),
        (break_result, r"seed1/result\.json must give success_rate as a finite number, got 'high'"),
        (drop_key, r"seed1/config\.json must have the keys agent, env_id, seed, it lacks env_id"),
        (drop_column, r"seed1/evals\.csv must have the column success_rate, got episodes, env_steps, seconds"),
        (cut_row, r"seed1/evals\.csv must hold finite numbers, column success_rate does not in line 3"),
        (go_back, r"seed1/evals\.csv must not go back, column episodes falls in line 3"),
        (stand_still, r"seed1/evals\.csv must count more env_steps"),
        (empty, r"seed1/evals\.csv must have at least one row"),
        (remove, r"seed1/evals\.csv must be a readable CSV"),
    ],
)
def test_damaged_run_is_named(two_agents: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(two_agents / "ppo" / "seed1")
    with pytest.raises(ValueError, match=told):
        summarize(two_agents)


def test_folders_without_runs_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is none"):
        summarize(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"at least one finished run, found no folder with a config\.json"):
        summarize(tmp_path)
    write_run(tmp_path, "ppo", 0, finished=False)
    with pytest.raises(ValueError, match=r"seed0: no result\.json"):
        summarize(tmp_path)


def test_wrong_agents_and_twice_the_same_run_are_told(two_agents: Path) -> None:
    with pytest.raises(ValueError, match="agents must be among ppo, sppo, got grpo"):
        summarize(two_agents, ["grpo"])
    (two_agents / "again").mkdir()
    (two_agents / "ppo" / "seed0").rename(two_agents / "ppo" / "seed00")
    write_run(two_agents, "ppo", 0)
    with pytest.raises(ValueError, match=r"ppo/seed0 and .*ppo/seed00 are both ppo on .* with seed 0"):
        summarize(two_agents)
