"""Gymnasium's two interfaces, `Env` and `VectorEnv`, over `Episodes`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sppo.envs.episodes import Episodes, Snapshot
from sppo.envs.render import Renderer


def draw_seed(generator: np.random.Generator) -> int:
    """An episode's seed, drawn from an environment's generator."""
    return int(generator.integers(2**63 - 1))


class EpisodeEnv(gym.Env[Any, Any]):
    """One episode at a time of a task.

    `reset(options={"episode_seed": s})` starts the very episode that row `s` of a batch would be; otherwise its seed
    is drawn from `np_random`. Either way `info["episode_seed"]` says which it is, and `info["is_success"]` at the end
    whether it succeeded.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, episodes: Episodes, render_mode: str | None = None) -> None:
        """Take over a batch of `episodes`, of which one row is used."""
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.episodes = episodes
        self.observation_space = episodes.single_observation_space
        self.action_space = episodes.single_action_space
        self.render_mode = render_mode
        self._renderer: Renderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        episode_seed = (options or {}).get("episode_seed")
        if episode_seed is None:
            episode_seed = draw_seed(self.np_random)
        obs = self.episodes.begin(np.array([episode_seed], np.int64))
        return obs[0], {"episode_seed": int(episode_seed)}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one step."""
        if not len(self.episodes.running):
            raise gym.error.ResetNeeded("the episode is over, or none was begun: call reset() first")
        if not self.action_space.contains(action):
            raise ValueError(f"action must lie in {self.action_space}, got {action!r}")
        obs, rewards, terminated, truncated = self.episodes.step(np.asarray(action)[None])
        over = bool(terminated[0] or truncated[0])
        info = {"is_success": bool(self.episodes.success[0])} if over else {}
        return obs[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def snapshot(self) -> Snapshot:
        """The state of the running episode, time included."""
        return self.episodes.snapshot()

    def restore(self, snapshot: Snapshot) -> NDArray[np.float32]:
        """Go on from a state taken by `snapshot`, here or in a row of a batch; its observation."""
        obs: NDArray[np.float32] = self.episodes.restore(snapshot)[0]
        return obs

    def render(self) -> NDArray[np.uint8] | None:
        """A picture (height, width, 3) of the state, also of the last one of an episode."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array' at gym.make")
            return None
        if self._renderer is None:
            self._renderer = self.episodes.make_renderer()
        return self._renderer.draw()

    def close(self) -> None:
        """Release the simulator and the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.episodes.close()


class EpisodeVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], Any, NDArray[Any]]):
    """`num_envs` episodes with Gymnasium's standard next-step reset: the step after an end starts a new episode."""

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, episodes: Episodes, num_envs: int) -> None:
        """Take over a batch of `episodes` and use `num_envs` rows of it."""
        self.episodes = episodes
        self.num_envs = num_envs
        self.single_observation_space = episodes.single_observation_space
        self.single_action_space = episodes.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # One generator per row, seeded as Gymnasium's SyncVectorEnv seeds its environments.
        self._generators = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._over = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode in every row."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise ValueError(f"one seed per environment: {self.num_envs} expected, got {len(seeds)}")
            for i, s in enumerate(seeds):
                if s is not None:
                    self._generators[i] = seeding.np_random(s)[0]
        self._over[:] = False
        return self.episodes.begin(self._draw(np.arange(self.num_envs))), {}

    def _draw(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([draw_seed(self._generators[i]) for i in rows], np.int64)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Act in the rows that run, restart those that ended at the step before."""
        running = self.episodes.running
        if len(running) == self.num_envs:
            obs, rewards, terminated, truncated = self.episodes.step(actions)
        else:
            obs = np.empty(self.observation_space.shape or (), np.float32)
            rewards = np.zeros(self.num_envs)
            terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
            if len(running):
                seen, paid, done, cut = self.episodes.step(actions[running])
                obs[running], rewards[running] = seen, paid
                terminated[running], truncated[running] = done, cut
            ended = np.flatnonzero(self._over)
            obs[ended] = self.episodes.restart(ended, self._draw(ended))
        self._over = terminated | truncated
        info: dict[str, Any] = {}
        if self._over.any():
            info = {"is_success": self.episodes.success & self._over, "_is_success": self._over.copy()}
        return obs, rewards, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Release the simulators."""
        self.episodes.close()
