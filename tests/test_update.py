"""The one update: early stops, statistics, clipping, and what is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_up import N_INPUTS, OverRows, gradient, learner_of, made_up, network, surrogate

from sppo.agents.batch import Experience
from sppo.agents.learners import LocalLearner
from sppo.agents.networks import CategoricalPolicy
from sppo.agents.update import PolicyLoss, minimise


def test_target_kl_stops_before_the_step_and_statistics_count_steps_taken() -> None:
    policy, data = network(), made_up([6, 9, 9, 8])
    learner = learner_of(policy, learning_rate=0.01)
    before = learner.flat.clone()
    told: list[float] = []

    def stop(means: Any) -> bool:
        told.append(means["train/approx_kl"])
        return len(told) == 3

    schedule: dict[str, Any] = {"n_epochs": 2, "n_minibatches": 4}
    stats = minimise(learner, surrogate(policy), data, stop=stop, generator=np.random.default_rng(0), **schedule)
    assert stats["train/n_updates"] == 2 and stats["train/early_stop"] == 1
    assert learner.optimizer.state[learner.flat]["step"] == 2
    assert stats["train/approx_kl"] == pytest.approx(sum(told[:2]) / 2)
    assert not torch.equal(learner.flat, before)

    stats = minimise(learner, surrogate(policy), data, generator=np.random.default_rng(0), **schedule)
    assert stats["train/n_updates"] == 8 and stats["train/early_stop"] == 0


def test_weight_decay_shrinks_what_has_no_gradient_and_steps_are_adams_without() -> None:
    module = torch.nn.Linear(1, 1)
    for decay, left in ((0.0, 1.0), (0.5, 0.81)):
        learner = LocalLearner(module, learning_rate=0.2, max_grad_norm=1.0, adam_eps=1e-5, weight_decay=decay)
        learner.flat.data.fill_(1.0)
        for _ in range(2):  # each takes off 0.2 x 0.5 of the weight
            learner.zero_grad()
            learner.step()
        assert learner.flat.tolist() == pytest.approx([left, left])


def test_statistics_are_weighted_as_the_loss_is() -> None:
    """Two sequences of 1 and 3 steps with losses 8 and 2, 2, 2: the mean over sequences is 5, over steps 3.5."""

    class Given(OverRows):
        def __call__(self, batch: Experience) -> Any:
            per_step, _ = self.loss(batch)
            return per_step, {"given": torch.where(batch.traj.lengths[:, None] == 1, 8.0, 2.0).expand(-1, 3)}

    # Both end before the horizon of 9, by which the loss is divided, and no statistic.
    for aggregation, expected in (("sequence_mean", 5.0), ("token_mean", 3.5), ("constant_horizon", 3.5)):
        policy = network()
        for size in (None, 1):
            stats = minimise(
                learner_of(policy),
                Given(surrogate(policy)),
                made_up([1, 3], aggregation=aggregation),
                n_epochs=1,
                n_minibatches=1,
                microbatch_size=size,
                generator=np.random.default_rng(0),
            )
            assert stats["given"] == pytest.approx(expected)


def test_statistics_of_the_surrogate_by_hand() -> None:
    """Equal probabilities now, 1/4 and 1/2 when sampled: ratios 2 (clipped) and 1; advantages 3."""
    policy = CategoricalPolicy(N_INPUTS, 2, net_arch=())
    with torch.no_grad():
        policy.weights[0].zero_()
    data = made_up([2])
    data.traj.logprobs[0] = torch.tensor([0.25, 0.5]).log()
    assert data.advantages is not None
    data.advantages[:] = 3
    for ent_coef in (0.0, 0.5):
        learner = learner_of(policy)
        stats = minimise(
            learner,
            PolicyLoss(policy, 0.2, 0.2, ent_coef),
            data,
            n_epochs=1,
            n_minibatches=1,
            generator=np.random.default_rng(0),
        )
        # -(1.2 x 3 + 3) / 2;  (2 - 1 - log 2 + 0) / 2;  one of two;  log 2 nats.
        assert stats["train/policy_gradient_loss"] == pytest.approx(-3.3)
        assert stats["train/approx_kl"] == pytest.approx(0.153426, abs=1e-6)
        assert stats["train/clip_fraction"] == 0.5
        assert stats["train/entropy_loss"] == pytest.approx(-0.693147, abs=1e-6)


def test_gradient_is_scaled_down_to_the_norm() -> None:
    policy, data = network(), made_up([6, 9])
    norm = float(gradient(surrogate, data).norm())
    learner = learner_of(policy, max_grad_norm=norm / 4)
    stats = minimise(learner, surrogate(policy), data, n_epochs=1, n_minibatches=1, generator=np.random.default_rng(0))
    assert stats["train/grad_norm"] == pytest.approx(norm, rel=1e-5), "the norm reported is the one before"
    assert float(learner.grad.norm()) == pytest.approx(norm / 4, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_the_network(bad: float) -> None:
    policy, data = network(), made_up([6, 9])
    assert data.advantages is not None
    data.advantages[0, 0] = bad
    learner = learner_of(policy, learning_rate=0.1)
    before = learner.flat.clone()
    with pytest.raises(FloatingPointError, match="the gradient of CategoricalPolicy is not finite"):
        minimise(learner, surrogate(policy), data, n_epochs=1, n_minibatches=1, generator=np.random.default_rng(0))
    assert torch.equal(learner.flat, before), "the weights stay as they were"


def test_learner_holds_the_weights_of_its_module() -> None:
    policy = network()
    learner = learner_of(policy)
    learner.flat.zero_()
    assert all((p == 0).all() for p in policy.parameters())
    learner.grad.fill_(2)
    assert all((p.grad == 2).all() for p in policy.parameters())
