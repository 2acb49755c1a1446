"""Statistics over seeds and tasks: pure functions on arrays, every random draw from a generator handed in.

Scores are (S, K) or (S,): S seeds (runs of one configuration), K tasks; one task may drop its axis. Values may be
infinite (a threshold that was never reached), never NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from scipy.stats import ttest_ind

Floats = NDArray[np.float64]
# Reduces the last two axes, seeds and tasks: (..., S, K) -> (...)
Statistic = Callable[[Floats], Floats]
# What is worked out of row numbers, in order or drawn: (..., S, K) or (..., S) -> (...)
Rows = NDArray[np.int64]
OfRows = Callable[[Rows], Floats]
Seed = np.random.Generator | int

RESAMPLES = 5000
COVERAGE = {1: 0.0, 2: 0.5, 3: 0.75, 4: 0.875, 5: 0.90, 8: 0.93, 20: 0.94}


class Interval(NamedTuple):
    """A point estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def checked(name: str, values: ArrayLike, dims: tuple[int, ...], finite: bool = False) -> Floats:
    """As an array with one of these numbers of dimensions, or a ValueError that names it."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in dims:
        raise ValueError(f"{name} must have {' or '.join(map(str, dims))} dimensions, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one value, got shape {array.shape}")
    bad = ~np.isfinite(array) if finite else np.isnan(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} must be {'finite' if finite else 'free of NaN'}, got {array[where]} at index {where}")
    return array


def _scores(name: str, values: ArrayLike, finite: bool = False) -> Floats:
    array = checked(name, values, (1, 2), finite)
    return array[:, None] if array.ndim == 1 else array  # (S, K)


def _drawn(shape: tuple[int, ...], resamples: int, rng: np.random.Generator) -> Rows:
    """Which of S rows each replicate draws, with replacement and inside every column apart: (resamples, *shape)."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    return rng.integers(shape[0], size=(resamples, *shape))


def _taken(scores: Floats, rows: Rows) -> Floats:
    """Of (S, K) the rows (..., S, K)."""
    return scores[rows, np.arange(scores.shape[1])]


def _ends(replicates: Floats, level: float) -> tuple[Floats, Floats]:
    """The two quantiles of the replicates along axis 0; one without a value, NaN, counts against either end.

    Taken without interpolation, which has no answer at inf.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    tail, unknown = (1.0 - level) / 2.0, np.isnan(replicates)
    low, high = (
        np.quantile(np.where(unknown, worst, replicates), q, axis=0, method="inverted_cdf")
        for q, worst in ((tail, -np.inf), (1.0 - tail, np.inf))
    )
    return low, high


def _interval(estimate: Floats, replicates: Floats, level: float) -> Interval:
    low, high = _ends(replicates, level)
    return Interval(float(estimate), float(low), float(high))


def _trimmed_mean(values: Floats, axis: int) -> Floats:
    n = values.shape[axis]
    cut = n // 4
    middle = np.sort(values, axis=axis).take(np.arange(cut, n - cut), axis=axis)
    return np.asarray(middle.mean(axis=axis))


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all scores: as robust as a median, with less variance.

    IQM = mean(z_(c+1), ..., z_(n-c)), z sorted over seeds and tasks, n = S K, c = floor(n / 4)

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    Args:
        scores: (S, K) or (S,).
    Raises:
        ValueError: no scores, or NaN among them.
    """
    return float(iqm_statistic(_scores("scores", scores)))


def iqm_statistic(samples: Floats) -> Floats:
    """`interquartile_mean` over the last two axes, (..., S, K) -> (...), for `bootstrap_interval`."""
    return _trimmed_mean(samples.reshape(*samples.shape[:-2], -1), axis=-1)


def mean_statistic(samples: Floats) -> Floats:
    """The mean over the last two axes, (..., S, K) -> (...), for `bootstrap_interval`."""
    return np.asarray(samples.mean(axis=(-2, -1)))


