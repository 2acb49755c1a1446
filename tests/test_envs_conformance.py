"""What every id must do: Gymnasium's checks, seeding, snapshots, the meaning of an end, dials and bad input."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sppo.agents import protocols
from sppo.envs import Episodes, episodes

NEEDS = {"Hopper": "mujoco", "LunarLander": "Box2D"}
NAMES = ["PrecisionCartPole", "MountainCar", "Hopper", "LunarLander", "Pendulum", "SparseChain"]
# A change of each dial, and a seed's episode that it must change.
DIALS: dict[str, dict[str, Any]] = {
    "PrecisionCartPole": {"start_spread": 0.01, "gravity": 5.0, "force": 5.0, "pole_length": 1.0},
    "MountainCar": {"start_position": -0.4, "start_spread": 0.01, "force": 0.002, "gravity": 0.002},
    "Hopper": {"start_spread": 1e-4, "gravity": 5.0, "strength": 0.5},
    "LunarLander": {"start_force": 10.0, "gravity": 5.0, "wind_power": 10.0, "turbulence_power": 1.0},
    "Pendulum": {"start_angle_spread": 0.1, "start_speed_spread": 0.1, "gravity": 5.0, "max_torque": 0.1},
    "SparseChain": {"start_spread": 30, "slip": 1.0, "goal": 3},
}


def needed(name: str) -> Any:
    missing = name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{NEEDS.get(name)} is not installed"))


every_task = pytest.mark.parametrize("name", [needed(n) for n in NAMES])
every_id = pytest.mark.parametrize("env_id", [
    pytest.param(f"sppo/{n}{suffix}-v0", marks=needed(n).marks) for n in NAMES for suffix in ("", "-dense")
])  # fmt: skip


def plan(batch: Episodes, steps: int, rows: int, seed: int = 0) -> np.ndarray:
    """Actions (steps, rows), gentle enough that episodes last."""
    space = batch.single_action_space
    rng = np.random.default_rng(seed)
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=(steps, rows))
    return 0.2 * rng.uniform(-1, 1, (steps, rows, *(space.shape or ()))).astype(np.float32)


def play(batch: Episodes, actions: np.ndarray) -> list[Any]:
    """Step with actions (steps, n) until all have ended; what was returned and the rows it was for."""
    out = []
    for row_actions in actions:
        rows = batch.running
        if not len(rows):
            break
        out.append((rows, *batch.step(row_actions[rows])))
    return out


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for left, right in zip(x, y, strict=True):
            np.testing.assert_array_equal(left, right)


@every_id
def test_gymnasiums_own_checks(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations
        env = gym.make(env_id, render_mode="rgb_array")
        check_env(env.unwrapped)
    env.close()


@every_task
def test_pictures(name: str) -> None:
    env = gym.make(f"sppo/{name}-v0", render_mode="rgb_array", horizon=30)
    env.reset(seed=0)
    first, over = np.asarray(env.render()), False
    assert first.ndim == 3 and first.shape[2] == 3 and first.dtype == np.uint8
    env.action_space.seed(1)
    while not over:
        over = env.step(env.action_space.sample())[2]
    assert not np.array_equal(first, np.asarray(env.render()))
    env.close()


@every_id
def test_same_seeds_and_actions_give_the_same_episodes(env_id: str) -> None:
    one, two = episodes(env_id), episodes(env_id)
    assert isinstance(one, protocols.Episodes)
    seeds = np.array([3, 1, 2**40 + 1, 3])
    obs = one.begin(seeds)
    two.begin([9, 9])
    two.step(plan(two, 1, 2)[0])
    np.testing.assert_array_equal(obs, two.begin(seeds))
    assert obs.dtype == np.float32 and obs.shape == (4, *(one.single_observation_space.shape or ()))
    np.testing.assert_array_equal(obs[0], obs[3])
    if "Chain" not in env_id:
        assert not np.array_equal(obs[0], obs[1])
    actions = plan(one, 60, 4)
    assert_same(play(one, actions), play(two, actions))


@every_task
@pytest.mark.parametrize("rows", [1, 5])
def test_a_snapshot_resumes_bit_for_bit(name: str, rows: int) -> None:
    options = {"horizon": 45} if name != "SparseChain" else {"horizon": 45, "slip": 0.2}
    batch = episodes(f"sppo/{name}-v0", **options)
    batch.begin(np.arange(rows))
    actions = plan(batch, 45, rows)
    whole = play(batch, actions)
    for t in range(0, len(whole), 10):
        batch.begin(np.arange(rows))
        play(batch, actions[:t])
        running = batch.running.copy()
        snapshot = batch.snapshot()
        assert all(len(array) == len(running) for array in snapshot.values())
        np.testing.assert_array_equal(snapshot["t"], t)
        fresh = episodes(f"sppo/{name}-v0", **options)
        obs = fresh.restore({k: v.copy() for k, v in snapshot.items()})
        if t:
            survivors = np.isin(whole[t - 1][0], running)
            np.testing.assert_array_equal(obs, whole[t - 1][1][survivors])
        resumed = play(fresh, actions[t:][:, running])
        for (rows_now, *got), (rows_then, *expected) in zip(resumed, whole[t:], strict=True):
            np.testing.assert_array_equal(running[rows_now], rows_then)
            for left, right in zip(got, expected, strict=True):
                np.testing.assert_array_equal(left, right)


@every_task
def test_snapshots_are_joined_repeated_and_mixed_in_time(name: str) -> None:
    batch = episodes(f"sppo/{name}-v0")
    batch.begin([0, 1])
    early = batch.snapshot()
    play(batch, plan(batch, 5, 2))
    late = batch.snapshot()
    joined = {k: np.concatenate([early[k], np.repeat(late[k], 2, axis=0)]) for k in early}
    obs = batch.restore(joined)
    np.testing.assert_array_equal(batch.time, [0, 0, 5, 5, 5, 5])
    np.testing.assert_array_equal(obs[2], obs[3])
    np.testing.assert_allclose(obs[:, -1], batch.time / batch.horizon, rtol=1e-6)
    step = batch.step(np.repeat(plan(batch, 1, 1)[0], 6, axis=0))
    np.testing.assert_array_equal(step[0][2], step[0][3])


@every_task
def test_restart_leaves_the_running_rows_alone(name: str) -> None:
    batch = episodes(f"sppo/{name}-v0", horizon=12)
    late = episodes(f"sppo/{name}-v0", horizon=12)
    fresh = batch.begin([0, 1, 2])
    snapshot = batch.snapshot()
    late.restore({k: v[:1] for k, v in snapshot.items()})
    late.step(plan(late, 1, 1)[0])
    step_before = late.snapshot()
    both = {k: np.concatenate([step_before[k], snapshot[k][1:]]) for k in snapshot}
    batch.restore(both)
    actions = plan(batch, 30, 3)
    ended = False
    for row_actions in actions:
        rows = batch.running
        *_, terminated, _ = batch.step(row_actions[rows])
        if terminated.any() and len(batch.running):
            others = batch.snapshot()
            gone = rows[terminated]
            np.testing.assert_array_equal(batch.restart(gone, gone), fresh[gone])
            np.testing.assert_array_equal(batch.running, [0, 1, 2])
            assert not batch.success.any()
            after = batch.snapshot()
            for key, value in others.items():
                np.testing.assert_array_equal(after[key][~np.isin([0, 1, 2], gone)], value)
            ended = True
            break
    assert ended


@every_task
def test_the_horizon_terminates_and_pays_the_outcome_once(name: str) -> None:
    batch = episodes(f"sppo/{name}-v0", horizon=20)
    batch.begin(np.arange(8))
    rewards, lengths = np.zeros(8), np.zeros(8, int)
    for rows, _, reward, terminated, truncated in play(batch, plan(batch, 20, 8)):
        assert not truncated.any()
        assert (reward[~terminated] == 0).all()
        rewards[rows] += reward
        lengths[rows] += 1
    assert len(batch.running) == 0 and lengths.max() <= 20
    np.testing.assert_array_equal(rewards, batch.success.astype(float))


@every_task
def test_time_is_the_last_observation(name: str) -> None:
    timed, base = episodes(f"sppo/{name}-v0"), episodes(f"sppo/{name}-v0", time_in_obs=False)
    with_time, without = timed.begin([4]), base.begin([4])
    assert with_time.shape[1] == without.shape[1] + 1 == (timed.single_observation_space.shape or ())[0]
    for t, actions in enumerate(plan(timed, 5, 1), 1):
        with_time, without = timed.step(actions)[0], base.step(actions)[0]
        np.testing.assert_array_equal(with_time[:, :-1], without)
        np.testing.assert_allclose(with_time[0, -1], t / timed.horizon, rtol=1e-6)


@every_id
def test_single_and_vector_environments_agree_with_the_batch(env_id: str) -> None:
    batch = episodes(env_id, horizon=12)
    obs = batch.begin([5, 6])
    actions = plan(batch, 12, 2)
    env = gym.make(env_id, horizon=12, disable_env_checker=True)
    seen = play(batch, actions)
    for row, seed in enumerate((5, 6)):
        single, info = env.reset(options={"episode_seed": seed})
        assert info["episode_seed"] == seed
        np.testing.assert_array_equal(single, obs[row])
        for t, (rows, batch_obs, rewards, terminated, truncated) in enumerate(seen):
            if row not in rows:
                break
            at = list(rows).index(row)
            got = env.step(actions[t, row])
            np.testing.assert_array_equal(got[0], batch_obs[at])
            assert got[1:4] == (rewards[at], terminated[at], truncated[at])
            assert got[4] == ({"is_success": bool(batch.success[row])} if terminated[at] else {})

    ours = gym.make_vec(env_id, num_envs=3, horizon=12)
    theirs = gym.make_vec(env_id, num_envs=3, horizon=12, vectorization_mode="sync")
    np.testing.assert_array_equal(ours.reset(seed=11)[0], theirs.reset(seed=11)[0])
    for row_actions in plan(batch, 30, 3, seed=1):  # past several resets
        for left, right in zip(ours.step(row_actions)[:4], theirs.step(row_actions)[:4], strict=True):
            np.testing.assert_array_equal(left, right)
    ours.close()
    theirs.close()


@every_task
def test_reset_seed_and_continued_snapshot_of_the_single_environment(name: str) -> None:
    env: Any = gym.make(f"sppo/{name}-v0", disable_env_checker=True)
    first, info = env.reset(seed=3)
    again, info_again = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert info == info_again and env.reset()[1] != info
    env.reset(seed=3)
    actions = plan(env.unwrapped.episodes, 6, 1)[:, 0]
    for a in actions[:3]:
        env.step(a)
    snapshot = env.unwrapped.snapshot()
    rest = [env.step(a)[0] for a in actions[3:]]
    env.unwrapped.restore(snapshot)
    np.testing.assert_array_equal(rest, [env.step(a)[0] for a in actions[3:]])


@every_task
def test_each_dial_changes_the_task(name: str) -> None:
    default = episodes(f"sppo/{name}-v0")
    actions = plan(default, 8, 4)

    def observed(**options: Any) -> list[np.ndarray]:
        batch = episodes(f"sppo/{name}-v0", **options)
        return [batch.begin(np.arange(4)), *(step[1] for step in play(batch, actions))]

    unchanged = observed()
    for dial, value in DIALS[name].items():
        changed = observed(**{dial: value})
        assert any(a.shape != b.shape or (a != b).any() for a, b in zip(unchanged, changed, strict=False)), dial


@every_task
def test_bad_input_is_refused_with_a_reason(name: str) -> None:
    batch = episodes(f"sppo/{name}-v0")
    batch.begin([0, 1])
    actions = plan(batch, 1, 3)[0]
    with pytest.raises(ValueError, match="2 are running, got 3"):
        batch.step(actions)
    if isinstance(batch.single_action_space, gym.spaces.Discrete):
        with pytest.raises(ValueError, match="must be"):
            batch.step(np.array([0, 99]))
    else:
        with pytest.raises(ValueError, match="finite"):
            batch.step(np.full_like(actions[:2], np.nan))
    with pytest.raises(ValueError, match="lacks"):
        batch.restore({"seed": np.zeros(1, int), "t": np.zeros(1, int)})
    with pytest.raises(ValueError, match="made by another task"):
        batch.restore({k: v if v.ndim == 1 else np.repeat(v, 2, axis=1) for k, v in batch.snapshot().items()})
    with pytest.raises(ValueError, match="times must be"):
        batch.restore({**batch.snapshot(), "t": np.array([0, batch.horizon])})
    with pytest.raises(ValueError, match="integers"):
        batch.begin([0.5])
    with pytest.raises(ValueError, match="rows that have ended"):
        batch.restart([0], [1])
    with pytest.raises(ValueError, match="horizon"):
        episodes(f"sppo/{name}-v0", horizon=0)
    with pytest.raises(ValueError, match="'sparse' or 'dense'"):
        episodes(f"sppo/{name}-v0", reward="none")
    with pytest.raises(ValueError, match="no option 'horizn'; did you mean 'horizon'"):
        gym.make(f"sppo/{name}-v0", horizn=3)
