"""Stage 2: cloning into a window of success rates; and the start policies that ship."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sppo.agents.control import ControlSampler
from sppo.agents.storage import load_policy
from sppo.envs import episodes
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.sft import (
    SFTConfig,
    WindowMissed,
    check_fits,
    clone,
    fits,
    network_of,
    read_demonstrations,
    sft_config,
)
from sppo.experiments.tasks import STARTS, TASKS, short_name

CHAIN = SFTConfig(
    env_id="sppo/SparseChain-v0",
    env_kwargs={"start_spread": 0, "goal": 7},
    low=0.3,
    high=0.5,
    learning_rate=1e-3,
    check_every=2,
    min_gradient_steps=1,
    net_arch=(16,),
)
"""By chance 9 of 256 succeed; to the right at every step always does."""


def demonstrations(config: SFTConfig, n: int = 40) -> dict[str, Tensor]:
    """Episodes of an expert who always goes right."""
    task = episodes(config.env_id, **config.env_kwargs)
    seen = [task.begin(np.arange(n))]
    actions = np.ones((task.horizon, n), np.int64)
    for row in actions:
        seen.append(task.step(row)[0])
    return {
        "observations": torch.from_numpy(np.stack(seen[:-1], 1).reshape(-1, seen[0].shape[1])),
        "actions": torch.from_numpy(actions.T.reshape(-1)),
        "lengths": torch.full((n,), task.horizon),
    }


@pytest.fixture
def expert(tmp_path: Path) -> Path:
    folder = tmp_path / "expert"
    folder.mkdir()
    save_file(demonstrations(CHAIN), folder / "episodes.safetensors")
    return folder


def success(config: SFTConfig, path: Path, n: int, first: int = 10**6) -> float:
    """Measured anew, from starts that no fit has seen."""
    sampler = ControlSampler(episodes(config.env_id, **config.env_kwargs), seed=99, **network_of(path))
    load_policy(sampler.policy, path)
    return float(sampler.rollout(np.arange(first, first + n)).success.float().mean())


def tolerance(p: float, n: int, m: int, sigmas: float = 4.5) -> float:
    """How far apart two estimates of a rate from n and m episodes may lie."""
    return sigmas * float(np.sqrt(max(p * (1 - p), 0.01) * (1 / n + 1 / m)))


def test_cloning_lands_inside_the_window(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    about = clone(CHAIN, demonstrations(CHAIN), path)
    assert CHAIN.low <= about["success_rate"] <= CHAIN.high
    assert success(CHAIN, path, 2000) == pytest.approx(
        about["success_rate"], abs=tolerance(about["success_rate"], 512, 2000)
    )
    assert json.loads(path.with_suffix(".json").read_text()) == json.loads(json.dumps(about))
    assert about["config"] == dataclasses.asdict(CHAIN) and about["gradient_steps"] % CHAIN.check_every == 0


def test_an_overshoot_is_undone_with_smaller_steps() -> None:
    """The first look after so large a step is far above the window; none of it remains in the end."""
    looks: list[float] = []
    config = replace(CHAIN, learning_rate=0.03, check_every=5, low=0.4, high=0.5)
    about = clone(config, demonstrations(config), progress=looks.append)
    first = next(i for i, rate in enumerate(looks) if rate > config.high)
    assert looks[first] > 0.6 and min(looks[first + 1 :]) < config.high
    assert config.low <= about["success_rate"] <= config.high


def test_a_measurement_above_the_window_is_undone_too() -> None:
    """Looks of few episodes call rates good that are not: the measurement decides, and cloning comes to an end."""
    config = replace(CHAIN, check_episodes=24, low=0.42, high=0.5)
    looks: list[float] = []
    about = clone(config, demonstrations(config), progress=looks.append)
    assert config.low <= about["success_rate"] <= config.high and looks[-1] == about["success_rate"]


def test_a_fit_can_be_made_again_and_seeds_differ(expert: Path, tmp_path: Path) -> None:
    made = fits(CHAIN, expert, tmp_path / "a", 2, progress_bar=False)
    again = fits(CHAIN, expert, tmp_path / "b", 2, progress_bar=False)
    assert made == again
    first, second = (tmp_path / "a" / "SparseChain-v0" / f"{seed}.safetensors" for seed in (0, 1))
    assert first.read_bytes() == (tmp_path / "b" / "SparseChain-v0" / "0.safetensors").read_bytes()
    assert first.read_bytes() != second.read_bytes()


def test_a_run_starts_from_a_fit(expert: Path, tmp_path: Path) -> None:
    fits(CHAIN, expert, tmp_path, 2, progress_bar=False)
    folder = tmp_path / "SparseChain-v0"
    config = resolve(RunConfig(env_id=CHAIN.env_id, env_kwargs=CHAIN.env_kwargs, start=str(folder), seed=1))
    assert config.start == str(folder / "1.safetensors") and config.net_arch == (16,)
    policy = make_agents([config])[0].policy.state_dict()
    for name, tensor in load_file(folder / "1.safetensors").items():
        assert torch.equal(policy[name], tensor)


def test_fits_are_not_written_over(expert: Path, tmp_path: Path) -> None:
    check_fits(CHAIN, expert, tmp_path / "fits", 2)
    fits(CHAIN, expert, tmp_path / "fits", 1, progress_bar=False)
    with pytest.raises(ValueError, match=r"0.safetensors already exists; --out names another folder"):
        check_fits(CHAIN, expert, tmp_path / "fits", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"low": 0.9501, "high": 0.9502, "max_gradient_steps": 400},
            "success is .* after 400 gradient steps|no policy",
        ),
        ({"learning_rate": 1e-9, "max_gradient_steps": 10}, r"success is 0\.\d+ after 10 gradient steps of cloning"),
        ({"low": 0.001, "high": 0.002}, "no policy between 0.001 and 0.002 could be found"),
    ],
)
def test_a_window_that_is_not_reached(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WindowMissed, match=message):
        clone(replace(CHAIN, **changes), demonstrations(CHAIN), tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("lengths"), "the expert's episodes lack lengths"),
        (
            lambda d: d.update(observations=d["observations"][:, :1]),
            r"observations must be \(320, 2\) .* got \(320, 1\)",
        ),
        (lambda d: d.update(observations=d["observations"][1:]), r"observations must be \(320, 2\) .* got \(319, 2\)"),
        (lambda d: d.update(actions=d["actions"].float()[:, None]), r"actions must be \(320,\) .* got \(320, 1\)"),
        (lambda d: d.update(actions=d["actions"] + 1), r"actions must be in \[0, 2\)"),
    ],
)
def test_demonstrations_that_do_not_fit(change: Any, message: str) -> None:
    given = demonstrations(CHAIN)
    change(given)
    with pytest.raises(ValueError, match=message):
        clone(CHAIN, given)


def test_demonstrations_that_are_missing_or_damaged(expert: Path, tmp_path: Path) -> None:
    assert read_demonstrations(expert).keys() == demonstrations(CHAIN).keys()
    (expert / "episodes.safetensors").write_bytes(b"damaged")
    for folder in (expert, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"cannot read the expert's episodes {folder}.*`sppo experts` makes them"):
            read_demonstrations(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 0.5}, "0 <= low < high <= 1, got 0.5 and 0.2"),
        ({"lw": 0.5}, "unknown setting 'lw'; did you mean 'low'?"),
        ({"episodes": "many"}, "episodes must be a whole number, got 'many'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        sft_config("sppo/SparseChain-v0", **settings)
    assert message in str(error.value)


# The start policies that ship.

QUICK = ("sppo/PrecisionCartPole-v0", "sppo/MountainCar-v0", "sppo/Pendulum-v0")
SHIPPED = [pytest.param(env_id, marks=() if env_id in QUICK else pytest.mark.slow) for env_id in TASKS]


@pytest.mark.parametrize("env_id", TASKS)
def test_ten_start_policies_ship_and_say_how_they_were_made(env_id: str) -> None:
    folder = STARTS / short_name(env_id)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{i}.{kind}" for i in range(10) for kind in KINDS)
    window = sft_config(env_id)
    for seed in range(10):
        about = json.loads((folder / f"{seed}.json").read_text())
        config = about["config"]
        assert (config["env_id"], config["seed"]) == (env_id, seed)
        assert (config["low"], config["high"]) == (window.low, window.high)
        assert window.low <= about["success_rate"] <= window.high and about["success_rate_episodes"] >= 128
        assert about["gradient_steps"] > 0 and about["env_steps"] > 0
        assert (folder / f"{seed}.safetensors").stat().st_size < 200_000
        make_agents([resolve(RunConfig(env_id=env_id, seed=seed))])


KINDS = ("json", "safetensors")


@pytest.mark.parametrize("env_id", SHIPPED)
def test_shipped_start_policies_succeed_as_often_as_they_say(env_id: str) -> None:
    n = 256 if env_id in QUICK else 64
    for seed in range(10):
        path = STARTS / short_name(env_id) / f"{seed}.safetensors"
        about = json.loads(path.with_suffix(".json").read_text())
        p, m = about["success_rate"], about["success_rate_episodes"]
        assert success(sft_config(env_id), path, n) == pytest.approx(p, abs=tolerance(p, n, m)), path
