"""Stage 1: train an expert on a task's dense reward and record episodes in which it succeeds on the binary outcome."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.auto import tqdm

from sppo.envs import Episodes, episodes
from sppo.envs.sb3 import EpisodeVecEnv
from sppo.experiments.files import replace
from sppo.experiments.settings import make


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """How an expert is trained (names as in stable-baselines3's PPO) and what is recorded of it."""

    env_id: str
    """The task whose binary outcome is the aim."""
    dense_id: str
    """What PPO is trained on: same observations and actions, a reward at every step."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of both environments."""
    total_timesteps: int = 2_000_000
    """Most steps to train for; training stops as soon as `target_success` is reached."""
    min_timesteps: int = 0
    """Fewest steps to train for, `target_success` or not."""
    num_envs: int = 16
    n_steps: int = 512
    batch_size: int = 512
    n_epochs: int = 10
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.0
    log_std_init: float = 0.0
    net_arch: tuple[int, ...] = (64, 64)
    normalize_reward: bool = True
    target_success: float = 0.95
    """Success rate with sampled actions that ends training."""
    eval_every: int = 50_000
    """Steps between two looks at the success rate."""
    eval_episodes: int = 64
    num_episodes: int = 400
    """Successful episodes to record."""
    min_success: float = 0.1
    """Recording is refused below this success rate: the expert has not learned the task."""
    seed: int = 0


SETTINGS: dict[str, dict[str, Any]] = {
    "sppo/PrecisionCartPole-v0": {"gamma": 0.98, "num_envs": 32, "n_steps": 256, "total_timesteps": 4_000_000},
    "sppo/MountainCar-v0": {"gae_lambda": 0.98, "n_steps": 1000, "batch_size": 1000},
    "sppo/Pendulum-v0": {"gamma": 0.97, "learning_rate": 1e-3, "n_steps": 500, "batch_size": 500},
    # It lands early in training, but keeps an engine running until the time is up; only later does it come to rest.
    # An entropy bonus or discounting by less would keep it from that.
    "sppo/LunarLander-v0": {
        "min_timesteps": 1_000_000,
        "gamma": 0.99,
        "gae_lambda": 0.98,
        "n_steps": 512,
        "eval_every": 100_000,
        "total_timesteps": 4_000_000,
    },
    "sppo/Hopper-v0": {
        "num_envs": 8,
        "n_steps": 256,
        "batch_size": 64,
        "log_std_init": -0.5,
        "num_episodes": 200,
        "eval_every": 200_000,
        "eval_episodes": 32,
        "total_timesteps": 6_000_000,
    },
}
"""What differs from the defaults, by task."""


def expert_config(env_id: str, **overrides: Any) -> ExpertConfig:
    """An id's settings: defaults, its entry in `SETTINGS`, then `overrides`; trained on its `-dense` variant if any."""
    name, _, number = env_id.rpartition(":")[-1].rpartition("-v")
    dense = f"{name}-dense-v{number}"
    settings = {"dense_id": dense if dense in gym.registry else env_id, **SETTINGS.get(env_id, {}), **overrides}
    return make(ExpertConfig, {"env_id": env_id, **settings})


def train_expert(
    env_id: str, out_dir: str | Path, *, config: ExpertConfig | None = None, progress_bar: bool = True
) -> dict[str, Any]:
    """Train an expert and record its successes.

    Writes `episodes.safetensors`: `observations` (S, D) float32 and `actions` (S,) int64 or (S, A) float32, the steps
    of all episodes end to end, `lengths` (N,) int64 with S = sum(lengths), `seeds` (N,) int64, the episodes' seeds;
    and `expert.json`: settings, versions, success rate, steps and seconds.

    Args:
        env_id: a registered id.
        out_dir: a folder, made if need be.
        config: for the same id; default `expert_config(env_id)`.
        progress_bar: show one on stderr.

    Returns:
        What `expert.json` holds.

    Raises:
        ValueError: the expert does not reach `min_success`.
    """
    config = config or expert_config(env_id)
    if config.env_id != env_id:
        raise ValueError(f"config is for {config.env_id!r}, not for {env_id!r}")
    task = episodes(env_id, **config.env_kwargs)
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are too small for more to pay
    try:
        policy, steps = _train(config, task, progress_bar)
    finally:
        torch.set_num_threads(threads)
    seconds_training = time.perf_counter() - started
    arrays, successes, tried = _record(config, task, policy, progress_bar)
    report = {
        "config": dataclasses.asdict(config),
        "success_rate": successes / tried,
        "success_rate_episodes": tried,
        "episodes": len(arrays["lengths"]),
        "mean_length": float(arrays["lengths"].mean()),
        "env_steps": steps,
        "seconds_training": round(seconds_training, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("gymnasium", "numpy", "stable-baselines3", "torch")},
        },
    }
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    recorded = out / "episodes.safetensors"
    # The settings first, with no older episodes beside them: episodes that are there can be asked for theirs.
    recorded.unlink(missing_ok=True)
    replace(out / "expert.json", (json.dumps(report, indent=2) + "\n").encode())
    replace(recorded, save(arrays))
    return report


