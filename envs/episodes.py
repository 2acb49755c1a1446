"""A batch of episodes stepped in lockstep: the interface every task implements, and the rules of an outcome task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sppo.envs.render import Renderer

Snapshot = dict[str, NDArray[Any]]
"""Complete states of n episodes, time included: named arrays, all with leading axis n."""

StepResult = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""Observations (m, D), rewards, terminated, truncated (m,)."""


class Episodes(ABC):
    """A batch of episodes of one task, stepped in lockstep; only those still running are stepped.

    Everything kept per episode (time, seed, and the subclass's own state) is held for the running rows alone, in
    the order of `running`, and compacted when some end. A subclass says how to add, drop, save and load rows.
    """

    single_observation_space: spaces.Box
    single_action_space: spaces.Space[Any]

    def __init__(self, horizon: int) -> None:
        """`horizon`: steps after which an episode is over."""
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 step, got {horizon}")
        self.horizon = int(horizon)
        self._reset_rows(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def _reset_rows(self, seeds: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        self._running = np.arange(len(seeds))
        self._seeds = seeds.copy()
        self._t = times.copy()
        self._success = np.zeros(len(seeds), np.bool_)
        self._left = self._shortest()

    def _shortest(self) -> int:
        """Steps until the first running row reaches the horizon: an int to count down, cheaper than an array."""
        return self.horizon - int(self._t.max()) if len(self._t) else self.horizon

    @property
    def running(self) -> NDArray[np.int64]:
        """(m,) rows that have not ended, ascending."""
        return self._running

    @property
    def success(self) -> NDArray[np.bool_]:
        """(n,) True where the episode has ended in success."""
        return self._success

    @property
    def time(self) -> NDArray[np.int64]:
        """(m,) steps taken so far in the running rows."""
        return self._t

    def begin(self, seeds: ArrayLike) -> NDArray[np.float32]:
        """Start one episode per seed, its start state (and noise) a function of the seed; observations (n, D)."""
        seeds = _as_seeds(seeds)
        self._reset_rows(seeds, np.zeros(len(seeds), np.int64))
        self._clear(len(seeds))
        self._add(self._running, seeds)
        return self._observe()

    def restart(self, rows: ArrayLike, seeds: ArrayLike) -> NDArray[np.float32]:
        """Start fresh episodes in rows that have ended; their observations (len(rows), D)."""
        rows = np.atleast_1d(np.asarray(rows, np.int64))
        seeds = _as_seeds(seeds)
        if len(rows) != len(seeds):
            raise ValueError(f"one seed per row: got {len(rows)} rows and {len(seeds)} seeds")
        merged = np.concatenate([self._running, rows])
        order = np.argsort(merged)
        if (np.diff(merged[order]) == 0).any():
            raise ValueError("restart takes rows that have ended, each once")
        self._success[rows] = False
        self._running = merged
        self._seeds = np.concatenate([self._seeds, seeds])
        self._t = np.concatenate([self._t, np.zeros(len(rows), np.int64)])
        self._add(rows, seeds)
        self._select(order)
        return self._observe()[np.searchsorted(self._running, rows)]

    @abstractmethod
    def step(self, actions: NDArray[Any]) -> StepResult:
        """Act in the m running rows: observations (m, D), rewards, terminated, truncated (m,), in `running`'s order.

        Rows that ended leave `running`.
        """

    def drop(self, rows: NDArray[np.bool_]) -> None:
        """Stop stepping some of the m running rows: a mask in `running`'s order. They count as not successful."""
        self._select(np.flatnonzero(~rows))

    def snapshot(self) -> Snapshot:
        """States of the m running rows, in `running`'s order; `restore` goes on from them bit for bit."""
        return {"seed": self._seeds.copy(), "t": self._t.copy(), **self._save()}

    def restore(self, snapshot: Snapshot) -> NDArray[np.float32]:
        """Replace the batch by these n states, all running; observations (n, D)."""
        if missing := {"seed", "t", *self._saved} - snapshot.keys():
            raise ValueError(f"snapshot lacks {sorted(missing)}: was it made by another task?")
        times = np.asarray(snapshot["t"], np.int64)
        if len(times) and not (times.min() >= 0 and times.max() < self.horizon):
            raise ValueError(f"snapshot times must be in [0, {self.horizon}), got {times.min()} to {times.max()}")
        for name, width in self._saved.items():
            if (got := np.shape(snapshot[name])) != (len(times), *width):
                raise ValueError(f"snapshot's {name} must be {(len(times), *width)}, got {got}: made by another task?")
        self._reset_rows(np.asarray(snapshot["seed"], np.int64), times)
        self._clear(len(times))
        self._load(snapshot)
        return self._observe()

    def close(self) -> None:  # noqa: B027 - most tasks hold nothing to close
        """Release what the task holds outside Python's memory."""

    def make_renderer(self) -> Renderer:
        """What draws row 0 of the batch."""
        raise ValueError(f"{type(self).__name__} has no renderer")

    _saved: Mapping[str, tuple[int, ...]]
    """Names of the arrays in a snapshot beside `seed` and `t`, and their shapes without the leading axis."""

    @abstractmethod
    def _clear(self, n: int) -> None:
        """Forget all rows; n are to come."""

    @abstractmethod
    def _add(self, rows: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Append fresh episodes, kept in rows `rows` of the batch."""

    @abstractmethod
    def _keep(self, positions: NDArray[np.int64]) -> None:
        """Keep of the running rows those at `positions`, in that order."""

    @abstractmethod
    def _observe(self) -> NDArray[np.float32]:
        """Observations of the running rows, a new array."""

    @abstractmethod
    def _save(self) -> Snapshot:
        """Copies of the arrays named in `_saved`."""

    @abstractmethod
    def _load(self, snapshot: Snapshot) -> None:
        """Take over all rows of a snapshot."""

    def _select(self, positions: NDArray[np.int64]) -> None:
        """Keep of the running rows those at `positions`, in that order, in all that is kept per row."""
        self._running = self._running[positions]
        self._seeds = self._seeds[positions]
        self._t = self._t[positions]
        self._keep(positions)
        self._left = self._shortest()

    def _check_count(self, actions: NDArray[Any]) -> None:
        if len(actions) != len(self._t):
            raise ValueError(f"one action per running row: {len(self._t)} are running, got {len(actions)} actions")


class OutcomeEpisodes(Episodes):
    """A task judged once, at its end: reward 0 until then, then R in {0, 1}; the horizon's end is `terminated`.

    A subclass moves its state and says who has failed, who has reached a goal, and who satisfies the success rule.
    With `reward="dense"` it pays `_shaped` at every step and `success_bonus` on success, for training experts.
    """

    success_bonus = 0.0

    def __init__(self, horizon: int, time_in_obs: bool, reward: str, low: ArrayLike, high: ArrayLike) -> None:
        """`low`, `high`: (D,) bounds of the base observation; `time_in_obs` appends t / horizon to it."""
        if reward not in ("sparse", "dense"):
            raise ValueError(f"reward must be 'sparse' or 'dense', got {reward!r}")
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self._base_size = len(low)
        if time_in_obs:
            low, high = np.append(low, np.float32(0)), np.append(high, np.float32(1))
        self.single_observation_space = spaces.Box(low, high, dtype=np.float32)
        self._time_in_obs = time_in_obs
        self._obs_size = len(low)
        self._dense = reward == "dense"
        super().__init__(horizon)

    @abstractmethod
    def _simulate(self, actions: NDArray[Any]) -> None:
        """Move the running rows by one step, in place."""

    def _failed(self) -> NDArray[np.bool_] | None:
        """(m,) rows that failed at this step; None where none did."""
        return None

    def _reached(self) -> NDArray[np.bool_] | None:
        """(m,) rows that reached a goal that ends the episode; None where none did."""
        return None

    @abstractmethod
    def _judge(self) -> NDArray[np.bool_]:
        """(m,) rows that satisfy the success rule now, judged where the horizon ends."""

    @abstractmethod
    def _shaped(self) -> NDArray[np.float64]:
        """(m,) dense reward of the step just made."""

    @abstractmethod
    def _write_observation(self, out: NDArray[np.float32]) -> None:
        """Write the base observation into `out` (m, D)."""

    def _observe(self) -> NDArray[np.float32]:
        out = np.empty((len(self._t), self._obs_size), np.float32)
        if self._time_in_obs:
            self._write_observation(out[:, :-1])
            out[:, -1] = self._t / self.horizon
        else:
            self._write_observation(out)
        return out

    def step(self, actions: NDArray[Any]) -> StepResult:
        """See `Episodes.step`."""
        self._check_count(actions)
        self._simulate(actions)
        self._t += 1
        self._left -= 1
        failed, reached = self._failed(), self._reached()
        obs = self._observe()
        m = len(obs)
        rewards = self._shaped() if self._dense else np.zeros(m)
        truncated = np.zeros(m, np.bool_)
        if failed is None and reached is None and self._left > 0:
            return obs, rewards, np.zeros(m, np.bool_), truncated

        timeout = self._t >= self.horizon
        won = timeout & self._judge()
        ended = timeout
        if reached is not None:
            won |= reached
            ended = ended | reached
        if failed is not None:
            won &= ~failed
            ended = ended | failed
        rewards += won * (self.success_bonus if self._dense else 1.0)
        self._success[self._running[won]] = True
        self._select(np.flatnonzero(~ended))
        return obs, rewards, ended, truncated


class ArrayEpisodes(OutcomeEpisodes):
    """A task whose state is an array: (k, m) float64, one contiguous row per variable, so that physics broadcasts."""

    _variables: int
    _state: NDArray[np.float64]

    @abstractmethod
    def _start(self, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        """(k, n) start states."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._saved = {"state": (cls._variables,)}

    def drawn_state(self) -> NDArray[np.float64]:
        """(k,) state of the first running row, or the last one known where none runs."""
        return (self._state if self._state.shape[1] else self._ended_state)[:, 0]

    def _clear(self, n: int) -> None:
        self._state = np.empty((self._variables, 0))

    def _add(self, rows: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        self._state = np.ascontiguousarray(np.concatenate([self._state, self._start(seeds)], axis=1))

    def _keep(self, positions: NDArray[np.int64]) -> None:
        self._ended_state = self._state
        self._state = self._state.take(positions, axis=1)

    def _save(self) -> Snapshot:
        return {"state": self._state.T.copy()}

    def _load(self, snapshot: Snapshot) -> None:
        self._state = np.ascontiguousarray(np.asarray(snapshot["state"], np.float64).T)


def _as_seeds(seeds: ArrayLike) -> NDArray[np.int64]:
    seeds = np.atleast_1d(np.asarray(seeds))
    if seeds.ndim != 1 or seeds.dtype.kind not in "iu":
        raise ValueError(f"seeds must be integers (n,), got {seeds.dtype} of shape {seeds.shape}")
    return seeds.astype(np.int64)


def pick(table: NDArray[np.float64], actions: NDArray[Any]) -> NDArray[np.float64]:
    """table[actions] for discrete actions, refusing those past its end."""
    try:
        return table.take(actions)
    except (IndexError, TypeError):
        raise ValueError(
            f"actions must be integers in [0, {len(table)}), got {actions.dtype} up to {actions.max()}"
        ) from None
