"""Per-step losses and their weights against numbers worked by hand."""

from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppo.agents.losses import (
    aggregation_weights,
    approximate_kl,
    binary_cross_entropy,
    clipped_surrogate,
    kl_estimate,
    probability_mask,
    squared_error,
)

F, T = False, True


def surrogate(ratio: float, advantage: float, low: float = 0.2, high: float = 0.2) -> tuple[float, float]:
    """Loss and its derivative by the log-probability of one step with this ratio."""
    logprob = torch.tensor([[log(ratio) - 1.0]], requires_grad=True)
    loss = clipped_surrogate(logprob, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), clip_low=low, clip_high=high)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return float(loss.detach()), float(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # A > 0: what lies above 1.2 is clipped, and the gradient is gone; what lies below 0.8 is not.
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        # A < 0: what lies below 0.8 is clipped; what lies above 1.2 is not.
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
        # Between the bounds nothing is clipped: -r A, with gradient -r A.
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        (1.0, 3.0, -3.0, -3.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert surrogate(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-6)


def test_clip_bounds_are_apart() -> None:
    # 1.25 lies within 1 + 0.28 and past 1 + 0.2; 0.75 lies within 1 - 0.28 and past 1 - 0.2.
    assert surrogate(1.25, 1.0, low=0.2, high=0.28) == pytest.approx((-1.25, -1.25), abs=1e-6)
    assert surrogate(1.25, 1.0, low=0.28, high=0.2) == pytest.approx((-1.2, 0.0), abs=1e-6)
    assert surrogate(0.75, -1.0, low=0.28, high=0.2) == pytest.approx((0.75, 0.75), abs=1e-6)
    assert surrogate(0.75, -1.0, low=0.2, high=0.28) == pytest.approx((0.8, 0.0), abs=1e-6)


def test_value_losses_by_hand() -> None:
    assert squared_error(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0])).tolist() == [4, 9]
    # sigmoid(log 3) = 3/4: -log(3/4) for R = 1, -log(1/4) for R = 0, half of each for R = 1/2.
    losses = binary_cross_entropy(torch.full((3,), log(3.0)), torch.tensor([1.0, 0.0, 0.5]))
    assert losses.tolist() == pytest.approx([0.287682, 1.386294, 0.836988], abs=1e-6)
    # A certain and wrong logit gives a large loss, not infinity.
    assert float(binary_cross_entropy(torch.tensor(200.0), torch.tensor(0.0))) == pytest.approx(200)


def test_kl_estimate_by_hand() -> None:
    # r = 2: 2 - 1 - log 2; r = 1/2: 1/2 - 1 + log 2.
    new, old = torch.tensor([[log(2.0), -log(2.0), 0.0]]), torch.zeros(1, 3)
    assert approximate_kl(new, old)[0].tolist() == pytest.approx([0.306853, 0.193147, 0], abs=1e-6)


@given(st.floats(-20, 20), st.floats(-20, 20))
@settings(max_examples=200, deadline=None)
def test_kl_estimate_is_never_negative(new: float, old: float) -> None:
    assert float(approximate_kl(torch.tensor([[new]]), torch.tensor([[old]]))) >= 0


def test_kl_estimate_is_unbiased() -> None:
    # Old (1/4, 3/4), new (1/2, 1/2): KL(old || new) = 1/4 log(1/2) + 3/4 log(3/2) = 0.130812.
    old, new = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    assert float((old * approximate_kl(new.log(), old.log())).sum()) == pytest.approx(0.130812, abs=1e-6)


def test_estimators_of_the_divergence_by_hand() -> None:
    # d = log 2: k1 = 0.693147; k2 = d^2 / 2 = 0.240227; k3 = 1/2 - 1 + log 2 = 0.193147.
    new, ref = torch.tensor([[log(2.0)]]), torch.zeros(1, 1)
    for name, expected in (("k1", 0.693147), ("k2", 0.240227), ("k3", 0.193147)):
        assert float(kl_estimate(new, ref, name)) == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]


