"""Other people's environments: SparseOutcome, GymEpisodes, and the environments that they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from sppo.envs import GymEpisodes, SparseOutcome, episodes


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_the_example_in_the_docs(root: Path) -> None:
    text = (root / "docs" / "ENVIRONMENTS.md").read_text()
    code = re.search(r"```python\n(.*?register\(.*?)```", text, re.S)
    assert code
    scope: dict[str, Any] = {}
    try:
        exec(code.group(1), scope)
        check_env(scope["make"](), skip_render_check=True)
        batch = episodes("AcrobotUp-v0")
        assert batch.horizon == 200
        obs = batch.begin([0, 1])
        assert obs.shape == (2, 7)
        total, rng = np.zeros(2), np.random.default_rng(0)
        while len(batch.running):
            rows = batch.running
            obs, rewards, terminated, truncated = batch.step(rng.integers(3, size=len(rows)))
            total[rows] += rewards
            assert not truncated.any()
        np.testing.assert_array_equal(total, batch.success)
    finally:
        gym.registry.pop("AcrobotUp-v0", None)


def test_an_id_may_name_the_module_that_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_tasks.py").write_text(
        "import gymnasium as gym\ngym.register('Mine-v0', entry_point='gymnasium.envs.classic_control:AcrobotEnv', "
        "max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert episodes("my_own_tasks:Mine-v0").horizon == 7
    finally:
        gym.registry.pop("Mine-v0", None)
    with pytest.raises(ValueError, match="names a module that cannot be imported"):
        episodes("no_such_module:Mine-v0")


class Counter(gym.Env[Any, Any]):
    """Observes how often it was stepped and what its last action was; ends at `end`, or never."""

    def __init__(self, end: int = 10**9, nan_at: int = -1, action_space: Any = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = action_space or spaces.Discrete(3, start=-1)
        self.end, self.nan_at, self.t = end, nan_at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.array([0.0, self.np_random.random()]), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        seen = np.nan if self.t == self.nan_at else float(np.sum(action))
        return np.array([self.t, seen]), 1.5, self.t >= self.end, False, {"t": self.t}


def test_ends_and_success_pass_through() -> None:
    batch = GymEpisodes(lambda: gym.wrappers.TimeLimit(Counter(end=3), 5), horizon=5)
    batch.begin([0, 1])
    for t in (1, 2):
        obs, rewards, terminated, truncated = batch.step(np.array([0, 2]))
        np.testing.assert_array_equal(obs, [[t, -1], [t, 1]])  # actions are counted from 0
        np.testing.assert_array_equal(rewards, 1.5)
        assert not terminated.any() and not truncated.any()
    _, _, terminated, truncated = batch.step(np.array([0, 2]))
    assert terminated.all() and not truncated.any() and not batch.success.any() and len(batch.running) == 0


def test_a_time_limit_is_truncation_but_sparse_outcomes_horizon_is_not() -> None:
    limited = GymEpisodes(lambda: Counter(), horizon=2)
    limited.begin([0])
    limited.step(np.array([0]))
    _, _, terminated, truncated = limited.step(np.array([0]))
    assert truncated[0] and not terminated[0]

    judged: list[Any] = []

    def success(env: gym.Env[Any, Any], obs: Any, info: dict[str, Any]) -> bool:
        judged.append((obs.tolist(), info["t"]))
        return bool(info["t"] == 2)

    task = GymEpisodes(lambda: SparseOutcome(Counter(), success, 2))
    obs = task.begin([0])
    np.testing.assert_array_equal(obs[0, 2:], [0])
    obs, rewards, *_ = task.step(np.array([1]))
    assert rewards[0] == 0 and not judged
    np.testing.assert_array_equal(obs[0], [1, 0, 0.5])
    _, rewards, terminated, truncated = task.step(np.array([1]))
    assert rewards[0] == 1 and terminated[0] and not truncated[0] and task.success[0]
    assert judged == [([2.0, 0.0], 2)]


def test_sparse_outcome_judges_a_time_limit_and_can_keep_the_dense_reward() -> None:
    def make(reward: str) -> SparseOutcome:
        return SparseOutcome(gym.wrappers.TimeLimit(Counter(), 3), lambda *_: True, 10, reward=reward)

    for reward, expected in (("sparse", 1.0), ("dense", 1.5)):
        env = make(reward)
        env.reset(seed=0)
        env.step(0)
        env.step(0)
        _, last, terminated, truncated, info = env.step(0)
        assert (last, terminated, truncated, info["is_success"]) == (expected, True, False, True)


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "MountainCarContinuous-v0"])
def test_any_registered_environment_resumes_bit_for_bit(env_id: str) -> None:
    batch = episodes(env_id)
    batch.begin([0, 1, 2])
    rng = np.random.default_rng(0)
    discrete = isinstance(batch.single_action_space, spaces.Discrete)
    actions = rng.integers(3, size=(30, 3)) if discrete else rng.uniform(-1, 1, (30, 3, 1))
    for a in actions[:10]:
        batch.step(a)
    snapshot = batch.snapshot()
    first = [batch.step(a) for a in actions[10:]]
    other = episodes(env_id)
    other.restore(snapshot)
    for left, right in zip(first, [other.step(a) for a in actions[10:]], strict=True):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_array_equal(x, y)


def test_it_agrees_with_gymnasium_row_by_row() -> None:
    batch = episodes("CartPole-v1")
    obs = batch.begin([3, 4])
    for row, seed in enumerate((3, 4)):
        env = gym.make("CartPole-v1")
        np.testing.assert_array_equal(env.reset(seed=seed)[0], obs[row])
    rng = np.random.default_rng(0)
    total = np.zeros(2)
    while len(batch.running):
        rows = batch.running
        total[rows] += batch.step(rng.integers(2, size=len(rows)))[1]
    assert (total >= 8).all() and (total < 500).all()


def test_unsupported_environments_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"has no time limit.*SparseOutcome"):
        GymEpisodes(lambda: Counter())
    with pytest.raises(ValueError, match="Discrete or a Box"):
        GymEpisodes(lambda: Counter(action_space=spaces.MultiDiscrete([2, 2])), horizon=5)
    with pytest.raises(ValueError, match="FlattenObservation"):
        episodes("Blackjack-v1")
    with pytest.raises(ValueError, match="FlattenObservation"):
        SparseOutcome(gym.make("Blackjack-v1"), lambda *_: True, 10)
    with pytest.raises(ValueError, match=r"'grvity'; did you mean 'gravity'"):
        episodes("LunarLander-v3", grvity=1)


def test_an_observation_that_is_not_finite_is_named() -> None:
    batch = GymEpisodes(lambda: Counter(nan_at=3), horizon=9, name="Counter-v0")
    batch.begin([0, 1])
    batch.step(np.zeros(2, int))
    batch.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="Counter-v0 returned an observation that is not finite, in row 0 at step 3"):
        batch.step(np.zeros(2, int))
