"""When an episode counts as a success, at the edges of each rule; and ids that do not exist."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from sppo.envs import episodes


def test_success_rules_at_their_edges() -> None:
    def outcome(env_id: str, state: list[float], action: Any, horizon: int, **options: Any) -> bool:
        batch: Any = episodes(env_id, horizon=horizon, **options)
        batch.restore({"seed": np.zeros(1, int), "t": np.array([horizon - 1]), "state": np.array([state])})
        rewards = batch.step(np.array([action]))[1]
        assert len(batch.running) == 0 and rewards[0] == float(batch.success[0])
        return bool(batch.success[0])

    degree = np.pi / 180
    # The angle moves by 0.02 s times its speed; the speed is zero, so it is judged as it stands.
    assert outcome("sppo/PrecisionCartPole-v0", [0, 0, 0.49 * degree, 0], 1, 200)
    assert not outcome("sppo/PrecisionCartPole-v0", [0, 0, -0.51 * degree, 0], 1, 200)
    assert outcome("sppo/PrecisionCartPole-v0", [0, 0, -0.51 * degree, 0], 1, 200, tolerance=0.6)
    assert not outcome("sppo/PrecisionCartPole-v0", [2.39, 1.0, 0, 0], 1, 200)  # upright, but off the track
    assert outcome("sppo/MountainCar-v0", [0.44, 0.05], 2, 1000)
    assert not outcome("sppo/MountainCar-v0", [0.44, 0.0], 2, 1000)
    assert outcome("sppo/MountainCar-v0", [0.44, 0.0], 2, 1000, goal_position=0.44)
    assert outcome("sppo/Pendulum-v0", [0.6, 0.0], [0.0], 1000)  # cos 0.6 = 0.83
    assert not outcome("sppo/Pendulum-v0", [0.7, 0.0], [0.0], 1000)  # cos 0.7 = 0.76
    assert outcome("sppo/Pendulum-v0", [0.7, 0.0], [0.0], 1000, min_cos=0.7)


def test_hopper_must_stand_ahead_of_min_x() -> None:
    pytest.importorskip("mujoco")
    for min_x, won in ((-0.1, True), (1.0, False)):
        batch = episodes("sppo/Hopper-v0", horizon=5, min_x=min_x)
        batch.begin([0])
        for _ in range(5):
            batch.step(np.zeros((1, 3)))
        assert batch.success[0] == won


def test_lunar_lander_needs_rest_legs_and_place() -> None:
    pytest.importorskip("Box2D")
    batch: Any = episodes("sppo/LunarLander-v0")
    batch.begin([0])
    env = batch._envs[0]
    landed = np.array([0.1, 0, 0, 0.01, 0, 0, 1, 1], np.float32)

    def judged(**changes: float) -> bool:
        obs = landed.copy()
        for name, value in changes.items():
            obs[int(name[1:])] = value
        return bool(batch._landed(env.env, obs, {}))

    assert judged()
    assert not judged(_6=0.0) and not judged(_7=0.0) and not judged(_0=0.41) and not judged(_3=-0.06)
    env.unwrapped.game_over = True
    assert not judged()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("sppo/Mountaincar", "sppo/MountainCar-v0"), ("CartPole-v9", "CartPole-v"), ("cartpole", "CartPole")],
)
def test_an_unknown_id_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean '.*{right}"):
        episodes(wrong)


def test_a_missing_simulator_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.delitem(sys.modules, "sppo.envs.hopper", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'sppo\[mujoco\]'"):
        episodes("sppo/Hopper-v0")