Act = Callable[[NDArray[np.float32]], NDArray[Any]]


def _train(config: ExpertConfig, task: Episodes, progress_bar: bool) -> tuple[Act, int]:
    """The expert's sampled policy on raw observations, and the steps it was trained for."""
    dense = episodes(config.dense_id, **config.env_kwargs)
    if dense.single_observation_space != task.single_observation_space:
        raise ValueError(f"{config.dense_id} and {config.env_id} must have the same observations")
    env = VecNormalize(
        EpisodeVecEnv(dense, config.num_envs, config.seed), norm_reward=config.normalize_reward, gamma=config.gamma
    )
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        learning_rate=config.learning_rate,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.ent_coef,
        policy_kwargs={"net_arch": list(config.net_arch), "log_std_init": config.log_std_init},
        seed=config.seed,
        device="cpu",
    )

    def act(obs: NDArray[np.float32]) -> NDArray[Any]:
        return model.predict(env.normalize_obs(obs), deterministic=False)[0]

    callback = _StopOnSuccess(config, task, act, progress_bar)
    model.learn(config.total_timesteps, callback=callback)
    callback.bar.close()
    return act, int(model.num_timesteps)


class _StopOnSuccess(BaseCallback):
    """Looks at the success rate between two rollouts, and ends training once it is high enough."""

    def __init__(self, config: ExpertConfig, task: Episodes, act: Act, progress_bar: bool) -> None:
        super().__init__()
        self.config, self.task, self.act = config, task, act
        self.next_look = config.eval_every
        self.bar = tqdm(total=config.total_timesteps, unit="step", desc=config.env_id, disable=not progress_bar)
        self.shown: dict[str, str] = {}
        self.reached = False

    def _on_step(self) -> bool:
        return not self.reached

    def _on_rollout_end(self) -> None:
        self.bar.update(self.num_timesteps - self.bar.n)
        if recent := self.model.ep_info_buffer:
            self.shown["length"] = f"{np.mean([e['l'] for e in recent]):.0f}"
        self.bar.set_postfix(self.shown, refresh=False)
        if self.num_timesteps < self.next_look:
            return
        self.next_look = self.num_timesteps + self.config.eval_every
        seeds = np.arange(self.config.eval_episodes) + 1_000_000 * (1 + self.config.seed)
        won = play(self.task, seeds, self.act)[3].mean()
        self.shown["success"] = f"{won:.2f}"
        self.reached = bool(won >= self.config.target_success) and self.num_timesteps >= self.config.min_timesteps


def _record(
    config: ExpertConfig, task: Episodes, act: Act, progress_bar: bool
) -> tuple[dict[str, NDArray[Any]], int, int]:
    """Arrays of `num_episodes` successes, and how many succeeded of how many played."""
    kept: dict[str, list[NDArray[Any]]] = {"observations": [], "actions": [], "lengths": [], "seeds": []}
    successes = tried = recorded = 0
    with tqdm(total=config.num_episodes, unit="episode", desc="recording", disable=not progress_bar) as bar:
        while recorded < config.num_episodes:
            seeds = np.arange(64) + 10_000_000 * (1 + config.seed) + tried
            observations, actions, lengths, won = play(task, seeds, act)
            successes, tried = successes + int(won.sum()), tried + len(seeds)
            if tried >= 256 and successes < config.min_success * tried:
                raise ValueError(
                    f"the expert of {config.env_id} succeeds in {successes} of {tried} episodes, fewer than "
                    f"min_success={config.min_success}: train it for longer or shape the reward of {config.dense_id}"
                )
            for row in np.flatnonzero(won)[: config.num_episodes - recorded]:
                kept["observations"].append(observations[row, : lengths[row]])
                kept["actions"].append(actions[row, : lengths[row]])
                kept["lengths"].append(lengths[row : row + 1])
                kept["seeds"].append(seeds[row : row + 1])
            recorded = len(kept["lengths"])
            bar.update(recorded - bar.n)
    return {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in kept.items()}, successes, tried


def play(
    task: Episodes, seeds: NDArray[np.int64], act: Act
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """One episode per seed: observations (n, T, D) and actions (n, T) or (n, T, A) padded, lengths, success (n,)."""
    obs = task.begin(seeds)
    steps = []
    while len(task.running):
        rows = task.running
        actions = act(obs)
        steps.append((rows, obs, actions))
        obs, _, terminated, truncated = task.step(actions)
        obs = obs[~(terminated | truncated)]
    n, length = len(seeds), len(steps)
    observations = np.zeros((n, length, obs.shape[1]), np.float32)
    actions_taken = np.zeros((n, length, *steps[0][2].shape[1:]), steps[0][2].dtype)
    lengths = np.zeros(n, np.int64)
    for t, (rows, seen, done) in enumerate(steps):
        observations[rows, t], actions_taken[rows, t] = seen, done
        lengths[rows] = t + 1
    return observations, actions_taken, lengths, task.success.copy()