def test_what_the_estimators_estimate_and_where_their_gradients_lead() -> None:
    """Policy (1/2, 1/2), reference (1/4, 3/4): exact sums over both actions in place of samples.

    KL(policy || ref) = 1/2 log 2 + 1/2 log(2/3) = 0.143841, with gradient p_1 p_2 (d_1 - d_2) = log(3) / 4 = 0.274653
    by the first logit; that of KL(ref || policy) is p_1 - ref_1 = 1/4.
    """
    ref = torch.tensor([[0.25, 0.75]]).log()
    for name, mean, slope in (("k1", 0.143841, 0.0), ("k2", None, 0.274653), ("k3", 0.143841, 0.25)):
        logits = torch.zeros(1, 2, requires_grad=True)
        expected = 0.5 * kl_estimate(logits.log_softmax(1), ref, name).sum()  # type: ignore[arg-type]
        if mean is not None:
            assert float(expected.detach()) == pytest.approx(mean, abs=1e-6)
        expected.backward()
        assert logits.grad is not None and float(logits.grad[0, 0]) == pytest.approx(slope, abs=1e-6)


def test_in_the_reward_only_the_first_leads_back() -> None:
    """Policy (0.8, 0.2), reference (1/2, 1/2): the gradient of the expected charge is p_1 p_2 (k_1 - k_2).

    d = 0.470004 and -0.916291: k1 0.16 x 1.386294; k2 0.16 x (0.110452 - 0.419794), which leads away; k3 alike,
    0.16 x (0.095004 - 0.583709).
    """
    ref, p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]])
    for name, slope in (("k1", 0.221807), ("k2", -0.049495), ("k3", -0.078193)):
        logits = p.log().requires_grad_()
        logprobs = logits.log_softmax(1)
        charge = kl_estimate(logprobs.detach(), ref, name)  # type: ignore[arg-type]
        (p * logprobs * charge).sum().backward()
        assert logits.grad is not None and float(logits.grad[0, 0]) == pytest.approx(slope, abs=1e-5)


def test_mask_of_probabilities_by_hand() -> None:
    logprobs = torch.tensor([[0.1, 0.5, 0.95], [0.9, 0.2, 0.1]]).log()
    valid = torch.tensor([[T, T, T], [T, T, F]])
    assert probability_mask(logprobs, valid, 0.92).tolist() == [[T, T, F], [T, T, F]]
    assert probability_mask(logprobs, valid, 0.3).tolist() == [[T, F, F], [F, T, F]]
    assert probability_mask(logprobs, valid, 0.01).sum() == 0


def test_mask_of_densities_by_hand() -> None:
    """Five densities, two of them above 1: the least likely 40 % are -3 and -1. The padding counts for nothing."""
    logprobs = torch.tensor([[-3.0, 2.0, 0.0], [-1.0, 1.0, -9.0]])
    valid = torch.tensor([[T, T, T], [T, T, F]])
    assert probability_mask(logprobs, valid, 0.4, density=True).tolist() == [[T, F, F], [T, F, F]]
    assert probability_mask(logprobs, valid, 0.8, density=True).tolist() == [[T, F, T], [T, T, F]]
    assert probability_mask(logprobs, valid & False, 0.5, density=True).sum() == 0


def reduced(losses: Tensor, valid: Tensor, aggregation: str, horizon: int | None = None) -> float:
    weight, share = aggregation_weights(valid, aggregation, horizon)  # type: ignore[arg-type]
    return float((weight * losses).sum() / share.sum())


def test_aggregations_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0, 6.0], [8.0, 4.0, 99.0, 99.0]])
    valid = torch.tensor([[T, T, T, T], [T, T, F, F]])
    # Six steps that sum to 24.
    assert reduced(losses, valid, "token_mean") == pytest.approx(4)
    # Means of the sequences: 12 / 4 = 3 and 12 / 2 = 6.
    assert reduced(losses, valid, "sequence_mean") == pytest.approx(4.5)
    # 24 / (2 sequences x 10).
    assert reduced(losses, valid, "constant_horizon", 10) == pytest.approx(1.2)


def test_a_sequence_without_steps_has_no_share() -> None:
    losses, valid = torch.tensor([[2.0, 4.0], [99.0, 99.0]]), torch.tensor([[T, T], [F, F]])
    for aggregation, expected in (("token_mean", 3), ("sequence_mean", 3), ("constant_horizon", 1.5)):
        assert reduced(losses, valid, aggregation, 4) == pytest.approx(expected)


def test_aggregation_errors() -> None:
    valid = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="constant_horizon needs horizon >= 1, got None"):
        aggregation_weights(valid, "constant_horizon")
    with pytest.raises(ValueError, match="token_mean, sequence_mean or constant_horizon, got 'mean'"):
        aggregation_weights(valid, "mean")  # type: ignore[arg-type]
