"""What one agent gains over another, over seeds that both have: at one setting, over a grid of two dials, over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from sppo.experiments import stats
from sppo.experiments.results import Run, area
from sppo.experiments.scopes import by_setting
from sppo.experiments.stats import Floats, Interval
from sppo.experiments.summary import ALL_TASKS, Table, bounds, signed, summarize
from sppo.experiments.tasks import short_name


class Cell(NamedTuple):
    """Two agents at one setting of two dials."""

    x: float
    success: float  # of the start policy, as measured before the first update
    gain: Interval  # area under the curve, the first agent's minus the second's
    seeds: int


def _differences(runs: Sequence[Run], agent: str, other: str) -> dict[int, float]:
    """By seed that both have, the area of one less that of the other, at one setting."""
    areas = {name: {run.seed: area(run) for run in runs if run.label == name} for name in (agent, other)}
    return {seed: areas[agent][seed] - areas[other][seed] for seed in sorted(areas[agent].keys() & areas[other].keys())}


def gain(runs: Sequence[Run], agent: str, other: str) -> tuple[Interval, int]:
    """Mean difference of areas over the seeds that both have, with Student's interval, and how many those are."""
    found = _differences(runs, agent, other)
    if not found:
        raise ValueError(f"{agent} and {other} share no seed among {len(runs)} runs")
    return stats.mean_interval(list(found.values())), len(found)


def pooled_gain(runs: Sequence[Run], agent: str, other: str) -> tuple[Interval, int]:
    """The same of each seed's mean over all settings of a study: a seed has its luck in all of them, so that settings
    are not so many more trials."""
    differences = _some(by_setting(runs), agent, other)
    return stats.mean_interval(list(differences.mean(1))), len(differences)


def pooled_area(runs: Sequence[Run], agent: str) -> Interval:
    """Mean area over all settings of a study, with Student's interval over seeds."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        if run.label == agent:
            by_seed.setdefault(run.seed, []).append(area(run))
    return stats.mean_interval([fmean(areas) for areas in by_seed.values()])


def horizon_slope(runs: Sequence[Run], agent: str, other: str) -> tuple[Interval, int]:
    """How much each seed's difference grows from a horizon to the tenfold, by least squares over all its settings,
    which are named HORIZON/...; with Student's interval over seeds, and how many those are."""
    settings = by_setting(runs)
    differences = _some(settings, agent, other)
    x = np.log10([float(setting.split("/")[0]) for setting in settings])
    x -= x.mean()
    return stats.mean_interval(list(differences @ x / (x @ x))), len(differences)


def _some(settings: Mapping[str, Sequence[Run]], agent: str, other: str) -> Floats:
    """(seeds, settings) differences of the seeds that have them all, of which there must be some."""
    found = [_differences(here, agent, other) for here in settings.values()]
    seeds = set.intersection(*(set(of_seed) for of_seed in found))
    if not seeds:
        raise ValueError(f"{agent} and {other} share no seed in all {len(settings)} settings")
    return np.array([[of_seed[seed] for of_seed in found] for seed in sorted(seeds)])


def told_gains(table: Table) -> str:
    """Over the first agent and, where it is another, over SPPO."""
    tables = [table]
    if "sppo" in table.agents[1:]:
        tables.append(summarize(table.runs, ["sppo", *(agent for agent in table.agents if agent != "sppo")]))
    return "\n\n".join(map(_gains_table, tables))


def _gains_table(table: Table) -> str:
    """What each agent gains over the first: interquartile means of differences, as they are drawn, and below them plain
    means with Student's intervals, which hold what they say for few seeds too."""
    first, *others = table.agents
    scopes = [*table.env_ids, *([ALL_TASKS] if table.of(ALL_TASKS) else [])]

    def of_row(scope: str, agent: str, which: str) -> Interval | None:
        row = next((row for row in table.of(scope) if row.agent == agent), None)
        return None if row is None or row.pairs < 2 else getattr(row, which)

    width = max(26, *(len(short_name(scope)) + 2 for scope in scopes))
    lines = []
    for what, which in (("", "auc_gain"), (", mean and [95% t interval]", "mean_gain")):
        lines.append(f"area gained over {first}{what}")
        lines.append(f"  {'':20}  " + "".join(f"{short_name(scope):{width}}" for scope in scopes).rstrip())
        for agent in others:
            gains = [of_row(scope, agent, which) for scope in scopes]
            told = [f"{signed(g.estimate)} {bounds(g, signed)}" if g else "-" for g in gains]
            lines.append(f"  {agent:20}  " + "".join(f"{cell:{width}}" for cell in told).rstrip())
    return "\n".join(lines)


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
