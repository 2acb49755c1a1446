"""Statistics over seeds: hand-worked values, scipy's trimmed mean, coverage, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from sppo.experiments import curves, stats

NAN = float("nan")
INF = float("inf")


def test_iqm_drops_a_quarter_at_each_end() -> None:
    # 8 values, 2 cut at each end: (3 + 4 + 5 + 6) / 4
    assert stats.interquartile_mean([100, 1, 3, 4, 5, 6, 2, 7]) == 4.5
    # 5 seeds, floor(5 / 4) = 1 cut at each end: (0.2 + 0.4 + 0.9) / 3
    assert stats.interquartile_mean([0.9, 0.2, 0.0, 0.4, 1.0]) == pytest.approx(0.5)
    # 3 seeds: nothing is cut
    assert stats.interquartile_mean([0.0, 0.0, 0.9]) == pytest.approx(0.3)


def test_iqm_pools_seeds_and_tasks() -> None:
    # sorted 0 0 1 1 | 2 2 3 3 pooled: cut 0 0 and 3 3, (1 + 1 + 2 + 2) / 4
    assert stats.interquartile_mean([[0, 2], [1, 3], [0, 2], [1, 3]]) == 1.5


def test_iqm_with_seeds_that_never_reached() -> None:
    # sorted 10 20 30 40 inf, one cut at each end: (20 + 30 + 40) / 3
    assert stats.interquartile_mean([10, INF, 30, 20, 40]) == 30.0
    # two of five never: one inf stays in the middle
    assert stats.interquartile_mean([10, INF, 30, 20, INF]) == INF


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_iqm_is_scipys_quarter_trimmed_mean(values: list[float]) -> None:
    assert stats.interquartile_mean(values) == pytest.approx(float(trim_mean(values, 0.25)), rel=1e-9, abs=1e-6)


def test_interval_of_equal_scores_is_a_point() -> None:
    assert stats.bootstrap_interval([0.5] * 5, 0) == (0.5, 0.5, 0.5)


def test_interval_of_two_scores() -> None:
    # Two seeds, 0 and 1: replicates are 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so 95% spans all and 40% only 1/2.
    assert stats.bootstrap_interval([0.0, 1.0], 0) == (0.5, 0.0, 1.0)
    assert stats.bootstrap_interval([0.0, 1.0], 0, level=0.4) == (0.5, 0.5, 0.5)


def test_strata_keep_the_tasks_apart() -> None:
    # Seeds agree within each task, tasks differ: resampling inside tasks changes nothing.
    scores = [[0.0, 1.0]] * 4
    assert stats.bootstrap_interval(scores, 0, statistic=stats.mean_statistic) == (0.5, 0.5, 0.5)


def test_interval_ends_may_be_never() -> None:
    got = stats.bootstrap_interval([10, 20, 30, 40, INF], 0)
    assert got.estimate == 30.0
    assert got.low < 30.0
    assert got.high == INF


def test_same_seed_same_interval_and_generator_advances() -> None:
    scores = np.arange(7.0)
    assert stats.bootstrap_interval(scores, 3) == stats.bootstrap_interval(scores, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    stats.bootstrap_interval(scores, rng)
    assert rng.random() != np.random.default_rng(3).random()


def test_bootstrap_covers_the_mean(rng: np.random.Generator) -> None:
    """20 seeds, 2 tasks with different means: about 95 of 100 intervals hold the truth, (0 + 3) / 2."""
    hits = 0
    for _ in range(300):
        scores = rng.normal([0.0, 3.0], [1.0, 2.0], size=(20, 2))
        _, low, high = stats.bootstrap_interval(scores, rng, statistic=stats.mean_statistic, resamples=400)
        hits += low <= 1.5 <= high
    assert 0.89 <= hits / 300 <= 0.98


def test_probability_of_improvement_by_hand() -> None:
    # pairs (1,0)+ (1,2)- (2,0)+ (2,2)=: (1 + 0 + 1 + 1/2) / 4
    assert stats.probability_of_improvement([1, 2], [0, 2], 0).estimate == 0.625
    # seeds may differ in number: 3 against (1, 4): (1 + 0) / 2
    assert stats.probability_of_improvement([3], [1, 4], 0).estimate == 0.5
    # task 1 always wins, task 2 always ties: (1 + 1/2) / 2, with nothing to resample
    assert stats.probability_of_improvement([[1, 5], [1, 5]], [[0, 5], [0, 5]], 0) == (0.75, 0.75, 0.75)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_probability_of_improvement_of_both_sides_is_one(x: list[int], y: list[int]) -> None:
    there = stats.probability_of_improvement(x, y, 0, resamples=1).estimate
    back = stats.probability_of_improvement(y, x, 0, resamples=1).estimate
    assert there + back == pytest.approx(1.0)


def test_never_ties_with_never() -> None:
    assert stats.probability_of_improvement([INF], [INF], 0).estimate == 0.5


def test_paired_difference_sees_through_the_spread_of_seeds() -> None:
    # every seed gains exactly 1 although seeds spread over 100: no uncertainty in pairs, much without
    y = np.array([0.0, 25.0, 50.0, 75.0, 100.0])
    assert stats.paired_difference(y + 1, y, 0) == (1.0, 1.0, 1.0)
    # the default is the difference of the two IQMs: (1 + 2 + 3) / 3 - (4 + 5 + 6) / 3; of means: 10 / 5 - 115 / 5
    x, z = [0, 1, 2, 3, 4], [100, 4, 5, 6, 0]
    assert stats.paired_difference(x, z, 0).estimate == -3.0
    assert stats.paired_difference(x, z, 0, statistic=stats.mean_statistic).estimate == -21.0
    loose = stats.difference(y + 1, y, 0)
    assert loose.estimate == 1.0
    assert loose.low < -20
    assert loose.high > 20


def test_difference_takes_unequal_numbers_of_seeds() -> None:
    # IQM 4 - IQM 1
    assert stats.difference([4.0] * 3, [1.0] * 5, 0) == (3.0, 3.0, 3.0)


def test_curve_band_is_pointwise_iqm() -> None:
    # 4 seeds, one cut at each end: point 1 (1 + 2) / 2, point 2 all equal
    middle, low, high = stats.curve_band([[0, 7], [1, 7], [2, 7], [9, 7]], 0)
    assert middle.tolist() == [1.5, 7.0]
    assert low[0] < 1.5 < high[0]
    assert (low[1], high[1]) == (7.0, 7.0)


def test_a_performance_profile_by_hand() -> None:
    """Two seeds of two tasks, .1 and .5, .6 and .9: all are above 0, three above .1, two above .5, none above .9."""
    share, low, high = stats.performance_profile([[0.1, 0.6], [0.5, 0.9]], [0, 0.1, 0.5, 0.9], 0)
    assert share.tolist() == [1, 0.75, 0.5, 0]
    # a replicate draws seeds inside each task: both of the first task may be .1, and then one half is above it
    assert (low.tolist(), high.tolist()) == ([1, 0.5, 0.5, 0], [1, 1, 0.5, 0])


def test_area_under_curve_by_hand() -> None:
    # a ramp from 0 to 1 over the budget
    assert curves.area_under_curve([0, 10], [0, 1], 10) == 0.5
    # 0 until 4 (first value held back), ramp 4..8 worth 2, then 1 held to 10: (0 + 2 + 2) / 10
    assert curves.area_under_curve([4, 8], [0, 1], 10) == pytest.approx(0.4)
    # a record past the budget counts only as the line towards it: the ramp 0..20 is 1/2 at 10, area 2.5 of 10
    assert curves.area_under_curve([0, 20], [0, 1], 10) == pytest.approx(0.25)
    # one record is a level curve
    assert curves.area_under_curve([5], [0.3], 10) == pytest.approx(0.3)


def test_first_crossing_by_hand() -> None:
    assert curves.first_crossing([1, 2, 3], [0.1, 0.9, 0.95], 0.9) == 2
    # falling back below does not undo it
    assert curves.first_crossing([1, 2, 3], [0.95, 0.2, 0.95], 0.9) == 1
    assert math.isinf(curves.first_crossing([1, 2, 3], [0.1, 0.2, 0.89], 0.9))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: stats.interquartile_mean([]), "scores must hold at least one value"),
        (lambda: stats.interquartile_mean([[1.0, NAN]]), r"scores must be free of NaN, got nan at index \(0, 1\)"),
        (lambda: stats.interquartile_mean(np.zeros((2, 2, 2))), "scores must have 1 or 2 dimensions"),
        (lambda: stats.bootstrap_interval([NAN], 0), "scores"),
        (lambda: stats.bootstrap_interval([1.0], 0, level=1.0), "level must lie between 0 and 1, got 1.0"),
        (lambda: stats.bootstrap_interval([1.0], 0, resamples=0), "resamples must be at least 1, got 0"),
        (lambda: stats.probability_of_improvement([1.0], [], 0), "y must hold at least one value"),
        (lambda: stats.probability_of_improvement([[1.0, 2.0]], [1.0], 0), "same tasks, got 2 and 1"),
        (lambda: stats.paired_difference([1.0, 2.0], [1.0], 0), "same shape to be paired"),
        (lambda: stats.paired_difference([INF], [1.0], 0), r"x must be finite, got inf at index \(0,\)"),
        (lambda: stats.difference([1.0], [NAN], 0), "y must be finite"),
        (lambda: stats.curve_band([1.0], 0), "curves must have 2 dimensions"),
        (lambda: stats.performance_profile([1.0], [NAN], 0), "thresholds must be free of NaN"),
        (lambda: curves.area_under_curve([0, 0], [1, 1], 1), "x must increase strictly, got 0 then 0 at index 1"),
        (lambda: curves.area_under_curve([0, 1], [1, 1], 0), "budget must be finite and above 0, got 0"),
        (lambda: curves.area_under_curve([0, 1], [1], 1), "same length, got 2 and 1"),
        (lambda: curves.first_crossing([], [], 0.9), "x must hold at least one value"),
        (lambda: curves.first_crossing([0], [NAN], 0.9), "y must be finite"),
        (lambda: curves.first_crossing([0], [1], NAN), "threshold"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def test_student_s_interval_of_a_mean_against_the_printed_table() -> None:
    """1, 2, 3, 4, 5: mean 3, sd 1.5811, standard error 0.7071; t(0.975, 4) = 2.776: 3 -+ 1.963."""
    np.testing.assert_allclose(stats.mean_interval([1, 2, 3, 4, 5]), [3, 1.0370, 4.9630], atol=1e-3)
    assert stats.mean_interval([2.0]) == (2.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 1"):
        stats.mean_interval([1.0, 2.0], level=1)
