"""What may change the gradient of an update and what may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import AGGREGATIONS, HORIZON, N_INPUTS, OverRows, assert_same, gradient, learner_of, made_up, surrogate

from sppo.agents.networks import CategoricalPolicy, StartCritic, StepCritic
from sppo.agents.update import LogLikelihoodLoss, ValueLoss, minimise

lengths_and_seed = given(
    lengths=st.lists(st.integers(1, HORIZON), min_size=2, max_size=7),
    seed=st.integers(0, 100),
    aggregation=st.sampled_from(AGGREGATIONS),
)
few = settings(max_examples=12, deadline=None)


@lengths_and_seed
@few
def test_gradients_do_not_depend_on_cut_or_order_or_padding(lengths: list[int], seed: int, aggregation: str) -> None:
    data = made_up(lengths, aggregation=aggregation, seed=seed)
    whole = gradient(surrogate, data)
    over_rows = gradient(lambda policy: OverRows(surrogate(policy)), data)
    assert_same(over_rows, whole)
    for size in (1, 2, 3):
        assert_same(gradient(surrogate, data, microbatch_size=size), whole)
        assert_same(gradient(lambda policy: OverRows(surrogate(policy)), data, microbatch_size=size), whole)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(lengths)))
    assert_same(gradient(lambda policy: OverRows(surrogate(policy)), data[order]), whole)
    assert_same(gradient(surrogate, data[order]), whole)
    padded = made_up([*lengths, HORIZON + 3], aggregation=aggregation, seed=seed + 1)[slice(0, len(lengths))]
    t = data.traj.valid.shape[1]
    for name in ("weight", "share", "advantages"):
        getattr(padded, name)[:, :t] = getattr(data, name)
    for name in ("actions", "logprobs"):
        getattr(padded.traj, name)[:, :t] = getattr(data.traj, name)
    padded.traj.inputs[:, : t + 1] = data.traj.inputs
    assert_same(gradient(surrogate, padded), whole)
    assert_same(gradient(lambda policy: OverRows(surrogate(policy)), padded), whole)


def test_divisors_by_hand() -> None:
    """20 steps in 4 episodes, H = 9: mean over steps, and the sum over 4 x 9; equal lengths: means of means."""
    by_step = gradient(surrogate, made_up([4, 9, 1, 6]))
    assert_same(gradient(surrogate, made_up([4, 9, 1, 6], aggregation="constant_horizon")), by_step * 20 / 36)
    equal = gradient(surrogate, made_up([5, 5, 5]))
    assert_same(gradient(surrogate, made_up([5, 5, 5], aggregation="sequence_mean")), equal)
    assert not torch.allclose(gradient(surrogate, made_up([4, 9, 1, 6], aggregation="sequence_mean")), by_step)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_of_a_gaussian_and_of_cloning(aggregation: str) -> None:
    data = made_up([4, 9, 1, 6], aggregation=aggregation, discrete=False)
    for make_loss in (surrogate, LogLikelihoodLoss):
        whole = gradient(make_loss, data, discrete=False)
        for settings_ in ({}, {"microbatch_size": 2}):
            over_rows = gradient(lambda p, m=make_loss: OverRows(m(p)), data, discrete=False, **settings_)
            assert_same(over_rows, whole)


def test_gradient_of_cloning_by_hand() -> None:
    """No hidden layer, equal probabilities: the gradient of -log p(a) by logit k is 1/2 - [a = k]."""
    policy = CategoricalPolicy(1, 2, net_arch=())
    with torch.no_grad():
        policy.weights[0].zero_()
    data = made_up([2, 1])
    data.traj.actions[:] = torch.tensor([[0, 1], [0, 1]])
    learner = learner_of(policy)
    inputs = torch.tensor([[[2.0], [4.0], [9.0]], [[6.0], [9.0], [9.0]]])
    data = replace(data, traj=replace(data.traj, inputs=inputs))
    minimise(learner, LogLikelihoodLoss(policy), data, n_epochs=1, n_minibatches=1, generator=np.random.default_rng(0))
    # Actions 0, 1, 0 at states 2, 4, 6; by logit 0: -1/2, 1/2, -1/2. Weights: (-1 + 2 - 3) / 3; biases: (-1/2) / 3.
    assert policy.weights[0].grad is not None and policy.biases[0].grad is not None
    assert policy.weights[0].grad.flatten().tolist() == pytest.approx([-2 / 3, 2 / 3])
    assert policy.biases[0].grad.flatten().tolist() == pytest.approx([-1 / 6, 1 / 6])


@pytest.mark.parametrize("kind", [StepCritic, StartCritic])
def test_gradients_of_critics_do_not_depend_on_microbatches(kind: Any) -> None:
    data = made_up([4, 9, 1, 6, 2])
    if kind is StartCritic:
        ones = torch.ones(len(data), 1)
        data = replace(data, weight=ones, share=ones, value_targets=torch.rand(len(data), 1))
    gradients = []
    for size in (None, 1, 2):
        critic = kind(N_INPUTS, value_loss="bce", net_arch=(8,), generator=torch.Generator().manual_seed(0))
        learner = learner_of(critic)
        minimise(
            learner,
            ValueLoss(critic),
            data,
            n_epochs=1,
            n_minibatches=1,
            microbatch_size=size,
            generator=np.random.default_rng(0),
        )
        gradients.append(learner.grad.clone())
    assert_same(gradients[1], gradients[0])
    assert_same(gradients[2], gradients[0])
