"""Credit against numbers worked by hand, and the identities that tie the kinds of credit together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo.agents.credit import discounted_sum, generalized_advantage, outcome_advantage, whiten

F, T = False, True


def test_discounted_sum_by_hand() -> None:
    # Backwards, with discount 1/2: 4; 2 + 4/2 = 4; 8 + 4/2 = 10.
    x = torch.tensor([[8.0, 2.0, 4.0]])
    assert discounted_sum(x, 0.5).tolist() == [[10, 4, 4]]
    assert discounted_sum(x, 1.0).tolist() == [[14, 6, 4]]
    assert discounted_sum(x, 0.0).tolist() == [[8, 2, 4]]
    assert discounted_sum(x[:, :1], 0.5).tolist() == [[8]]


def test_discounted_sum_of_long_rows_does_not_drift() -> None:
    # 10 000 times 0.1 is 1000; summed in float32 it comes out near 999.9.
    assert float(discounted_sum(torch.full((1, 10_000), 0.1), 1.0)[0, 0]) == pytest.approx(1000, abs=1e-3)


def test_generalized_advantage_by_hand() -> None:
    """gamma = 1/2, lambda = 1/2, so temporal differences are discounted by 1/4 a step."""
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 0.0]])
    values = torch.tensor([[8.0, 4.0, 2.0, 6.0], [8.0, 4.0, 2.0, 6.0], [8.0, 4.0, 2.0, 99.0]])
    valid = torch.tensor([[T, T, T], [T, T, T], [T, T, F]])
    truncated = torch.tensor([F, T, F])
    # Row 0, terminated:   deltas  1 + 4/2 - 8 = -5,  2 + 2/2 - 4 = -1,  4 + 0 - 2 = 2
    #                      A_2 = 2,  A_1 = -1 + 2/4 = -1/2,  A_0 = -5 - 1/8
    # Row 1, truncated: the last delta is 4 + 6/2 - 2 = 5:  A_2 = 5,  A_1 = -1 + 5/4 = 1/4,  A_0 = -5 + 1/16
    # Row 2, terminated after two steps: the last delta is 2 + 0 - 4 = -2, whatever stands in the padding;
    #                      A_1 = -2,  A_0 = -5 - 2/4
    expected = [[-5.125, -0.5, 2], [-4.9375, 0.25, 5], [-5.5, -2, 0]]
    assert generalized_advantage(rewards, values, valid, truncated, gamma=0.5, gae_lambda=0.5).tolist() == expected


def test_truncated_before_the_end_of_the_batch_is_bootstrapped_from_its_own_last_state() -> None:
    # One step, then cut at a state worth 3: A_0 = 1 + 3 - 5 = -1. The padding's value must not be used.
    advantages = generalized_advantage(
        torch.tensor([[1.0, 7.0]]), torch.tensor([[5.0, 3.0, 100.0]]), torch.tensor([[T, F]]), torch.tensor([T])
    )
    assert advantages.tolist() == [[-1, 0]]


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_identities_without_discount(seed: int) -> None:
    """Reward at the end alone, gamma = lambda = 1: A_t = R - V(s_t), so with V = 0 it is R, as from a baseline of 0."""
    rng = np.random.default_rng(seed)
    lengths = torch.from_numpy(rng.integers(1, 30, 8))
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    outcomes = torch.from_numpy(rng.integers(0, 2, 8)).float()
    rewards = torch.zeros(valid.shape)
    rewards[torch.arange(8), lengths - 1] = outcomes
    values = torch.from_numpy(rng.random((8, valid.shape[1] + 1))).float()
    never = torch.zeros(8, dtype=torch.bool)

    advantages = generalized_advantage(rewards, values, valid, never)
    torch.testing.assert_close(advantages + values[:, :-1] * valid, outcomes[:, None] * valid, atol=2e-6, rtol=0)
    without_values = generalized_advantage(rewards, torch.zeros_like(values), valid, never)
    torch.testing.assert_close(without_values, outcome_advantage(outcomes, 0.0, valid))
    constant = generalized_advantage(rewards, values[:, :1].expand_as(values), valid, never)
    torch.testing.assert_close(constant, outcome_advantage(outcomes, values[:, 0], valid), atol=2e-6, rtol=0)


def test_lambda_zero_is_the_temporal_difference() -> None:
    # 1 + 0.5 * 4 - 8 = -5 and 2 + 0.5 * 2 - 4 = -1, unmixed.
    advantages = generalized_advantage(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[8.0, 4.0, 2.0]]),
        torch.tensor([[T, T]]),
        torch.tensor([T]),
        gamma=0.5,
        gae_lambda=0.0,
    )
    assert advantages.tolist() == [[-5, -1]]


def test_padding_may_hold_anything() -> None:
    valid, cut = torch.tensor([[T, T, F, F]]), torch.tensor([T])
    rewards, values = torch.tensor([[1.0, 2.0, 0.0, 0.0]]), torch.tensor([[8.0, 4.0, 2.0, 0.0, 0.0]])
    clean = generalized_advantage(rewards, values, valid, cut, gamma=0.9, gae_lambda=0.8)
    rewards[0, 2:], values[0, 3:] = float("nan"), float("inf")
    dirty = generalized_advantage(rewards, values, valid, cut, gamma=0.9, gae_lambda=0.8)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)


def test_values_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"values must be \(B, T \+ 1\) = \(2, 4\), got \(2, 3\)"):
        generalized_advantage(
            torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
        )


def test_outcome_advantage_by_hand() -> None:
    valid = torch.tensor([[T, T], [T, F]])
    # 1 - 1/4 and 0 - 1/2, on the steps taken.
    expected = [[0.75, 0.75], [-0.5, 0]]
    assert outcome_advantage(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.5]), valid).tolist() == expected
    assert outcome_advantage(torch.tensor([1.0, 0.0]), 0.5, valid).tolist() == [[0.5, 0.5], [-0.5, 0]]


def test_whiten_by_hand() -> None:
    # The valid ones are 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7. The padding's 100 counts for nothing.
    advantages = torch.tensor([[1.0, 2.0], [6.0, 100.0]])
    white = whiten(advantages, torch.tensor([[T, T], [T, F]]))
    torch.testing.assert_close(white * 7**0.5, torch.tensor([[-2.0, -1.0], [3.0, 0.0]]))


def test_whiten_leaves_a_single_step_and_silences_equal_ones() -> None:
    assert whiten(torch.tensor([[3.0]]), torch.tensor([[T]])).tolist() == [[3]]
    assert whiten(torch.tensor([[3.0, 3.0]]), torch.tensor([[T, T]])).tolist() == [[0, 0]]
