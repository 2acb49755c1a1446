"""Statistics over seeds: published examples, hand-worked values, scipy's trimmed mean, coverage, and refusals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from sppo.experiments import curves, stats

NAN = float("nan")
INF = float("inf")


def test_iqm_drops_a_quarter_at_each_end() -> None:
    """The examples of Wikipedia, "Interquartile mean": of 12 values (5 + 6 + 6 + 7 + 7 + 8) / 6 are left, and 9 in even
    steps have their middle. Where 4 does not divide their number it weights the outermost; ours are whole."""
    assert stats.interquartile_mean([5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6]) == 6.5
    assert stats.interquartile_mean([1, 3, 5, 7, 9, 11, 13, 15, 17]) == 9
    # 5 seeds, floor(5 / 4) = 1 cut at each end: (0.2 + 0.4 + 0.9) / 3; with 1 1/4 cut it would be 0.49
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


MICE = [94, 197, 16, 38, 99, 141, 23]
CONTROLS = [52, 104, 146, 10, 51, 30, 40, 27, 46]
"""Days that mice lived, treated and not."""


def test_the_bootstrap_of_efron_and_tibshirani_s_mice() -> None:
    """An Introduction to the Bootstrap, 1993, chapter 2: means 86.86 and 56.22, 30.63 apart.

    Infinitely many replicates are the 1716 multisets of seven, each as likely as it has orders among 7^7.
    """
    sets = [*combinations_with_replacement(sorted(MICE), 7)]
    orders = [math.factorial(7) / math.prod(map(math.factorial, Counter(each).values())) for each in sets]
    chances = np.array(orders) / 7**7
    assert len(sets) == 1716 and chances.sum() == pytest.approx(1)
    means = np.mean(sets, axis=1)
    order = means.argsort()

    def exact(q: float) -> float:
        return float(means[order][chances[order].cumsum().searchsorted(q)])

    estimate, low, high = stats.bootstrap_interval(MICE, 0, statistic=stats.mean_statistic, resamples=100_000)
    assert estimate == pytest.approx(86.86, abs=0.005)
    # 100 000 draws miss a share of 0.025 by 0.0005
    assert exact(0.023) <= low <= exact(0.027) < 45 and 133 < exact(0.973) <= high <= exact(0.977)
    apart = stats.difference(MICE, CONTROLS, 0, statistic=stats.mean_statistic)
    assert apart.estimate == pytest.approx(30.63, abs=0.005)


CROSSED = [23.5, 12, 21, 22, 19.125, 21.5, 22.125, 20.375, 18.25, 21.625, 23.25, 21, 22.125, 23, 12]
SELFED = [17.375, 20.375, 20, 20, 18.375, 18.625, 18.625, 15.25, 16.5, 18, 16.25, 18, 12.75, 15.5, 18]


def test_paired_differences_of_darwin_s_maize() -> None:
    """Heights in inches of 15 pairs, which Fisher 1935, The Design of Experiments, chapter 3, has as an example of
    Student's test; the figures as the reference of R's HistData::ZeaMays gives them: mean 2.616667, 95% interval
    0.003899 to 5.229434."""
    gaps = np.subtract(CROSSED, SELFED)
    mean, low, high = found = stats.mean_interval(gaps)
    np.testing.assert_allclose(found, [2.616667, 0.003899, 5.229434], atol=1e-6)
    # A mean's bootstrap in pairs is that of the differences, draw by draw.
    paired = stats.paired_difference(CROSSED, SELFED, 0, statistic=stats.mean_statistic)
    np.testing.assert_allclose(paired, stats.bootstrap_interval(gaps, 0, statistic=stats.mean_statistic))
    assert low < paired.low < mean < paired.high < high


def test_up_to_four_scores_the_interval_is_from_the_least_to_the_greatest() -> None:
    """Of 4 all but one draw is of the least, whose IQM is then the least, with chance 13 / 256, of 3 with 1 / 27. So
    the interval misses where all scores lie on one side: 2 / 2^S."""
    assert stats.bootstrap_interval([3, 1, 2, 7], 0)[1:] == (1, 7)
    assert stats.bootstrap_interval([3, 1, 2], 0)[1:] == (1, 3)
    assert [stats.bootstrap_coverage(n) for n in (1, 2, 3, 4)] == [1 - 2 / 2**n for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(("seeds", "held"), [(3, 0.75), (5, 0.90), (10, 0.93)])
def test_what_a_nominal_95_percent_holds(seeds: int, held: float, rng: np.random.Generator) -> None:
    """The truth is 0, of one IQM and of a difference of two: 2000 samples miss their share by 0.01 at most."""
    samples = rng.normal(size=(2, 2000, seeds))
    alone = [stats.bootstrap_interval(x, rng, resamples=400) for x in samples[0]]
    pairs = [stats.paired_difference(x, y, rng, resamples=400) for x, y in zip(*samples, strict=True)]
    for found in (alone, pairs):
        assert np.mean([low <= 0 <= high for _, low, high in found]) == pytest.approx(held, abs=0.025)
    assert stats.bootstrap_coverage(seeds) == held
    assert math.isnan(stats.bootstrap_coverage(seeds, 0.9))


def test_replicates_without_a_value_count_against_either_end() -> None:
    # Of two rows, the second without a value, three draws of four have none.
    found = stats.bootstrap_rows((2,), lambda rows: np.where(rows == 1, NAN, 1.0).mean(-1), 0)
    np.testing.assert_equal(found, (NAN, -INF, INF))
    assert stats.bootstrap_rows((3, 2), lambda rows: rows.sum((-2, -1)), 0, level=0.9).estimate == 6


def test_probability_of_improvement_of_tortoises_over_hares() -> None:
    """Wikipedia, "Mann-Whitney U test": home in the order T H H H H H T T T T T H, a tortoise beats a hare in 11 of 36
    pairs, a hare a tortoise in 25."""
    places = dict(enumerate("THHHHHTTTTTH"))
    tortoises, hares = ([-place for place, animal in places.items() if animal == kind] for kind in "TH")
    assert stats.probability_of_improvement(tortoises, hares, 0).estimate == pytest.approx(11 / 36)
    assert stats.probability_of_improvement(hares, tortoises, 0).estimate == pytest.approx(25 / 36)


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


def test_a_difference_of_means_of_unlike_spread() -> None:
    """Variances 1 and 4 of three each: sqrt(1/3 + 4/3) = 1.291, (5/3)^2 / (1/18 + 16/18) = 2.941 degrees of freedom,
    of which t = 3.219. Without spread nothing is left to chance."""
    np.testing.assert_allclose(stats.mean_difference([1, 2, 3], [4, 6, 8]), [-4, -4 - 4.156, -4 + 4.156], atol=2e-3)
    assert stats.mean_difference([1.0, 1.0], [3.0, 3.0]) == (-2, -2, -2)
    assert stats.mean_difference([1.0], [3.0, 4.0]) == (-2.5, -np.inf, np.inf)


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
        (lambda: stats.mean_interval([1.0, 2.0], level=1), "level must lie between 0 and 1, got 1"),
        (lambda: stats.bootstrap_rows((0,), np.mean, 0), r"shape must hold at least one row, got \(0,\)"),
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


def test_one_value_has_an_infinite_interval() -> None:
    assert stats.mean_interval([2.0]) == (2.0, -np.inf, np.inf)
