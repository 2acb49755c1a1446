"""Advantages and values by position in the episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sppo.agents import AGENTS
from sppo.agents.diagnostics import explained_variance
from sppo.envs import episodes
from sppo.experiments.evidence.exact import ExactCritic, solve
from sppo.experiments.evidence.positions import POSITIONS, brier, explained, mean_by_outcome, profile


def agent_of(name: str) -> Any:
    return AGENTS[name](episodes("sppo/SparseChain-v0", horizon=10, goal=7), net_arch=(8,), episodes_per_update=64)


def test_profiles_of_known_values() -> None:
    """The true value's advantage is R - V: V starts near the mean and ends within a step of the outcome."""
    agent = agent_of("ppo")
    value, _ = solve(agent.sampler.env, agent.policy)
    agent.critic = ExactCritic(agent.sampler.env, value)
    found = profile(agent, 4)
    won = found["outcomes"] == 1
    assert found["lengths"].tolist() == [10] * 256
    assert found["advantages"].shape == found["values"].shape == (256, 11)
    np.testing.assert_allclose(
        found["advantages"] + found["values"], found["outcomes"][:, None].repeat(11, 1), atol=2e-3
    )
    # Ten steps at eleven positions: the first two are the steps 0 and 1, the last two 8 and 9.
    starts = {round(v, 3) for v in value[0, :5].tolist()}
    assert set(found["values"][:, 0]) <= starts
    # Before the last step success is sure, impossible, or a coin's.
    np.testing.assert_allclose(np.abs(found["values"][:, -1][won & (found["values"][:, -1] < 0.9)] - 0.5), 0, atol=0.01)
    curve = [interval.estimate for interval in explained(found["values"], found["outcomes"])]
    assert curve[0] < 0.5 < curve[-1] < 1 and curve == sorted(curve)


def test_one_column_where_nothing_changes_along_an_episode() -> None:
    found = profile(agent_of("sppo"), 1)
    assert found["advantages"].shape == found["values"].shape == (64, 1)
    assert "values" not in profile(agent_of("rloo"), 1)


def test_positions_follow_each_rows_own_length() -> None:
    from sppo.experiments.evidence.positions import _at_positions

    x = torch.arange(21.0).expand(3, -1)
    found = _at_positions(x, torch.tensor([21, 11, 1]))
    assert found.tolist() == [list(range(0, 21, 2)), list(range(11)), [0] * 11]
    assert len(POSITIONS) == 11


def test_figures_by_hand() -> None:
    advantages = np.array([[0.2, 0.1], [0.4, 0.1], [-0.6, -0.2]])
    outcomes = np.array([1.0, 1.0, 0.0])
    found = mean_by_outcome(advantages, outcomes)
    assert [i.estimate for i in found[True]] == pytest.approx([0.3, 0.1])
    assert found[True][0][1:] == (0.2, 0.4) and found[False][0] == (-0.6, -0.6, -0.6)
    values = 1 - advantages
    values[2] = -advantages[2]
    # (0.04 + 0.16 + 0.36) / 3 and (0.01 + 0.01 + 0.04) / 3
    assert [i.estimate for i in brier(values, outcomes)] == pytest.approx([0.56 / 3, 0.02])


def test_explained_variance_is_the_logged_one(rng: np.random.Generator) -> None:
    outcomes = (rng.random(300) < 0.4).astype(float)
    values = np.stack([0.4 + 0.3 * (outcomes - 0.4) + 0.1 * rng.standard_normal(300), np.full(300, 0.4)], 1)
    some, none = explained(values, outcomes)
    assert some.estimate == pytest.approx(
        explained_variance(torch.from_numpy(values[:, 0]), torch.from_numpy(outcomes))
    )
    assert some.low < some.estimate < some.high and some.high - some.low < 0.2
    assert none.estimate == pytest.approx(0, abs=1e-12)
