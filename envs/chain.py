"""SparseChain: a walk whose values are known in closed form, for exact tests."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sppo.envs.episodes import ArrayEpisodes, pick
from sppo.envs.noise import uniform
from sppo.envs.render import CellRenderer, Renderer


class SparseChain(ArrayEpisodes):
    """Action 1 moves one position to the right, action 0 stays; success is to stand at `goal` or beyond at the end."""

    _variables = 1

    def __init__(
        self,
        *,
        horizon: int = 8,
        goal: int = 6,
        start_spread: int = 4,
        slip: float = 0.0,
        time_in_obs: bool = True,
        reward: str = "sparse",
    ) -> None:
        """Set the dials.

        Args:
            horizon: steps.
            goal: least final position that counts as success, positions.
            start_spread: start positions are uniform on 0, ..., start_spread.
            slip: probability that a step does the opposite of the action, a function of the start seed and the step.
            time_in_obs: append t / horizon to the observation.
            reward: "sparse" or "dense" (1 / goal for each position gained).
        """
        super().__init__(horizon, time_in_obs, reward, [0.0], [(start_spread + horizon) / goal])
        self.single_action_space = spaces.Discrete(2)
        self.goal = goal
        self.start_spread = start_spread
        self.slip = slip
        self._moves = np.array([0.0, 1.0])
        self._last_moves = np.zeros(0)

    def value(self, p_right: float, position: ArrayLike, t: ArrayLike) -> NDArray[np.float64]:
        """Probability of success from `position` at time `t` if every later action is 1 with probability `p_right`.

        V(x, t) = P(Binomial(horizon - t, q) >= goal - x), q = p_right (1 - slip) + (1 - p_right) slip
        """
        q = p_right * (1 - self.slip) + (1 - p_right) * self.slip
        left, needed = np.broadcast_arrays(self.horizon - np.asarray(t), self.goal - np.asarray(position))
        values = [
            sum(comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(max(int(least), 0), n + 1))
            for n, least in zip(left.ravel().tolist(), needed.ravel().tolist(), strict=True)
        ]
        return np.array(values, np.float64).reshape(left.shape)

    @property
    def position(self) -> NDArray[np.int64]:
        """(m,) positions of the running rows."""
        return np.asarray(self._state[0], np.int64)

    def make_renderer(self) -> Renderer:
        """See `Episodes.make_renderer`."""
        return CellRenderer(lambda: int(self.drawn_state()[0]), self.start_spread + self.horizon + 1, self.goal)

    def _start(self, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.floor((self.start_spread + 1) * uniform(seeds, 1).T)

    def _simulate(self, actions: NDArray[Any]) -> None:
        moves = pick(self._moves, actions)
        if self.slip:
            slipped = uniform(self._seeds, 1, self._t + 1)[:, 0] < self.slip
            moves = np.where(slipped, 1 - moves, moves)
        self._last_moves = moves
        self._state[0] += moves

    def _judge(self) -> NDArray[np.bool_]:
        return np.asarray(self._state[0] >= self.goal, np.bool_)

    def _shaped(self) -> NDArray[np.float64]:
        return self._last_moves / self.goal

    def _write_observation(self, out: NDArray[np.float32]) -> None:
        out[:, 0] = self._state[0] / self.goal
