"""Any Gymnasium environment as `Episodes`: stepped row by row, its snapshot the seed and the actions so far."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sppo.envs.episodes import Episodes, Snapshot, StepResult
from sppo.envs.render import EnvRenderer, Renderer


class GymEpisodes(Episodes):
    """Episodes of an environment that is deterministic given its reset's seed, which replay relies on.

    `terminated` and `truncated` are the environment's own (a `TimeLimit`'s end is `truncated`), and success is
    `info["is_success"]`. Environments are made as rows are needed, and kept.
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]], *, name: str = "", horizon: int | None = None) -> None:
        """Make the first environment and check that it fits.

        Args:
            make: makes one environment.
            name: what errors call it; default its id.
            horizon: steps; default the environment's own `horizon` or its spec's `max_episode_steps`.

        Raises:
            ValueError: spaces that are not supported, or no time limit.
        """
        self._make = make
        self._envs = [make()]
        self.judged = False  # until an episode's end says whether it is_success
        env = self._envs[0]
        self.name = name or (env.spec.id if env.spec else type(env.unwrapped).__name__)
        self.single_observation_space = _checked_observations(env.observation_space, self.name)
        self.single_action_space, self._first_action = _checked_actions(env.action_space, self.name)
        limit = horizon or _time_limit(env)
        if not limit:
            raise ValueError(
                f"{self.name} has no time limit and might never end: "
                "pass max_episode_steps=..., or wrap it in SparseOutcome with a horizon"
            )
        if isinstance(self.single_action_space, spaces.Discrete):
            self._action_dtype = np.min_scalar_type(int(self.single_action_space.n) - 1)
        else:
            self._action_dtype = np.dtype(self.single_action_space.dtype)
        self._action_shape: tuple[int, ...] = self.single_action_space.shape or ()
        self._actions = np.zeros((0, limit, *self._action_shape), self._action_dtype)
        self._saved = {"actions": (limit, *self._action_shape)}
        self._obs = np.zeros((0, *self.single_observation_space.shape), np.float32)
        super().__init__(limit)

    @classmethod
    def of_id(cls, env_id: str, **kwargs: Any) -> GymEpisodes:
        """Episodes of a registered id; `kwargs` go to `gymnasium.make`."""
        try:
            return cls(lambda: gym.make(env_id, disable_env_checker=True, **kwargs), name=env_id)
        except TypeError as error:
            if not kwargs:
                raise
            raise ValueError(f"{env_id} refuses an option{_hint(env_id, kwargs)}: {error}") from error

    def make_renderer(self) -> Renderer:
        """See `Episodes.make_renderer`."""
        return EnvRenderer(self._envs[0])

    def close(self) -> None:
        """See `Episodes.close`."""
        for env in self._envs:
            env.close()

    def step(self, actions: NDArray[Any]) -> StepResult:
        """See `Episodes.step`."""
        self._check_count(actions)
        m = len(self._t)
        self._check_actions(actions)
        rewards, terminated, truncated = np.zeros(m), np.zeros(m, np.bool_), np.zeros(m, np.bool_)
        won = np.zeros(m, np.bool_)
        self._actions[self._running, self._t] = actions
        obs = np.empty_like(self._obs)
        for i, (row, action) in enumerate(zip(self._running.tolist(), self._prepared(actions), strict=True)):
            obs[i], rewards[i], terminated[i], truncated[i], info = self._envs[row].step(action)
            if terminated[i] or truncated[i]:
                self.judged |= "is_success" in info
                won[i] = info.get("is_success", False)
        self._t += 1
        self._obs = obs
        self._check_finite(obs)
        self._check_finite(rewards[:, None], "outcome or reward")
        truncated |= (self._t >= self.horizon) & ~terminated
        ended = terminated | truncated
        if ended.any():
            self._success[self._running[won]] = True
            self._select(np.flatnonzero(~ended))
        return obs.copy(), rewards, terminated, truncated

    def _check_actions(self, actions: NDArray[Any]) -> None:
        if actions.shape[1:] != self._action_shape:
            raise ValueError(f"actions of {self.name} must be (m, *{self._action_shape}), got {actions.shape}")
        if isinstance(self.single_action_space, spaces.Discrete):
            if len(actions) and not (actions.min() >= 0 and actions.max() < self.single_action_space.n):
                raise ValueError(f"actions of {self.name} must be in [0, {self.single_action_space.n})")
        elif not np.isfinite(actions).all():
            raise ValueError(f"actions of {self.name} must be finite")

    def _prepared(self, actions: NDArray[Any]) -> list[Any]:
        """Actions as the environment takes them, with the rounding that their storage for replay has given them."""
        if isinstance(self.single_action_space, spaces.Discrete):
            return [self._first_action + int(a) for a in actions]
        return list(actions.astype(self._action_dtype))

    def _check_finite(self, values: NDArray[Any], what: str = "observation") -> None:
        if not np.isfinite(values).all():
            i = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise ValueError(
                f"{self.name} returned an {what} that is not finite, in row {self._running[i]} at step "
                f"{self._t[i]}: {values[i]}"
            )

    def _reset_env(self, row: int, seed: int) -> Any:
        # Some environments take 32-bit seeds only.
        return self._envs[row].reset(seed=int(seed) % 2**31)[0]

    def _clear(self, n: int) -> None:
        while len(self._envs) < n:
            self._envs.append(self._make())
        self._actions = np.zeros((n, self.horizon, *self._action_shape), self._action_dtype)
        self._obs = np.zeros((0, *self.single_observation_space.shape), np.float32)

    def _add(self, rows: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        self._actions[rows] = 0
        fresh = [self._reset_env(row, seed) for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True)]
        self._obs = np.concatenate([self._obs, np.array(fresh, np.float32).reshape(len(rows), -1)])
        if not np.isfinite(self._obs).all():
            raise ValueError(f"{self.name} returned a start observation that is not finite")

    def _keep(self, positions: NDArray[np.int64]) -> None:
        self._obs = self._obs[positions]

    def _observe(self) -> NDArray[np.float32]:
        return self._obs.copy()

    def _save(self) -> Snapshot:
        return {"actions": self._actions[self._running]}

    def _load(self, snapshot: Snapshot) -> None:
        self._actions = np.array(snapshot["actions"], self._action_dtype)
        obs = np.zeros((len(self._t), *self.single_observation_space.shape), np.float32)
        for row, (seed, t) in enumerate(zip(self._seeds.tolist(), self._t.tolist(), strict=True)):
            obs[row] = self._reset_env(row, seed)
            for action in self._prepared(self._actions[row, :t]):
                obs[row] = self._envs[row].step(action)[0]
        self._obs = obs


def _checked_observations(space: Any, name: str) -> spaces.Box:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"observations of {name} must be a Box (D,), got {space}: "
            "gymnasium.wrappers.FlattenObservation makes one of most spaces"
        )
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


def _checked_actions(space: Any, name: str) -> tuple[spaces.Space[Any], int]:
    """The space counted from 0, and the first action's number."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n)), int(space.start)
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        return space, 0
    raise ValueError(f"actions of {name} must be Discrete or a Box (A,) of floats, got {space}")


def _time_limit(env: gym.Env[Any, Any]) -> int:
    """The horizon of a SparseOutcome, else the registered time limit; 0 if there is neither."""
    if env.has_wrapper_attr("horizon"):
        return int(env.get_wrapper_attr("horizon"))
    return int((env.spec.max_episode_steps if env.spec else None) or 0)


def _hint(env_id: str, kwargs: dict[str, Any]) -> str:
    """The first option that the entry point does not name, with the nearest that it does."""
    entry = gym.spec(env_id).entry_point
    maker = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    known = [p for p in inspect.signature(maker).parameters if p != "self"] if maker else []
    for key in kwargs:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            return f" ({key!r}{f'; did you mean {near[0]!r}?' if near else ''})"
    return ""
