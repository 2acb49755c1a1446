"""Our transitions against Gymnasium's own classes, over whole episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sppo.envs import episodes

Controller = Callable[[Any], Any]


def balance(state: Any) -> int:
    x, x_dot, theta, theta_dot = state
    return int(3 * theta + theta_dot + 0.1 * x + 0.3 * x_dot > 0)


def pump(state: Any) -> int:
    return 2 if state[1] >= 0 else 0


def swing_up(state: Any) -> Any:
    angle, speed = (state[0] + np.pi) % (2 * np.pi) - np.pi, state[1]
    if abs(angle) < 0.3:
        return np.clip([-10 * angle - 2 * speed], -2, 2)
    missing = 15 - (speed**2 / 2 + 15 * np.cos(angle))  # energy, up to a factor, that standing upright needs
    return np.array([2.0 * np.sign(speed * missing)])


@pytest.mark.parametrize("expert", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs", "controller"),
    [
        ("sppo/PrecisionCartPole-v0", "CartPole-v1", balance),
        ("sppo/MountainCar-v0", "MountainCar-v0", pump),
        ("sppo/Pendulum-v0", "Pendulum-v1", swing_up),
    ],
)
def test_classic_tasks_match_gymnasium(ours: str, theirs: str, controller: Controller, expert: bool) -> None:
    reference: Any = gym.make(theirs).unwrapped
    rng = np.random.default_rng(0)
    steps = 0
    for seed in range(5):
        batch: Any = episodes(ours)
        batch.begin([seed])
        reference.reset(seed=0)
        reference.state = batch.snapshot()["state"][0].copy()
        if theirs == "MountainCar-v0":
            reference.goal_position = 0.45
        while len(batch.running):
            if expert:
                action = controller(reference.state)
            elif isinstance(reference.action_space, gym.spaces.Discrete):
                action = int(rng.integers(reference.action_space.n))
            else:
                action = rng.uniform(-2, 2, 1)
            obs, _, terminated, _ = batch.step(np.array([action]))
            theirs_obs, _, theirs_terminated, _, _ = reference.step(action)
            np.testing.assert_allclose(batch.drawn_state(), reference.state, rtol=0, atol=1e-6)
            np.testing.assert_allclose(obs[0, :-1], theirs_obs, rtol=0, atol=1e-6)
            if batch.time.size:  # before the horizon, an end is the base environment's end
                assert not theirs_terminated
            steps += 1
        if expert:
            assert batch.success[0]
    assert steps > 5 * (100 if expert else 8)


def test_a_fallen_pole_ends_the_episode_when_gymnasiums_does() -> None:
    reference: Any = gym.make("CartPole-v1").unwrapped
    batch: Any = episodes("sppo/PrecisionCartPole-v0")
    for seed in range(20):
        batch.begin([seed])
        reference.reset(seed=0)
        reference.state = batch.snapshot()["state"][0].copy()
        rng = np.random.default_rng(seed)
        over = False
        while not over:
            action = int(rng.integers(2))
            _, rewards, terminated, _ = batch.step(np.array([action]))
            over = reference.step(action)[2]
            assert terminated[0] == over
        assert rewards[0] == 0 and not batch.success[0]


def test_a_step_does_not_depend_on_the_rows_beside_it() -> None:
    for env_id in ("sppo/PrecisionCartPole-v0", "sppo/MountainCar-v0", "sppo/Pendulum-v0"):
        wide: Any = episodes(env_id)
        wide.begin(np.arange(67))
        start = wide.snapshot()
        space = wide.single_action_space
        space.seed(0)
        plan = np.array([[space.sample() for _ in range(67)] for _ in range(5)])
        seen = [wide.step(a)[0] for a in plan]
        for row in (0, 33, 66):
            alone: Any = episodes(env_id)
            alone.restore({k: v[row : row + 1] for k, v in start.items()})
            for a, obs in zip(plan, seen, strict=True):
                np.testing.assert_array_equal(alone.step(a[row : row + 1])[0][0], obs[row])


def test_hopper_matches_gymnasium() -> None:
    pytest.importorskip("mujoco")
    reference: Any = gym.make("Hopper-v5").unwrapped
    batch: Any = episodes("sppo/Hopper-v0", horizon=300)
    compared = 0
    for seed, gain in ((0, 0.0), (1, 0.3), (2, 1.0)):
        batch.begin([seed])
        reference.reset(seed=0)
        data = batch._data[0]
        reference.set_state(data.qpos.copy(), data.qvel.copy())
        reference.data.qacc_warmstart[:] = data.qacc_warmstart
        rng = np.random.default_rng(seed)
        while len(batch.running):
            action = gain * rng.uniform(-1, 1, 3)
            obs, _, terminated, _ = batch.step(action[None])
            theirs_obs, _, fell, _, _ = reference.step(action)
            np.testing.assert_allclose(obs[0, :-1], theirs_obs, rtol=1e-6, atol=1e-6)
            if len(batch.running):
                assert not fell
            compared += 1
    assert compared > 60


def test_lunar_lander_matches_gymnasium_but_for_its_engine_noise() -> None:
    pytest.importorskip("Box2D")
    reference: Any = gym.make("LunarLander-v3").unwrapped
    batch = episodes("sppo/LunarLander-v0")
    for seed in range(3):
        obs = batch.begin([seed])
        np.testing.assert_array_equal(obs[0, :-1], reference.reset(seed=seed)[0])
        while len(batch.running):  # engines off: no noise enters
            obs, _, terminated, _ = batch.step(np.array([0]))
            theirs_obs, _, theirs_terminated, _, _ = reference.step(0)
            np.testing.assert_array_equal(obs[0, :-1], theirs_obs)
            assert terminated[0] == theirs_terminated


def test_lunar_lander_noise_depends_on_seed_and_step_alone() -> None:
    pytest.importorskip("Box2D")
    from sppo.envs.lunar_lander import _EngineNoise

    first, second = _EngineNoise(5), _EngineNoise(5)
    drawn = [first.uniform(-1, 1) for _ in range(4002)]
    assert drawn == [second.uniform(-1, 1) for _ in range(4002)]
    assert min(drawn) >= -1 and max(drawn) < 1 and abs(np.mean(drawn)) < 0.05
    # Rows that share a seed meet the same noise at a step, whatever they did before it.
    batch = episodes("sppo/LunarLander-v0")
    batch.begin([7, 7])
    batch.step(np.array([0, 1]))
    noise: list[Any] = [batch._envs[row].unwrapped._source for row in (0, 1)]  # type: ignore[attr-defined]
    assert noise[0]._numbers == noise[1]._numbers and len(noise[0]._numbers) == 1998