def bootstrap_rows(
    shape: tuple[int, ...], statistic: OfRows, rng: Seed, *, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Percentile-bootstrap interval of whatever is worked out of numbered rows, which are drawn inside columns.

    Source: Efron 1979.
    Args:
        shape: (S, K) or (S,), of S rows in each of K columns.
        statistic: maps row numbers (..., *shape) to (...), NaN where it has no value.
        rng, level, resamples: as in `bootstrap_interval`.
    Raises:
        ValueError: no rows, a level outside (0, 1), no resamples.
    """
    if min(shape) < 1:
        raise ValueError(f"shape must hold at least one row, got {shape}")
    replicates = statistic(_drawn(shape, resamples, np.random.default_rng(rng)))
    return _interval(statistic(np.indices(shape)[0]), replicates, level)


def bootstrap_interval(
    scores: ArrayLike,
    rng: Seed,
    *,
    statistic: Statistic = iqm_statistic,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Stratified percentile-bootstrap interval of a statistic of scores; the strata are the tasks.

    [q_a(f(z*)), q_(1-a)(f(z*))], a = (1 - level) / 2, z*[:, k] = S draws with replacement from z[:, k]

    Intervals from few seeds are too narrow (`bootstrap_coverage`).

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    Args:
        scores: (S, K) or (S,).
        rng: generator, or the seed of one.
        statistic: maps (..., S, K) to (...); the default is the interquartile mean.
        level: coverage asked for, in (0, 1).
        resamples: bootstrap replicates.
    Raises:
        ValueError: no scores, NaN among them, a level outside (0, 1), no resamples.
    """
    z = _scores("scores", scores)
    return bootstrap_rows(z.shape, lambda rows: statistic(_taken(z, rows)), rng, level=level, resamples=resamples)


def bootstrap_coverage(seeds: int, level: float = 0.95) -> float:
    """How often a nominal 95% interval of an IQM of so many normal scores, or of a paired difference, holds the truth.

    Up to 4 scores it reaches from the least to the greatest: 1 - 2^(1 - S). From 5 on simulated, 20000 samples each;
    numbers between have that of the next fewer. It is a little more of scores that are not paired, or of several tasks.
    NaN at another level.
    """
    return COVERAGE[max(n for n in COVERAGE if n <= seeds)] if level == 0.95 else np.nan


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, rng: Seed, *, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """How likely a run of X scores above a run of Y on a task drawn at random, ties counting half.

    P(X > Y) = 1/K sum_k 1/(S_x S_y) sum_ij [x_ik > y_jk] + [x_ik = y_jk] / 2

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    Args:
        x: (S_x, K) or (S_x,).
        y: (S_y, K) or (S_y,); the same tasks, the number of seeds may differ.
        rng, level, resamples: as in `bootstrap_interval`; X and Y are resampled apart, within tasks.
    Raises:
        ValueError: no scores, NaN among them, tasks that differ in number, a bad level or number of resamples.
    """
    xs, ys = _scores("x", x), _scores("y", y)
    if xs.shape[1] != ys.shape[1]:
        raise ValueError(f"x and y must have the same tasks, got {xs.shape[1]} and {ys.shape[1]}")
    generator = np.random.default_rng(rng)

    def wins(a: Floats, b: Floats) -> Floats:
        left, right = a[..., :, None, :], b[..., None, :, :]
        return np.asarray(((left > right) + 0.5 * (left == right)).mean(axis=(-3, -2, -1)))

    replicates = wins(*(_taken(z, _drawn(z.shape, resamples, generator)) for z in (xs, ys)))
    return _interval(wins(xs, ys), replicates, level)


def paired_difference(
    x: ArrayLike,
    y: ArrayLike,
    rng: Seed,
    *,
    statistic: Statistic = iqm_statistic,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """A statistic of X minus the same of Y, for runs that share a seed (same start policy, same held-out states).

    D = f(x) - f(y); row s of x and row s of y are drawn together, within tasks

    Source: Agarwal et al. 2021, arXiv 2108.13264, for the stratified bootstrap.
    Args:
        x: (S, K) or (S,), finite.
        y: the same shape, row s from the same seed as row s of x.
        rng, statistic, level, resamples: as in `bootstrap_interval`.
    Raises:
        ValueError: no scores, values that are not finite, shapes that differ, a bad level or number of resamples.
    """
    xs, ys = _scores("x", x, finite=True), _scores("y", y, finite=True)
    if xs.shape != ys.shape:
        raise ValueError(f"x and y must have the same shape to be paired, got {xs.shape} and {ys.shape}")

    def gap(rows: Rows) -> Floats:
        return np.asarray(statistic(_taken(xs, rows)) - statistic(_taken(ys, rows)))

    return bootstrap_rows(xs.shape, gap, rng, level=level, resamples=resamples)


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of a few independent values with Student's interval, which holds its level where a bootstrap's does not.

    m -+ t_((1 + level) / 2, S - 1) s / sqrt(S), s^2 = sum (v - m)^2 / (S - 1)

    Source: Student 1908.
    Args:
        values: (S,) finite, such as the paired differences of S seeds.
        level: coverage asked for, in (0, 1).
    Raises:
        ValueError: no values, values that are not finite, a bad level. One value has an infinite interval.
    """
    v = checked("values", values, (1,), finite=True)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    mean = float(v.mean())
    if len(v) == 1:
        return Interval(mean, -np.inf, np.inf)
    half = float(student.ppf((1.0 + level) / 2.0, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
    return Interval(mean, mean - half, mean + half)


def mean_difference(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of X minus mean of Y, of runs that are not paired, with the interval of Student's test for unlike variances.

    Source: Welch 1947.
    Args:
        x, y: (S_x,) and (S_y,), finite.
        level: coverage asked for, in (0, 1).
    Raises:
        ValueError: as `mean_interval`. Where one has a single value, the interval is infinite.
    """
    xs, ys = checked("x", x, (1,), finite=True), checked("y", y, (1,), finite=True)
    gap = float(xs.mean() - ys.mean())
    if min(len(xs), len(ys)) == 1:
        return Interval(gap, -np.inf, np.inf)
    if xs.std() + ys.std() < 1e-12:  # which the test divides by
        return Interval(gap, gap, gap)
    low, high = ttest_ind(xs, ys, equal_var=False).confidence_interval(level)
    return Interval(gap, float(low), float(high))


def difference(
    x: ArrayLike,
    y: ArrayLike,
    rng: Seed,
    *,
    statistic: Statistic = iqm_statistic,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """A statistic of X minus the same of Y, for runs that are not paired.

    D = f(x) - f(y); x and y are resampled apart, within tasks

    Source: Agarwal et al. 2021, arXiv 2108.13264, for the stratified bootstrap.
    Args:
        x: (S_x, K) or (S_x,), finite.
        y: (S_y, K) or (S_y,), finite.
        rng, statistic, level, resamples: as in `bootstrap_interval`.
    Raises:
        ValueError: no scores, values that are not finite, a bad level or number of resamples.
    """
    xs, ys = _scores("x", x, finite=True), _scores("y", y, finite=True)
    generator = np.random.default_rng(rng)
    x_drawn, y_drawn = (statistic(_taken(z, _drawn(z.shape, resamples, generator))) for z in (xs, ys))
    return _interval(np.asarray(statistic(xs) - statistic(ys)), x_drawn - y_drawn, level)


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, rng: Seed, *, level: float = 0.95, resamples: int = 1000
) -> tuple[Floats, Floats, Floats]:
    """The share of runs, over tasks, that score above each threshold, with its pointwise bootstrap interval.

    F(t) = mean_sk [z_sk > t]

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    Args:
        scores: (S, K) or (S,).
        thresholds: (N,).
        rng, level, resamples: as in `bootstrap_interval`, the level at each point.
    Returns:
        (N,) estimate, (N,) lower end, (N,) upper end.
    Raises:
        ValueError: no scores or thresholds, NaN among them, a bad level or number of resamples.
    """
    z, t = _scores("scores", scores), checked("thresholds", thresholds, (1,))
    draws = _taken(z, _drawn(z.shape, resamples, np.random.default_rng(rng)))
    low, high = _ends((draws[..., None] > t).mean((-3, -2)), level)
    return np.asarray((z[..., None] > t).mean((-3, -2))), low, high


def curve_band(
    curves: ArrayLike, rng: Seed, *, level: float = 0.95, resamples: int = 1000
) -> tuple[Floats, Floats, Floats]:
    """Interquartile mean over seeds at every point of a learning curve, with its pointwise bootstrap interval.

    m_t = IQM_s(y_st); a replicate draws whole curves, so points keep the seeds they share

    Source: Agarwal et al. 2021, arXiv 2108.13264.
    Args:
        curves: (S, N), one row per seed on common x values.
        rng, level, resamples: as in `bootstrap_interval`, the level at each point.
    Returns:
        (N,) estimate, (N,) lower end, (N,) upper end.
    Raises:
        ValueError: no curves, NaN among them, a bad level or number of resamples.
    """
    y = checked("curves", curves, (2,))
    rows = _drawn(y.shape[:1], resamples, np.random.default_rng(rng))
    low, high = _ends(_trimmed_mean(y[rows], axis=1), level)
    return _trimmed_mean(y, axis=0), low, high
