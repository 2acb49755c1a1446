"""SparseOutcome: turn any Gymnasium environment into a task judged once, at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Success = Callable[[gym.Env[Any, Any], Any, dict[str, Any]], bool]
"""success(env, obs, info): called once, when the episode ends, with the environment's own last observation and info."""


class SparseOutcome(gym.Wrapper[NDArray[np.float32], Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Reward 0 until the episode ends (the environment's end, its time limit, or `horizon`), then 1 or 0.

    Every end is `terminated`: the limit is part of the task, so the observation holds t / horizon unless
    `time_in_obs=False`. `info["is_success"]` says how it was judged.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        success: Success,
        horizon: int,
        time_in_obs: bool = True,
        reward: str = "sparse",
    ) -> None:
        """Wrap `env`.

        Args:
            env: observations must be a Box (D,).
            success: judges the end of an episode.
            horizon: steps.
            time_in_obs: append t / horizon to the observation.
            reward: "dense" keeps the environment's own reward, for training an expert.
        """
        # Not deep-copied: `success` may be a method of something that cannot be.
        gym.utils.RecordConstructorArgs.__init__(
            self, _disable_deepcopy=True, success=success, horizon=horizon, time_in_obs=time_in_obs, reward=reward
        )
        super().__init__(env)
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        if reward not in ("sparse", "dense"):
            raise ValueError(f"reward must be 'sparse' or 'dense', got {reward!r}")
        base = env.observation_space
        if not isinstance(base, spaces.Box) or len(base.shape) != 1:
            raise ValueError(f"observations must be a Box (D,), got {base}: wrap it in FlattenObservation first")
        low, high = base.low.astype(np.float32), base.high.astype(np.float32)
        if time_in_obs:
            low, high = np.append(low, np.float32(0)), np.append(high, np.float32(1))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.horizon = horizon
        self._judge = success
        self._time_in_obs = time_in_obs
        self._dense = reward == "dense"
        self._t = 0

    def _observation(self, obs: Any) -> NDArray[np.float32]:
        if not self._time_in_obs:
            return np.asarray(obs, np.float32)
        out = np.empty(len(obs) + 1, np.float32)
        out[:-1], out[-1] = obs, self._t / self.horizon
        return out

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._t = 0
        return self._observation(obs), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one step."""
        obs, base_reward, terminated, truncated, info = self.env.step(action)
        self._t += 1
        over = bool(terminated or truncated or self._t >= self.horizon)
        reward = float(base_reward) if self._dense else 0.0
        if over:
            won = bool(self._judge(self.env, obs, info))
            info = {**info, "is_success": won}
            if not self._dense:
                reward = float(won)
        return self._observation(obs), reward, over, False, info
