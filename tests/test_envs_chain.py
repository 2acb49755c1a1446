"""SparseChain's closed-form values against play and against one step of the Bellman equation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sppo.envs import episodes
from sppo.envs.noise import uniform


def test_values_by_hand() -> None:
    chain: Any = episodes("sppo/SparseChain-v0", horizon=3, goal=2)
    # From 0, two of three coins must fall right: 3 p^2 (1 - p) + p^3.
    assert chain.value(0.5, 0, 0) == pytest.approx(0.5)
    assert chain.value(0.8, 0, 0) == pytest.approx(3 * 0.64 * 0.2 + 0.512)
    assert chain.value(0.8, 1, 2) == pytest.approx(0.8)
    assert chain.value(0.8, 0, 2) == 0 and chain.value(0.8, 2, 1) == 1
    np.testing.assert_array_equal(chain.value(0.3, [1, 2, 3], 3), [0, 1, 1])  # at the end: the outcome itself


def test_values_satisfy_the_bellman_equation() -> None:
    chain: Any = episodes("sppo/SparseChain-v0", slip=0.1)
    p = 0.7
    q = 0.7 * 0.9 + 0.3 * 0.1
    x, t = np.meshgrid(np.arange(8), np.arange(chain.horizon))
    expected = q * chain.value(p, x + 1, t + 1) + (1 - q) * chain.value(p, x, t + 1)
    np.testing.assert_allclose(chain.value(p, x, t), expected, atol=1e-12)


@pytest.mark.parametrize("slip", [0.0, 0.15])
def test_values_are_what_play_gives(slip: float) -> None:
    chain: Any = episodes("sppo/SparseChain-v0", slip=slip)
    n = 40_000
    chain.begin(np.arange(n))
    start = chain.position
    assert np.bincount(start).min() > 0.19 * n and start.max() == 4
    rng = np.random.default_rng(0)
    while len(chain.running):
        chain.step((rng.random(len(chain.running)) < 0.6).astype(int))
    for x in range(5):
        # Four standard errors of a mean over about n / 5 episodes.
        assert chain.success[start == x].mean() == pytest.approx(chain.value(0.6, x, 0), abs=0.023)


def test_noise_is_uniform_and_separate_by_seed_step_and_position() -> None:
    numbers = uniform(np.arange(-500, 500), 4)
    assert numbers.shape == (1000, 4) and numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02 and abs(numbers.std() - 12**-0.5) < 0.02
    assert len(np.unique(np.concatenate([numbers.ravel(), uniform(np.arange(-500, 500), 4, 1).ravel()]))) == 8000
    assert abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.1
    np.testing.assert_array_equal(uniform([3, 4], 2, [1, 2])[1], uniform(4, 2, 2)[0])
