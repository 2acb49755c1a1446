"""Stage 1 on a task small enough to learn in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from safetensors.numpy import load_file

from sppo.envs import episodes
from sppo.envs.sb3 import EpisodeVecEnv
from sppo.experiments import experts
from sppo.experiments.experts import SETTINGS, expert_config, play, train_expert

SMALL: dict[str, Any] = {
    "num_envs": 8,
    "n_steps": 64,
    "batch_size": 128,
    "total_timesteps": 30_000,
    "eval_every": 512,
    "num_episodes": 50,
    "env_kwargs": {"start_spread": 2, "goal": 7},
    "target_success": 0.8,
}


def test_an_expert_succeeds_and_its_recorded_episodes_replay(tmp_path: Path) -> None:
    config = expert_config("sppo/SparseChain-v0", **SMALL)
    report = train_expert("sppo/SparseChain-v0", tmp_path / "chain", config=config, progress_bar=False)
    assert report["success_rate"] > 0.7 and 0 < report["env_steps"] <= 30_000 + 512
    assert json.loads((tmp_path / "chain" / "expert.json").read_text()) == json.loads(json.dumps(report))

    data = load_file(tmp_path / "chain" / "episodes.safetensors")
    assert len(data["lengths"]) == len(data["seeds"]) == 50
    assert data["observations"].dtype == np.float32
    assert len(data["observations"]) == len(data["actions"]) == data["lengths"].sum()
    task = episodes("sppo/SparseChain-v0", **SMALL["env_kwargs"])
    at = 0
    for seed, length in zip(data["seeds"], data["lengths"], strict=True):
        obs = task.begin([seed])
        for t in range(at, at + length):
            np.testing.assert_array_equal(obs[0], data["observations"][t])
            obs = task.step(data["actions"][t : t + 1])[0]
        assert task.success[0]
        at += length


def test_an_expert_trained_anew_never_stands_beside_older_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its two files, the second training leaves its settings alone; that walk's action is always 1."""

    def write(file: Path, content: bytes) -> None:
        if file.suffix == ".safetensors" and not (tmp_path / "expert.json").read_text().count('"seed": 0'):
            raise KeyboardInterrupt
        file.write_bytes(content)

    monkeypatch.setattr(experts, "_train", lambda *_: (lambda obs: np.ones(len(obs), np.int64), 0))
    monkeypatch.setattr(experts, "replace", write)
    train_expert("sppo/SparseChain-v0", tmp_path, config=expert_config("sppo/SparseChain-v0", **SMALL))
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(KeyboardInterrupt):
        train_expert("sppo/SparseChain-v0", tmp_path, config=expert_config("sppo/SparseChain-v0", **SMALL, seed=1))
    assert [file.name for file in tmp_path.iterdir()] == ["expert.json"]


def test_an_expert_that_never_succeeds_is_refused(tmp_path: Path) -> None:
    config = expert_config("sppo/SparseChain-v0", **{**SMALL, "env_kwargs": {"goal": 99}, "total_timesteps": 512})
    with pytest.raises(ValueError, match="succeeds in 0 of 256 episodes"):
        train_expert("sppo/SparseChain-v0", tmp_path, config=config, progress_bar=False)
    assert not list(tmp_path.iterdir())


def test_settings() -> None:
    assert all(expert_config(env_id).dense_id.endswith("-dense-v0") for env_id in SETTINGS)
    assert expert_config("Acrobot-v1").dense_id == "Acrobot-v1"
    with pytest.raises(ValueError, match="unknown setting 'gama'; did you mean 'gamma'"):
        expert_config("Acrobot-v1", gama=1)
    with pytest.raises(ValueError, match="config is for"):
        train_expert("Acrobot-v1", "unused", config=expert_config("CartPole-v1"))


def test_play_pads_and_keeps_rows_apart() -> None:
    task = episodes("sppo/PrecisionCartPole-v0")
    observations, actions, lengths, success = play(task, np.arange(6), lambda obs: np.zeros(len(obs), np.int64))
    assert not success.any() and len(np.unique(lengths)) > 1
    for row in range(6):
        alone = play(task, np.array([row]), lambda obs: np.zeros(len(obs), np.int64))
        assert alone[2][0] == lengths[row]
        np.testing.assert_array_equal(alone[0][0], observations[row, : lengths[row]])
        assert (observations[row, lengths[row] :] == 0).all()
    assert actions.shape == observations.shape[:2]


def test_the_vec_env_restarts_within_the_step() -> None:
    env = EpisodeVecEnv(episodes("sppo/SparseChain-v0", horizon=2, goal=1), 3, seed=0)
    env.reset()
    env.step_async(np.array([1, 1, 1]))
    *_, over, infos = env.step_wait()
    assert not over.any() and infos == [{}, {}, {}]
    env.step_async(np.array([1, 1, 1]))
    obs, rewards, over, infos = env.step_wait()
    assert over.all() and (rewards == 1).all() and (obs[:, -1] == 0).all()
    assert infos[0]["terminal_observation"][-1] == 1 and infos[0]["episode"] == {"r": 1.0, "l": 2}
    assert infos[0]["is_success"] and not infos[0]["TimeLimit.truncated"]
