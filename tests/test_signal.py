"""Gradients of algorithms against the true one: units, bias, and the figures made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sppo.agents import AGENTS
from sppo.envs import episodes
from sppo.experiments.evidence import gradients as measured
from sppo.experiments.evidence.exact import ConstantCritic, ExactCritic, solve
from sppo.experiments.evidence.gradients import Moments, ascents, estimated, fit, moments, sample_anew

HORIZON = 6


def agent_of(name: str, **settings: Any) -> Any:
    chain = episodes("sppo/SparseChain-v0", horizon=HORIZON, goal=6)
    return AGENTS[name](chain, net_arch=(8,), episodes_per_update=64, **settings)


def along_the_truth(agent: Any, batches: int = 60) -> tuple[float, float]:
    """How long the mean gradient is along the true one, in units of it, and the standard error."""
    _, truth = solve(agent.sampler.env, agent.policy)
    along = moments(ascents(agent, batches), truth, float(truth @ truth)).along
    return float(along.mean()), float(along.std() / batches**0.5)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sppo", {}, 1.0),
        ("ppo", {}, 1.0),
        ("rloo", {}, 1.0),
        ("sppo", {"aggregation": "sequence_mean"}, 1.0),
        ("sppo", {"aggregation": "constant_horizon"}, 1.0),
        ("reinforce", {}, 63 / 64),  # the mean of 64 holds the episode itself
        ("drgrpo", {}, 7 / 8),  # and that of 8
    ],
)
def test_gradients_of_a_mean_are_in_units_of_the_true_one(name: str, settings: dict[str, Any], expected: float) -> None:
    mean, error = along_the_truth(agent_of(name, **settings))
    # An untrained critic of every state makes PPO's the least certain.
    assert error < 0.1 and abs(mean - expected) < 4 * error


def test_bootstrapping_is_as_right_as_its_critic() -> None:
    """With lambda 0 and a constant, only the last step of an episode has an advantage; with true values all have."""
    agent = agent_of("ppo", gae_lambda=0.0)
    value, _ = solve(agent.sampler.env, agent.policy)
    agent.critic = ExactCritic(agent.sampler.env, value)
    mean, error = along_the_truth(agent)
    assert error < 0.02 and abs(mean - 1) < 4 * error
    agent.critic = ConstantCritic(0.3)
    # At even odds all six steps matter alike: the last has a sixth of the whole.
    mean, error = along_the_truth(agent)
    assert abs(mean - 1 / HORIZON) < 0.05


def test_one_constant_makes_ppo_and_sppo_the_same() -> None:
    found = []
    for name in ("ppo", "sppo"):
        agent = agent_of(name)
        agent.critic = ConstantCritic(0.4)
        sample_anew(agent, 7)
        found.append(ascents(agent, 2))
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 0.01


def test_fitting_teaches_the_critic_alone() -> None:
    agent = agent_of("sppo")
    policy, critic = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (agent.policy, agent.critic))
    fit(agent, 200)
    assert agent.num_episodes == 256
    assert torch.equal(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]), policy)
    assert not torch.equal(torch.cat([p.detach().flatten() for p in agent.critic.parameters()]), critic)
    tracker = agent_of("tracker")
    fit(tracker, 640)
    assert tracker.critic.value(torch.tensor([-1])).item() == pytest.approx(0.34, abs=0.1)


def test_ascents_leave_the_policy_as_it_is() -> None:
    agent = agent_of("grpo")
    before = [p.detach().clone() for p in agent.policy.parameters()]
    ascents(agent, 2)
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), before, strict=True))


def test_moments_by_hand() -> None:
    """Three gradients in the plane, the true one (2, 0): products with it 2, 6, 4 of 4."""
    gradients = torch.tensor([[1.0, 1.0], [3.0, -1.0], [2.0, 0.0]], dtype=torch.float64)
    found = moments(gradients, torch.tensor([2.0, 0.0], dtype=torch.float64), 4.0)
    assert found.along.tolist() == [0.5, 1.5, 1.0]
    assert found.square.tolist() == [0.5, 2.5, 1.0]
    # With the means of the others, (5/2, -1/2), (3/2, 1/2) and (2, 0): 2, 4 and 4, their mean 10/3.
    np.testing.assert_allclose(found.mean, np.array([4 - 10 / 3, 8 - 10 / 3, 8 - 10 / 3]) / 4)
    # Their mean is that of the products of pairs: (2 + 2 + 6) / 3.
    assert found.mean.mean() == pytest.approx(10 / 3 / 4)
    mean, squared_norm = estimated(gradients)
    assert mean.tolist() == [2, 0] and squared_norm == pytest.approx(10 / 3)
    # From their mean (2, 0) they are off by (-1, 1), (1, -1) and nothing: 2 + 2 over 3 - 1, of 4.
    assert measured.variance([found]).estimate == pytest.approx(2 / 4)


def made_up(mean: list[float], deviation: float, batches: int = 400, seed: int = 0) -> Moments:
    """Gradients around a mean, the true one (1, 0, 0, 0)."""
    noise = np.random.default_rng(seed).standard_normal((batches, 4)) * deviation
    truth = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    return moments(torch.from_numpy(np.array(mean) + noise), truth, 1.0)


def test_figures_of_gradients_with_known_noise() -> None:
    """Four directions of variance 1/4: noise 1."""
    clean = [made_up([1, 0, 0, 0], 0.5, seed=seed) for seed in (0, 1)]
    for figure, expected in (
        (measured.signal_to_noise, 1.0),
        (measured.cosine, 1.0),
        (measured.bias, 0.0),
        (measured.variance, 1.0),
    ):
        found = figure(clean)
        assert found.low < expected < found.high, figure.__name__
        assert found.high - found.low < 0.3
    # Twice as long and half across: |(2, 1)|^2 = 5 of which 4 count; noise 1 + 1. Bias |(1, 1)|^2 = 2.
    biased = [made_up([2, 1, 0, 0], 0.5, seed=seed) for seed in (2, 3)]
    for figure, expected in (
        (measured.signal_to_noise, 4 / 2),
        (measured.cosine, 2 / 5**0.5),
        (measured.bias, 2.0),
        (measured.variance, 1.0),
    ):
        found = figure(biased)
        assert found.low < expected < found.high, figure.__name__
    assert measured.ratio(biased, clean).estimate == pytest.approx(
        measured.signal_to_noise(biased).estimate / measured.signal_to_noise(clean).estimate
    )
    assert measured.ratio(clean, clean) == (1.0, 1.0, 1.0)


def test_signal_to_noise_does_not_depend_on_scale() -> None:
    one = made_up([1, 0, 0, 0], 0.5)
    thrice = Moments(3 * one.along, 9 * one.square, 9 * one.mean)
    assert measured.signal_to_noise([thrice]).estimate == pytest.approx(measured.signal_to_noise([one]).estimate)
    assert measured.cosine([thrice]).estimate == pytest.approx(measured.cosine([one]).estimate)
    assert measured.bias([thrice]).estimate == pytest.approx(4, abs=0.5)
    assert measured.variance([thrice]).estimate == pytest.approx(9, abs=0.9)


def test_agents_sample_the_same_episodes_from_one_seed() -> None:
    outcomes = []
    for name in ("ppo", "tracker"):
        agent = agent_of(name)
        agent.sampler.rollout(agent.starts())
        agent.config = replace(agent.config, episodes_per_update=32)
        sample_anew(agent, 3)
        traj = agent.sampler.rollout(agent.starts())
        outcomes.append(traj.actions)
    assert torch.equal(*outcomes)
