"""The one update: what may change a gradient and what may not, and which steps each minibatch holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.learners import LocalLearner
from sppo.agents.losses import aggregation_weights
from sppo.agents.networks import CategoricalPolicy, GaussianPolicy, StartCritic, StepCritic
from sppo.agents.update import LogLikelihoodLoss, PolicyLoss, ValueLoss, minibatches, minimise

N_INPUTS, HORIZON = 3, 9
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_horizon")


def made_up(
    lengths: list[int], *, aggregation: str = "token_mean", seed: int = 0, discrete: bool = True, padding: int = 0
) -> Experience:
    """Experience of episodes of these lengths, with random entries; garbage where nothing is valid."""
    rng = np.random.default_rng(seed)
    b, t = len(lengths), max(lengths) + padding

    def numbers(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).float()

    valid = torch.arange(t) < torch.tensor(lengths)[:, None]
    weight, share = aggregation_weights(valid, aggregation, HORIZON)  # type: ignore[arg-type]
    never = torch.zeros(b, dtype=torch.bool)
    traj = Trajectories(
        inputs=numbers(b, t + 1, N_INPUTS),
        actions=torch.from_numpy(rng.integers(0, 2, (b, t))) if discrete else numbers(b, t, 2),
        logprobs=numbers(b, t) * 0.3 - (0.7 if discrete else 2.5),
        valid=valid,
        rewards=numbers(b, t),
        terminated=~never,
        truncated=never,
        group=torch.arange(b),
        start_key=torch.full((b,), -1),
        success=never,
    )
    return Experience(
        traj=traj,
        weight=weight,
        share=share,
        advantages=numbers(b, t),
        value_targets=torch.from_numpy(rng.random((b, t))),
    )


class OverRows:
    """A loss of a memoryless policy, cut over rows all the same."""

    def __init__(self, loss: Any, block: int = 1) -> None:
        self.loss, self.memoryless, self.block = loss, False, block

    def __call__(self, batch: Experience) -> Any:
        return self.loss(batch)


def network(discrete: bool = True) -> Any:
    kind = CategoricalPolicy if discrete else GaussianPolicy
    policy = kind(N_INPUTS, 2, net_arch=(8,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.weights[-1].mul_(100)  # the usual small initial outputs would make all actions alike
    return policy


def learner_of(module: nn.Module, **settings: float) -> LocalLearner:
    return LocalLearner(module, **{"learning_rate": 0.0, "max_grad_norm": 1e9, "adam_eps": 1e-5} | settings)


def gradient(make_loss: Callable[[Any], Any], data: Experience, discrete: bool = True, **settings: Any) -> Tensor:
    """The gradient of one minibatch that holds everything."""
    module = network(discrete)
    learner = learner_of(module)
    minimise(
        learner,
        make_loss(module),
        data,
        **{"n_epochs": 1, "n_minibatches": 1, "generator": np.random.default_rng(0)} | settings,
    )
    assert learner.grad.abs().max() > 1e-3
    return learner.grad.clone()


def surrogate(policy: Any) -> PolicyLoss:
    return PolicyLoss(policy, 0.2, 0.2, ent_coef=0.01)


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


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


@dataclass(frozen=True)
class Watched:
    """A loss that notes which inputs it was given."""

    memoryless: bool
    block: int = 1

    def __call__(self, batch: Experience) -> Any:
        raise AssertionError("not to be evaluated")


def numbered(lengths: list[int]) -> Experience:
    """Inputs say row and step."""
    data = made_up(lengths)
    b, t = data.traj.valid.shape
    inputs = torch.stack(torch.meshgrid(torch.arange(b), torch.arange(t + 1), indexing="ij"), -1).float()
    return replace(data, traj=replace(data.traj, inputs=inputs))


def seen(part: Experience) -> list[tuple[int, int]]:
    steps = part.traj.inputs[:, : part.traj.valid.shape[1]][part.traj.valid]
    return [(int(row), int(step)) for row, step in steps.tolist()]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    n_minibatches=st.integers(1, 5),
    batch_size=st.one_of(st.none(), st.integers(1, 12)),
    memoryless=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_pass_sees_every_step_once(
    lengths: list[int], n_minibatches: int, batch_size: int | None, memoryless: bool
) -> None:
    data = numbered(lengths)
    parts = list(
        minibatches(data, Watched(memoryless), 2, n_minibatches, batch_size, np.random.default_rng(len(lengths)))
    )
    every = Counter((row, step) for row, length in enumerate(lengths) for step in range(length))
    assert len(parts) % 2 == 0
    half = len(parts) // 2
    for one_pass in (parts[:half], parts[half:]):
        assert Counter(step for part in one_pass for step in seen(part)) == every
    n = sum(lengths) if memoryless else len(lengths)
    sizes = [len(part) for part in parts[:half]]
    assert max(sizes) - min(sizes) <= 1, "minibatches are of equal size"
    if batch_size is None:
        assert half == min(n_minibatches, n)
    else:
        assert max(sizes) <= batch_size and half == -(-n // batch_size)


def test_passes_differ_and_repeat_with_the_generator() -> None:
    data = numbered([5] * 6)
    a, b, c = (
        [seen(part) for part in minibatches(data, Watched(True), 2, 2, None, np.random.default_rng(seed))]
        for seed in (0, 0, 1)
    )
    assert a == b and a != c and a[:2] != a[2:]


@given(n_pairs=st.integers(1, 9), n_minibatches=st.integers(1, 5), batch_size=st.sampled_from([None, 2, 4, 7]))
@settings(max_examples=40, deadline=None)
def test_pairs_stay_together(n_pairs: int, n_minibatches: int, batch_size: int | None) -> None:
    data = numbered([1] * (2 * n_pairs))
    rows = []
    for part in minibatches(data, Watched(False, block=2), 1, n_minibatches, batch_size, np.random.default_rng(0)):
        here = [row for row, _ in seen(part)]
        assert here[::2] == [row - 1 for row in here[1::2]] and all(row % 2 == 0 for row in here[::2])
        rows += here
    assert sorted(rows) == list(range(2 * n_pairs))


def test_pairs_stay_together_in_microbatches() -> None:
    sizes = []

    class Pairs(OverRows):
        def __call__(self, batch: Experience) -> Any:
            sizes.append(len(batch))
            assert (batch.traj.inputs[0::2, 0, 0] + 1 == batch.traj.inputs[1::2, 0, 0]).all()
            return self.loss(batch)

    data = replace(made_up([3, 1, 5, 2, 4, 4]), advantages=torch.ones(6, 5))
    rows = torch.arange(6.0)[:, None, None].expand(6, 6, N_INPUTS)
    data = replace(data, traj=replace(data.traj, inputs=rows))
    gradient(lambda policy: Pairs(surrogate(policy), block=2), data, microbatch_size=3)
    assert sizes == [2, 2, 2]


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


def test_statistics_are_weighted_as_the_loss_is() -> None:
    """Two sequences of 1 and 3 steps with losses 8 and 2, 2, 2: the mean over sequences is 5, over steps 3.5."""

    class Given(OverRows):
        def __call__(self, batch: Experience) -> Any:
            per_step, _ = self.loss(batch)
            return per_step, {"given": torch.where(batch.traj.lengths[:, None] == 1, 8.0, 2.0).expand(-1, 3)}

    for aggregation, expected in (("sequence_mean", 5.0), ("token_mean", 3.5)):
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
