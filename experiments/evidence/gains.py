"""What one agent gains over another, over seeds that both have: at one setting, over a grid of two dials, over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sppo.experiments import stats
from sppo.experiments.results import Run, area
from sppo.experiments.stats import Interval


class Cell(NamedTuple):
    """Two agents at one setting of two dials."""

    x: float
    success: float  # of the start policy, as measured before the first update
    gain: Interval  # area under the curve, the first agent's minus the second's
    seeds: int


def gain(runs: Sequence[Run], agent: str, other: str) -> tuple[Interval, int]:
    """Mean difference of areas over the seeds that both have, paired, and how many those are."""
    areas = {name: {run.seed: area(run) for run in runs if run.label == name} for name in (agent, other)}
    seeds = sorted(areas[agent].keys() & areas[other].keys())
    if not seeds:
        raise ValueError(f"{agent} and {other} share no seed among {len(runs)} runs")
    ones, others = ([areas[name][seed] for seed in seeds] for name in (agent, other))
    return stats.paired_difference(ones, others, 0, statistic=stats.mean_statistic), len(seeds)


def pooled_gain(runs: Sequence[Run], agent: str, other: str) -> Interval:
    """Mean difference of areas over all settings of a study, whose seeds are paired and drawn within settings."""
    settings = sorted({run.name.rsplit("/", 2)[0] for run in runs})
    areas = {(run.name.rsplit("/", 2)[0], run.label, run.seed): area(run) for run in runs}
    seeds = sorted({run.seed for run in runs})
    ones, others = ([[areas[cell, name, seed] for cell in settings] for seed in seeds] for name in (agent, other))
    return stats.paired_difference(ones, others, 0, statistic=stats.mean_statistic)


def cells(runs: Sequence[Run], agent: str, other: str) -> list[list[Cell]]:
    """The grid of a study whose runs are named HORIZON/START/AGENT/seedK: rows by start success, columns by horizon."""
    grid: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        horizon, start, *_ = run.name.split("/")
        grid.setdefault(start, {}).setdefault(horizon, []).append(run)

    def cell(horizon: str, here: list[Run]) -> Cell:
        first = [run.evals["success_rate"][0] for run in here]
        return Cell(float(horizon), float(np.mean(first)), *gain(here, agent, other))

    return [
        [cell(horizon, row[horizon]) for horizon in sorted(row, key=float)]
        for _, row in sorted(grid.items(), key=lambda item: float(item[0]))
    ]
