"""stable-baselines3's vector environment over `Episodes`; imported only by those who have stable-baselines3."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from sppo.envs.episodes import Episodes


class EpisodeVecEnv(VecEnv):
    """stable-baselines3's view of `Episodes`: a row that ends starts anew within the same step."""

    def __init__(self, batch: Episodes, num_envs: int, seed: int) -> None:
        """Take over `batch` and use `num_envs` rows of it; `seed`: of the episodes' seeds."""
        super().__init__(num_envs, batch.single_observation_space, batch.single_action_space)
        self.batch = batch
        self._generator = np.random.default_rng(seed)
        self._actions: NDArray[Any] = np.zeros(0)
        self._returns = np.zeros(num_envs)

    def _draw(self, n: int) -> NDArray[np.int64]:
        return self._generator.integers(2**63 - 1, size=n)

    def reset(self) -> NDArray[np.float32]:
        """Start an episode in every row."""
        self._returns[:] = 0
        return self.batch.begin(self._draw(self.num_envs))

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the step to come."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Make the step."""
        times = self.batch.time + 1
        obs, rewards, terminated, truncated = self.batch.step(self._actions)
        self._returns += rewards
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over = terminated | truncated
        ended = np.flatnonzero(over)
        if len(ended):
            for row in ended:
                infos[row] = {
                    "terminal_observation": obs[row].copy(),
                    "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
                    "episode": {"r": self._returns[row], "l": int(times[row])},
                    "is_success": bool(self.batch.success[row]),
                }
            self._returns[ended] = 0
            obs[ended] = self.batch.restart(ended, self._draw(len(ended)))
        return obs, rewards.astype(np.float32), over, infos

    def close(self) -> None:
        """Release the simulators."""
        self.batch.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """One value for all rows: there is one batch."""
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not supported."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Not supported."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No row is wrapped."""
        return [False] * self.num_envs
