"""Policies and critics: log-probabilities, entropies, stacking, standardisation, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from sppo.agents import PPO, SPPO, ControlSampler
from sppo.agents.critics import StartCritic, StepCritic
from sppo.agents.networks import (
    MLP,
    CategoricalPolicy,
    GaussianPolicy,
    make_policy,
    stack_networks,
)
from sppo.agents.stack import Stack
from sppo.envs import episodes

TASKS = {"discrete": "sppo/PrecisionCartPole-v0", "gaussian": "sppo/Pendulum-v0"}


def sharpened(policy: Any) -> Any:
    """Distributions that depend on the state; fresh policies are nearly the same everywhere."""
    with torch.no_grad():
        policy.weights[-1].mul_(100)
        policy.obs_mean.copy_(torch.linspace(-0.1, 0.2, policy.n_inputs))
        policy.obs_std.copy_(torch.linspace(0.5, 2, policy.n_inputs))
        if isinstance(policy, GaussianPolicy):
            policy.log_std.fill_(-0.7)
    return policy


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("greedy", [False, True])
def test_logprobs_recomputed_are_those_sampled(kind: str, activation: str, greedy: bool) -> None:
    sampler = ControlSampler(episodes(TASKS[kind], horizon=30), activation=activation)
    sharpened(sampler.policy)
    traj = sampler.rollout(sampler.starts(8), greedy=greedy)
    with torch.no_grad():
        logprobs, _ = sampler.policy.evaluate(traj)
    torch.testing.assert_close(logprobs[traj.valid], traj.logprobs[traj.valid], atol=1e-5, rtol=0)
    assert traj.logprobs[traj.valid].std() > (0.01 if kind == "discrete" or not greedy else -1)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("agent", [PPO, SPPO])
def test_logprobs_recomputed_in_a_stack_are_those_sampled(kind: str, agent: Any) -> None:
    env = episodes(TASKS[kind], horizon=30)
    stack = Stack([agent(env, episodes_per_update=4, seed=seed) for seed in range(3)])
    sharpened(stack.policy)
    traj = stack.rollout()
    with torch.no_grad():
        logprobs, _ = stack.policy.evaluate(traj)
    torch.testing.assert_close(logprobs[traj.valid], traj.logprobs[traj.valid], atol=1e-5, rtol=0)
    for i, own in enumerate(stack.agents):  # whose weights are views of the stack's; the observations' mean is not
        part = traj[slice(4 * i, 4 * i + 4)]
        own.policy.obs_mean.copy_(stack.policy.obs_mean[i])
        own.policy.obs_std.copy_(stack.policy.obs_std[i])
        with torch.no_grad():
            alone, _ = own.policy.evaluate(part)
        torch.testing.assert_close(alone[part.valid], part.logprobs[part.valid], atol=1e-5, rtol=0)


def test_categorical_by_hand() -> None:
    policy = CategoricalPolicy(1, 3, net_arch=())
    with torch.no_grad():
        policy.weights[0].zero_()
        policy.biases[0].copy_(torch.tensor([1.0, 2.0, 1.0]).log()[None, :, None])
    traj: Any = type("T", (), {})()
    traj.inputs, traj.actions, traj.valid = torch.zeros(1, 3, 1), torch.tensor([[1, 2]]), torch.ones(1, 2)
    logprobs, entropy = policy.evaluate(traj, entropy=True)
    # Probabilities 1/4, 1/2, 1/4; entropy 1/2 log 2 + 1/2 log 4 = 1.5 log 2.
    assert logprobs[0].tolist() == pytest.approx([-0.693147, -1.386294], abs=1e-6)
    assert entropy is not None and entropy[0].tolist() == pytest.approx([1.039721] * 2, abs=1e-6)

    actor = policy.actor()
    logits = actor.outputs(np.zeros((5, 1), np.float32))
    actions, _ = actor.act(logits, np.array([0.0, 0.249, 0.251, 0.749, 0.751], np.float32), 0)
    assert actions.tolist() == [0, 0, 1, 1, 2], "the cumulative probabilities are cut at 1/4 and 3/4"


def test_gaussian_by_hand() -> None:
    policy = GaussianPolicy(1, 2, net_arch=())
    with torch.no_grad():
        policy.weights[0].zero_()
        policy.biases[0].copy_(torch.tensor([1.0, -1.0])[None, :, None])
        policy.log_std.copy_(torch.tensor([[2.0, 1.0]]).log())
    traj: Any = type("T", (), {})()
    traj.inputs, traj.valid = torch.zeros(1, 2, 1), torch.ones(1, 1)
    traj.actions = torch.tensor([[[3.0, -1.0]]])  # one and no standard deviation away
    logprobs, entropy = policy.evaluate(traj, entropy=True)
    # -1/2 - log 2 - log 1 - log(2 pi);  entropy log 2 + log 1 + log(2 pi e).
    assert logprobs.tolist()[0] == pytest.approx([-3.031024], abs=1e-6)
    assert entropy is not None and entropy.tolist()[0] == pytest.approx([3.531024], abs=1e-6)


@pytest.mark.parametrize("kind", TASKS)
def test_sampled_actions_follow_their_logprobs(kind: str) -> None:
    """The mean of -log p over sampled actions is the entropy."""
    sampler = ControlSampler(episodes(TASKS[kind], horizon=40))
    sharpened(sampler.policy)
    traj = sampler.rollout(sampler.starts(500))
    with torch.no_grad():
        _, entropy = sampler.policy.evaluate(traj, entropy=True)
    assert entropy is not None
    surprise = (-traj.logprobs - entropy)[traj.valid]
    assert abs(float(surprise.mean())) < 5 * float(surprise.std()) / len(surprise) ** 0.5
    assert float(surprise.std()) > 0.1


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_numpy_network_is_the_torch_network(activation: Any) -> None:
    networks = [MLP(3, 2, net_arch=(7, 5), activation=activation) for _ in range(2)]
    for i, network in enumerate(networks):
        network.obs_mean.fill_(0.3 * i), network.obs_std.fill_(1 + i)
    observations = torch.randn(6, 3)
    for network, n in ((networks[0], 6), (networks[1], 5), (stack_networks(networks), 6)):
        with torch.no_grad():
            expected = network(observations[:n]).numpy()
        np.testing.assert_allclose(network.in_numpy()(observations[:n].numpy()), expected, atol=1e-6)


def test_stacked_networks_are_independent() -> None:
    networks = [MLP(3, 2, net_arch=(7,)) for _ in range(3)]
    stacked = stack_networks(networks)
    observations = torch.randn(6, 4, 3)  # two rows each
    expected = torch.cat([network(observations[2 * i : 2 * i + 2]) for i, network in enumerate(networks)], dim=1)
    torch.testing.assert_close(stacked(observations), expected)
    stacked(observations)[:, 2:4].sum().backward()  # the middle one's rows alone
    gradient = stacked.weights[0].grad
    assert gradient is not None
    assert gradient[1].abs().max() > 0 and (gradient[[0, 2]] == 0).all()


def test_standardisation() -> None:
    network = MLP(2, 1, net_arch=())
    other = MLP(2, 1)
    other.obs_mean.copy_(torch.tensor([[1.0, 2.0]]))
    other.obs_std.copy_(torch.tensor([[2.0, 4.0]]))
    network.standardise_as(other)
    with torch.no_grad():
        network.weights[0].copy_(torch.tensor([[[1.0, 10.0]]]))
    # (3 - 1) / 2 + 10 (6 - 2) / 4 = 11
    assert float(network(torch.tensor([[3.0, 6.0]])).detach()) == pytest.approx(11)
    assert {"obs_mean", "obs_std"} <= network.state_dict().keys(), "saved with the weights"


def test_new_networks_are_drawn_from_their_generator_alone() -> None:
    first, same, other = (
        MLP(3, 2, generator=torch.Generator().manual_seed(seed)).state_dict()["weights.0"] for seed in (5, 5, 6)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_critics_hand_out_units_of_return() -> None:
    traj: Any = type("T", (), {})()
    traj.inputs, traj.valid = torch.randn(3, 5, 2), torch.ones(3, 4)
    for value_loss in ("bce", "squared_error"):
        step = StepCritic(2, value_loss=value_loss, generator=torch.Generator().manual_seed(1))
        start = StartCritic(2, value_loss=value_loss, generator=torch.Generator().manual_seed(1))
        values = step.values(traj)
        assert values.shape == (3, 5)
        torch.testing.assert_close(start.value(traj), values[:, 0])
        with torch.no_grad():
            head = step(traj.inputs)[0]
        torch.testing.assert_close(values, torch.sigmoid(head) if value_loss == "bce" else head)
        assert step.loss(traj, torch.full((3, 4), 0.5)).shape == (3, 4)
        assert start.loss(traj, torch.full((3, 1), 0.5)).shape == (3, 1)


@pytest.mark.parametrize(("kind", "shape"), [(StepCritic, (2, 3)), (StartCritic, (2, 1))])
def test_cross_entropy_refuses_returns_outside_0_1(kind: Any, shape: tuple[int, ...]) -> None:
    critic = kind(2, value_loss="bce")
    traj: Any = type("T", (), {})()
    traj.inputs, traj.valid = torch.randn(2, 4, 2), torch.ones(2, 3)
    targets = torch.zeros(shape)
    targets[1, 0] = 1 + 3e-7  # a target made by adding and subtracting a value may miss 1 by rounding
    assert critic.loss(traj, targets).isfinite().all()
    targets[1, 0] = -200
    expected = rf"{kind.__name__} with binary cross-entropy needs returns in \[0, 1\], got \[-200, 0\]; use value_loss"
    with pytest.raises(ValueError, match=expected):
        critic.loss(traj, targets)
    assert kind(2, value_loss="squared_error").loss(traj, targets).isfinite().all()


def test_make_policy_by_space() -> None:
    box = spaces.Box(-1, 1, (3,))
    policy = make_policy(box, spaces.Discrete(4))
    assert isinstance(policy, CategoricalPolicy) and (policy.n_inputs, policy.n_outputs) == (3, 4)
    policy = make_policy(box, spaces.Box(-2, 2, (2,)), log_std_init=-0.5)
    assert isinstance(policy, GaussianPolicy) and policy.log_std.tolist() == [[-0.5, -0.5]]
    for space in (spaces.MultiDiscrete([2, 2]), spaces.Discrete(3, start=1), spaces.Box(-1, 1, (2, 2))):
        with pytest.raises(ValueError, match=r"must be Discrete \(from 0\) or a one-dimensional Box, got"):
            make_policy(box, space)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="activation must be 'relu' or 'tanh', got 'gelu'"):
        MLP(2, 1, activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="value_loss must be 'squared_error' or 'bce', got 'mse'"):
        StepCritic(2, value_loss="mse")  # type: ignore[arg-type]
