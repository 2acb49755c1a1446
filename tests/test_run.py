"""What a run leaves behind, that it can be made again from that, and what stops it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import (
    CHAIN,
    UNEVEN,
    assert_looks_whole,
    assert_same_run,
    newest_checkpoint,
    records,
    scalars,
    seeds,
    table,
)

from sppo.agents import AGENTS
from sppo.experiments.config import read_config
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.process import locked
from sppo.experiments.run import run
from sppo.experiments.watch import watch

SB3_TAGS = """
rollout/success_rate rollout/ep_len_mean rollout/ep_rew_mean train/approx_kl train/clip_fraction
train/policy_gradient_loss train/entropy_loss train/n_updates time/fps time/total_timesteps
eval/success_rate eval/mean_reward eval/mean_ep_length
""".split()
SB3_CRITIC_TAGS = ["train/value_loss", "train/explained_variance"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of every agent."""
    folder = tmp_path_factory.mktemp("runs")
    for name in AGENTS:
        run([replace(CHAIN, agent=name)], [folder / name])
    return {name: folder / name for name in AGENTS}


@pytest.mark.parametrize("name", ["ppo", "sppo", "tracker"])
def test_a_run_folder_holds_everything(name: str, finished: dict[str, Path]) -> None:
    folder = finished[name]
    assert_looks_whole(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["agent"] == name and config["settings"]["learning_rate"] == 3e-4
    assert {"python", "torch", "numpy", "gymnasium", "sppo"} <= config["versions"].keys()
    result = json.loads((folder / "result.json").read_text())
    assert result["finished"] is True and result["episodes"] == 56 and result["env_steps"] == 56 * 8
    assert newest_checkpoint(folder).name == "00000007"

    progress, rows = records(folder / "progress.jsonl", timed=True), table(folder / "progress.csv")
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == progress
    evals = records(folder / "evals.jsonl", timed=True)
    assert [{k: float(v) for k, v in row.items()} for row in table(folder / "evals.csv")] == evals
    assert [e["n_updates"] for e in evals] == [0, 3, 5, 7], "before the run, at every third of it, and at its end"
    assert result["success_rate"] == evals[-1]["success_rate"]
    found = scalars(folder)
    for tag in progress[0].keys() | progress[-1].keys():
        want = [(r["time/total_timesteps"], r[tag]) for r in progress if tag in r]
        np.testing.assert_allclose(found[tag], want, rtol=1e-6)
    wanted = SB3_TAGS + (SB3_CRITIC_TAGS if name != "tracker" else [])
    assert set(wanted) <= {tag for record in progress for tag in record}


def test_columns_that_come_later_are_in_the_table_too(finished: dict[str, Path]) -> None:
    """Evaluations come with some updates only."""
    rows = table(finished["sppo"] / "progress.csv")
    assert [row["eval/success_rate"] != "" for row in rows] == [False, False, True, False, True, False, True]


def test_every_tag_is_documented(finished: dict[str, Path], root: Path) -> None:
    documented = set(re.findall(r"^\| `([a-z_0-9]+/[a-z_0-9]+)`", (root / "docs" / "METRICS.md").read_text(), re.M))
    logged = {tag for folder in finished.values() for tag in scalars(folder)}
    assert logged - documented == set(), "tags that docs/METRICS.md does not explain"


@pytest.mark.parametrize(
    "config", [replace(CHAIN, agent="ppo"), replace(UNEVEN, agent="sppo", seed=3)], ids=["ppo", "sppo"]
)
def test_a_run_can_be_made_again_from_its_folder(config: Any, tmp_path: Path) -> None:
    run([config], [tmp_path / "first"])
    again = read_config(tmp_path / "first")
    assert again == resolve(again) == resolve(config)
    run([again], [tmp_path / "second"])
    assert_same_run(tmp_path / "first", tmp_path / "second")


def test_seeds_differ_and_do_not_depend_on_who_is_beside_them(tmp_path: Path) -> None:
    """A seed side by side with others learns what it learns alone, up to rounding."""
    configs, folders = seeds(replace(CHAIN, agent="ppo"), 2, tmp_path)
    run(configs, folders)
    run(configs[1:], [tmp_path / "alone"])
    a, b, alone = (load_file(newest_checkpoint(f) / "agent.safetensors") for f in (*folders, tmp_path / "alone"))
    assert any(not np.array_equal(a[name], b[name]) for name in a)
    for name in b:
        np.testing.assert_allclose(b[name], alone[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_budget_in_steps_ends_a_run(tmp_path: Path) -> None:
    run([replace(CHAIN, total_steps=130)], [tmp_path / "run"])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["env_steps"] == 3 * 64


def test_the_budget_in_seconds_ends_a_run_and_counts_on(tmp_path: Path) -> None:
    config = replace(CHAIN, total_episodes=None, total_seconds=0.2, n_evals=2, checkpoint_freq=1)
    run([config], [tmp_path])
    progress = records(tmp_path / "progress.jsonl", timed=True)
    *before, last = [r["time/seconds"] for r in progress]
    assert last >= 0.2 > before[-1]
    evaluated = [e["seconds"] for e in records(tmp_path / "evals.jsonl", timed=True)]
    assert evaluated == [0, *[s for s in before if s >= 0.1][:1], last]
    (tmp_path / "result.json").unlink()
    run([config], [tmp_path], resume=True)
    assert records(tmp_path / "progress.jsonl", timed=True) == progress, "its seconds were spent"


def test_a_run_goes_on_where_settings_came_later_and_not_where_they_differ(tmp_path: Path) -> None:
    run([CHAIN], [tmp_path])
    (tmp_path / "result.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["settings"]["weight_decay"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    decaying = replace(CHAIN, settings={**CHAIN.settings, "weight_decay": 0.1})
    with pytest.raises(ValueError, match=r"another run: its weight_decay is 0.0, not 0.1"):
        run([decaying], [tmp_path], resume=True)
    run([CHAIN], [tmp_path], resume=True)
    assert (tmp_path / "result.json").exists()


def test_a_run_stops_at_success(tmp_path: Path) -> None:
    run([replace(CHAIN, n_evals=7, stop_at_success=0.05)], [tmp_path / "run"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["success_rate"] >= 0.05 and result["episodes"] < 56
    before = (tmp_path / "run" / "progress.jsonl").read_bytes()
    run([replace(CHAIN, n_evals=7, stop_at_success=0.05)], [tmp_path / "run"], resume=True)
    assert (tmp_path / "run" / "progress.jsonl").read_bytes() == before, "a finished run stays as it is"


def test_runs_report_their_share(tmp_path: Path) -> None:
    told: list[tuple[Path, float, float]] = []
    run([CHAIN], [tmp_path / "run"], report=lambda *what: told.append(what))
    np.testing.assert_allclose([share for _, share, _ in told], np.arange(1, 8) / 7)
    assert all(folder == tmp_path / "run" and 0 <= success <= 1 for folder, _, success in told)


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    hold = "import sys; from pathlib import Path; from sppo.experiments.process import locked\n"
    hold += "with locked([Path(sys.argv[1])]): print('held', flush=True); sys.stdin.read()"
    arguments = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"another process is at work in {tmp_path}"), locked([tmp_path], 0.2):
            pass
        other.kill()
    with locked([tmp_path], 0.2):
        pass


# What stops a run.


class Broken(gym.Env[Any, Any]):
    """Goes wrong in a way that its options choose."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.full(2, np.nan if self.fault == "start" else 0, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.fault == "exception":
            raise RuntimeError("the simulator is gone")
        obs = np.full(2, np.nan if self.fault == "observation" and self.t == 3 else 0.5, np.float32)
        return obs, math.nan if self.fault == "reward" else 0.0, False, False, {}


gym.register("Broken-v0", entry_point=Broken, max_episode_steps=8)


@pytest.mark.parametrize("agent", ["ppo", "sppo", "tracker", "reinforce"])
@pytest.mark.parametrize("fault", ["start", "observation", "reward"])
def test_an_environment_that_breaks_stops_the_run(fault: str, agent: str, tmp_path: Path) -> None:
    config = replace(CHAIN, agent=agent, env_id="Broken-v0", env_kwargs={"fault": fault})
    with pytest.raises((ValueError, FloatingPointError), match=r"finite|nan"):
        run([config], [tmp_path / "run"])
    assert not (tmp_path / "run" / "result.json").exists()


def test_start_policies_are_used_by_actor_and_critic() -> None:
    config = resolve(replace(UNEVEN, agent="ppo", env_kwargs={}, start="auto", seed=12))
    assert config.start == "PrecisionCartPole-v0/2.safetensors" and config.net_arch == (64, 64)
    agent = make_agents([config])[0]
    shipped = load_file(Path(sys.modules["sppo.experiments.tasks"].STARTS) / config.start)
    np.testing.assert_array_equal(agent.policy.obs_mean, shipped["obs_mean"])
    np.testing.assert_array_equal(agent.critic.obs_mean, shipped["obs_mean"])


# Looking at a run.


@pytest.mark.parametrize("env_id", ["sppo/PrecisionCartPole-v0", "sppo/SparseChain-v0"])
def test_watch_writes_a_moving_picture(env_id: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    config = replace(UNEVEN, env_id=env_id, env_kwargs={"horizon": 12}, total_episodes=8, total_steps=None)
    run([config], [tmp_path / "run"])
    before = sorted(tmp_path.rglob("*"))
    picture = watch(tmp_path / "run", n_episodes=2, max_frames=20)
    assert picture == tmp_path / "run" / "video.gif" and sorted(tmp_path.rglob("*")) != before
    with image.open(picture) as opened:
        assert opened.is_animated and 1 < opened.n_frames <= 20 and min(opened.size) >= 20


def test_a_preset_gives_way_to_the_users_settings_alone() -> None:
    settings = resolve(replace(CHAIN, agent="grpo", settings={"preset": "deepseekmath", "n_minibatches": 2})).settings
    assert (settings["num_generations"], settings["episodes_per_update"], settings["n_minibatches"]) == (64, 1024, 2)
    assert "preset" not in settings


def test_watch_needs_a_checkpoint(tmp_path: Path) -> None:
    run([CHAIN], [tmp_path / "run"])
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(ValueError, match="has no checkpoint"):
        watch(tmp_path / "run")
