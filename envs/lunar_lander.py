"""LunarLander on Box2D: Gymnasium's LunarLander-v3, judged once at the end, its engine noise a function of the seed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sppo.envs.noise import uniform
from sppo.envs.replay import GymEpisodes
from sppo.envs.sparse import SparseOutcome

try:
    from gymnasium.envs.box2d import lunar_lander as base
except (ImportError, gym.error.DependencyNotInstalled) as error:
    raise ImportError("sppo/LunarLander needs Box2D: pip install 'sppo[box2d]'") from error


class LunarLander(GymEpisodes):
    """Land between the flags and come to rest.

    Rows are stepped one after the other: Box2D cannot save its contacts' warm start, so a state is its start seed and
    the actions since, and restoring one replays them.
    """

    def __init__(
        self,
        *,
        horizon: int = 1000,
        max_offset: float = 0.4,
        max_speed: float = 0.05,
        start_force: float = base.INITIAL_RANDOM,
        gravity: float = 10.0,
        wind_power: float = 0.0,
        turbulence_power: float = 0.0,
        time_in_obs: bool = True,
        reward: str = "sparse",
    ) -> None:
        """Set the dials.

        Args:
            horizon: steps of 0.02 s.
            max_offset: largest |x| that counts as success, in half-widths of the view (the pad spans +-0.2).
            max_speed: if the horizon ends, both speeds must be below it, in the observation's units.
            start_force: the random push at the start is uniform in +-start_force, N, in x and y.
            gravity: m/s^2, below 12.
            wind_power: 0 (none) to 20, see Gymnasium's LunarLander.
            turbulence_power: 0 (none) to 2, see Gymnasium's LunarLander.
            time_in_obs: append t / horizon to the observation.
            reward: "sparse" or "dense" (Gymnasium's own reward).
        """
        if not 0 < gravity < 12:
            raise ValueError(f"gravity must be between 0 and 12 m/s^2, got {gravity}")
        self.max_offset = max_offset
        self.max_speed = max_speed

        def make() -> gym.Env[Any, Any]:
            env = SeededLander(
                start_force,
                gravity=-gravity,
                enable_wind=wind_power > 0 or turbulence_power > 0,
                wind_power=wind_power,
                turbulence_power=turbulence_power,
            )
            return SparseOutcome(env, self._landed, horizon, time_in_obs, reward)

        super().__init__(make, name="sppo/LunarLander")

    def _landed(self, env: gym.Env[Any, Any], obs: NDArray[np.float32], info: dict[str, Any]) -> bool:
        lander = env.unwrapped
        assert isinstance(lander, SeededLander)
        assert lander.lander is not None
        crashed = lander.game_over or abs(obs[0]) >= 1
        still = not lander.lander.awake or bool((np.abs(obs[2:4]) < self.max_speed).all())
        return bool(not crashed and still and (obs[6:8] > 0.5).all() and abs(obs[0]) < self.max_offset)


class SeededLander(base.LunarLander):
    """Gymnasium's lander with the engine noise of a step a function of the reset's seed and the step alone.

    So siblings, and continuations from the same seed, meet the same noise whatever they do.
    """

    def __init__(self, start_force: float = base.INITIAL_RANDOM, **kwargs: Any) -> None:
        """`start_force`: see `LunarLander`; `kwargs`: Gymnasium's."""
        super().__init__(**kwargs)
        gym.utils.EzPickle.__init__(self, start_force, **kwargs)
        self._start_scale = start_force / base.INITIAL_RANDOM
        self._source: Any = None

    @property
    def np_random(self) -> Any:
        """The generator while an episode starts, afterwards the noise of its seed."""
        return self._source if self._source is not None else super().np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._np_random = value

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; without a seed one is drawn."""
        self._source = None
        if seed is None:
            seed = int(super().np_random.integers(2**31))
        self._np_random = np.random.default_rng(seed)
        self._source = _Start(np.random.default_rng(seed), self._start_scale)
        obs, info = super().reset(seed=seed, options=options)
        self._source = _EngineNoise(seed)
        return obs, info


class _Start:
    """The numbers that shape the terrain and the first push."""

    def __init__(self, generator: np.random.Generator, scale: float) -> None:
        self._generator, self._scale = generator, scale

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        numbers = self._generator.uniform(low, high, size)
        return numbers * self._scale if high == base.INITIAL_RANDOM else numbers

    def integers(self, low: int, high: int) -> int:
        return int(self._generator.integers(low, high))


class _EngineNoise:
    """Two numbers per step, taken in turn; drawn in blocks, as one number costs as much as a thousand."""

    _block = 1000

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn = 0
        self._numbers: list[float] = []

    def uniform(self, low: float, high: float) -> float:
        if not self._numbers:
            steps = np.arange(self._drawn + 1, self._drawn + 1 + self._block)
            self._numbers = uniform(np.full(self._block, self._seed), 2, steps).ravel()[::-1].tolist()
            self._drawn += self._block
        return low + (high - low) * self._numbers.pop()
