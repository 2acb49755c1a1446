"""What may change the gradient of an update and what may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import (
    AGGREGATIONS,
    HORIZON,
    N_INPUTS,
    OverRows,
    assert_same,
    gradient,
    learner_of,
    made_up,
    network,
    penalised,
    surrogate,
)

from sppo.agents.batch import Experience
from sppo.agents.critics import StartCritic, StepCritic
from sppo.agents.dpo import PreferenceLoss
from sppo.agents.gspo import SequenceLoss
from sppo.agents.networks import CategoricalPolicy
from sppo.agents.restem import LikelihoodLoss
from sppo.agents.update import LogLikelihoodLoss, PolicyLoss, ValueLoss, minimise


def preference(policy: Any) -> PolicyLoss:
    return PreferenceLoss(policy, beta=0.5)


def sequence(policy: Any) -> PolicyLoss:
    return SequenceLoss(policy, 0.9, 9.0, ent_coef=0.01)


def over_rows(make_loss: Any) -> Any:
    """The same loss, cut over rows whatever the policy."""
    return lambda policy: OverRows(loss := make_loss(policy), loss.block)


LOSSES: list[Any] = [surrogate, penalised, sequence, LikelihoodLoss, preference]
STEPWISE = [surrogate, penalised, LikelihoodLoss]


def padded_like(data: Experience, lengths: list[int], padding: int, **made: Any) -> Experience:
    """The same rows with more padding, full of garbage, between zero weights."""
    wide = made_up(lengths, padding=padding, **made)
    t = data.traj.valid.shape[1]
    for name in ("weight", "share", "advantages", "ref_logprobs"):
        getattr(wide, name)[:, :t] = getattr(data, name)
    for name in ("actions", "logprobs"):
        getattr(wide.traj, name)[:, :t] = getattr(data.traj, name)
    wide.traj.inputs[:, : t + 1] = data.traj.inputs
    return wide


@given(
    lengths=st.lists(st.integers(1, HORIZON), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0),
    seed=st.integers(0, 100),
    aggregation=st.sampled_from(AGGREGATIONS),
    masked=st.booleans(),
    make_loss=st.sampled_from(LOSSES),
)
@settings(max_examples=40, deadline=None)
def test_gradients_do_not_depend_on_cut_or_order_or_padding(
    lengths: list[int], seed: int, aggregation: str, masked: bool, make_loss: Any
) -> None:
    made: dict[str, Any] = {"aggregation": aggregation, "masked": masked}
    data = made_up(lengths, seed=seed, **made)
    block = make_loss(network()).block
    whole = gradient(make_loss, data)
    assert_same(gradient(over_rows(make_loss), data), whole)
    for size in (1, 2, 3):
        assert_same(gradient(make_loss, data, microbatch_size=size), whole)
        assert_same(gradient(over_rows(make_loss), data, microbatch_size=size), whole)
        assert_same(gradient(over_rows(make_loss), data, microbatch_steps=4 * size), whole)
    blocks = torch.from_numpy(np.random.default_rng(seed).permutation(len(lengths) // block))
    order = (blocks[:, None] * block + torch.arange(block)).flatten()
    wide = padded_like(data, lengths, 3, seed=seed + 1, **made)
    for same in (data[order], wide):
        assert_same(gradient(make_loss, same), whole)
        assert_same(gradient(over_rows(make_loss), same), whole)


@pytest.mark.parametrize("make_loss", STEPWISE)
def test_steps_that_carry_no_loss_may_hold_anything(make_loss: Any) -> None:
    data, other = (made_up([4, 9, 1, 6], masked=True, seed=1) for _ in range(2))
    assert data.advantages is not None and other.advantages is not None
    other.advantages[data.weight == 0] = 7.0
    other.traj.logprobs[data.weight == 0] = -2.0
    assert_same(gradient(make_loss, other), gradient(make_loss, data))
    assert not torch.allclose(gradient(make_loss, made_up([4, 9, 1, 6], seed=1)), gradient(make_loss, data))


# Rows without advantage.


def silenced(lengths: list[int], rows: list[int], **made: Any) -> Experience:
    data = made_up(lengths, **made)
    assert data.advantages is not None
    data.advantages[rows] = 0
    return data


class Counted(OverRows):
    """Notes how many rows it was given."""

    def __init__(self, loss: Any, memoryless: bool) -> None:
        super().__init__(loss, loss.block)
        self.memoryless, self.rows = memoryless, 0

    def __call__(self, batch: Experience) -> Any:
        self.rows += len(batch)
        return self.loss(batch)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("make_loss", [PolicyLoss, SequenceLoss, LikelihoodLoss])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_without_advantage_are_skipped_and_the_gradient_is_the_same(
    aggregation: str, make_loss: Any, masked: bool
) -> None:
    data = silenced([4, 9, 1, 6, 3], [0, 3], aggregation=aggregation, masked=masked)
    for memoryless in (True, False):
        if memoryless and make_loss is SequenceLoss:
            continue
        counts, found = [], []
        for skip in (False, True):
            policy = network()
            loss = Counted(make_loss(policy), memoryless)
            found.append(gradient(lambda _, loss=loss: loss, data, skip_silent=skip, module=policy))
            counts.append(loss.rows)
        assert_same(found[1], found[0])
        carrying = int((data.weight * data.advantages != 0).sum())
        assert counts == ([23, carrying] if memoryless else [5, 3])


def test_a_pair_is_skipped_whole_or_not_at_all() -> None:
    """Of three pairs the last has no advantages, and the second has them in one of its rows."""
    data = silenced([4, 9, 1, 6, 3, 2], [2, 4, 5], aggregation="sequence_mean")
    assert_same(
        gradient(preference, data, skip_silent=True), gradient(preference, data[torch.tensor([0, 1, 2, 3])]) * 2 / 3
    )


@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_whole_updates_are_the_same_with_and_without_skipping(microbatch_size: int | None) -> None:
    """Minibatches of one row, some without signal: they too count as optimiser steps, which Adam's momentum moves.

    Statistics are of the rows that were evaluated, so they are those of the others alone.
    """
    data, weights, stats = silenced([4, 9, 1, 6], [0, 3], seed=3), [], []
    for skip in (False, True):
        policy = network()
        learner = learner_of(policy, learning_rate=0.01)
        schedule: dict[str, Any] = {"n_epochs": 3, "n_minibatches": 4, "generator": np.random.default_rng(0)}
        loss = OverRows(PolicyLoss(policy))
        stats.append(minimise(learner, loss, data, skip_silent=skip, microbatch_size=microbatch_size, **schedule))
        weights.append(learner.flat.clone())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)
    assert stats[0]["train/n_updates"] == stats[1]["train/n_updates"] == 12
    assert stats[0]["train/grad_norm"] == pytest.approx(stats[1]["train/grad_norm"], rel=1e-4)
    # Half of the minibatches have a loss of 0 and are left out of its mean.
    loss_of = [s["train/policy_gradient_loss"] for s in stats]
    assert loss_of[1] == pytest.approx(2 * loss_of[0], rel=1e-4)


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
