"""What one learning curve comes to: the area under it, and where it first reaches a threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sppo.experiments.stats import Floats, checked


def _curve(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    xs, ys = checked("x", x, (1,), finite=True), checked("y", y, (1,), finite=True)
    if xs.shape != ys.shape:
        raise ValueError(f"x and y must have the same length, got {len(xs)} and {len(ys)}")
    if (np.diff(xs) <= 0).any():
        at = int(np.argmax(np.diff(xs) <= 0)) + 1
        raise ValueError(f"x must increase strictly, got {xs[at - 1]:g} then {xs[at]:g} at index {at}")
    return xs, ys


def area_under_curve(x: ArrayLike, y: ArrayLike, budget: float) -> float:
    """Mean height of a learning curve over its budget.

    AUC = 1/budget integral_0^budget y(x) dx, y linear between the points and level outside them

    A run that stopped early counts with its last value to the end of the budget.

    Source: the area that Agarwal et al. 2021, arXiv 2108.13264, call sample efficiency; the trapezoid rule.
    Args:
        x: (N,) strictly increasing, in the units of the budget.
        y: (N,).
        budget: where the area ends, above 0.
    Raises:
        ValueError: empty or unequal arrays, values that are not finite, x not increasing, budget not above 0.
    """
    xs, ys = _curve(x, y)
    if not (np.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be finite and above 0, got {budget}")
    inside = (xs > 0) & (xs < budget)
    grid = np.concatenate(([0.0], xs[inside], [budget]))
    return float(np.trapezoid(np.interp(grid, xs, ys), grid) / budget)


def first_crossing(x: ArrayLike, y: ArrayLike, threshold: float) -> float:
    """The first recorded x at which a learning curve has reached a threshold; inf when it never does.

    min {x_i : y_i >= threshold}, min {} = inf; no interpolation between records

    Source: definition.
    Args:
        x: (N,) strictly increasing.
        y: (N,).
        threshold: in the units of y.
    Raises:
        ValueError: empty or unequal arrays, values that are not finite, x not increasing, threshold NaN.
    """
    xs, ys = _curve(x, y)
    if np.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    reached = ys >= threshold
    return float(xs[np.argmax(reached)]) if reached.any() else float("inf")
