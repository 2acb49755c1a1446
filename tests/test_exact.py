"""The chain worked out: values in closed form, the gradient of the success rate by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sppo.agents import ControlSampler
from sppo.agents.networks import CategoricalPolicy
from sppo.envs import episodes
from sppo.experiments.evidence.exact import ConstantCritic, ExactCritic, observations, solve


def indifferent(logit: float = 0.0) -> CategoricalPolicy:
    """No hidden layer; action 1 has this logit in every state, action 0 the logit 0."""
    policy = CategoricalPolicy(2, 2, net_arch=())
    with torch.no_grad():
        policy.weights[0].zero_()
        policy.biases[0][0, 1] = logit
    return policy


@pytest.mark.parametrize("slip", [0.0, 0.2])
def test_values_of_equal_odds_are_the_closed_form(slip: float) -> None:
    chain: Any = episodes("sppo/SparseChain-v0", horizon=9, goal=7, slip=slip)
    value, _ = solve(chain, indifferent(np.log(0.7 / 0.3)))
    x, t = np.meshgrid(np.arange(value.shape[1]), np.arange(10))
    np.testing.assert_allclose(value, chain.value(0.7, x, t), atol=1e-7)


def test_gradient_by_hand() -> None:
    """Two steps at even odds from 0 to 1: J = 1 - (1 - p_0)(1 - p_1), so dJ/dp_t = 1/2, and dp/dlogit = 1/4.

    The bias of action 1 takes part in both steps: 2/8. The input t / H is 0 and then 1/2: 1/16. The position is 0
    wherever the choice matters.
    """
    chain: Any = episodes("sppo/SparseChain-v0", horizon=2, goal=1, start_spread=0)
    policy = indifferent()
    value, gradient = solve(chain, policy)
    assert value[0, 0] == 0.75
    weights, biases = gradient.split([4, 2])
    torch.testing.assert_close(biases, torch.tensor([-0.25, 0.25], dtype=torch.float64))
    torch.testing.assert_close(weights.reshape(2, 2), torch.tensor([[0, -1 / 16], [0, 1 / 16]], dtype=torch.float64))


def test_critics_know_the_states_of_episodes() -> None:
    chain: Any = episodes("sppo/SparseChain-v0", horizon=3, goal=2, start_spread=1)
    policy = indifferent()
    sampler = ControlSampler(chain, policy=policy, seed=0)
    traj = sampler.rollout(sampler.starts(40))
    critic = ExactCritic(chain, solve(chain, policy)[0])
    values = critic.values(traj)
    # From 0, two of three coins must fall right: 1/2; from 1, one of three: 7/8. At the end it is the outcome.
    assert set(values[:, 0].tolist()) == {0.5, 0.875}
    torch.testing.assert_close(values[:, -1], traj.outcomes)
    torch.testing.assert_close(critic.value(traj), values[:, 0])
    constant = ConstantCritic(0.25)
    assert constant.values(traj).shape == values.shape and bool((constant.values(traj) == 0.25).all())
    assert constant.value(traj).tolist() == [0.25] * 40


def test_observations_are_the_tasks_own() -> None:
    chain: Any = episodes("sppo/SparseChain-v0", horizon=3, goal=2, start_spread=1)
    seen = observations(chain)
    assert seen.shape == (3, 5, 2)
    assert seen[2, 4].tolist() == [2.0, pytest.approx(2 / 3)]
