"""Sums finished runs up over seeds: a row per task, or setting of a study, and agent; the table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sppo.experiments import curves, stats
from sppo.experiments.packed import unpack
from sppo.experiments.results import Run, load_runs, units
from sppo.experiments.rows import Plain, Robust, Row, Seeds
from sppo.experiments.scopes import by_scope
from sppo.experiments.stats import Interval
from sppo.experiments.tasks import short_name

ALL_TASKS = "all tasks"


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a comparison found, scope by scope: a task, or a setting of a study whose runs say it in their names."""

    rows: list[Row]
    agents: list[str]
    at: dict[str, list[Run]]
    """Scope -> its runs, by agent and seed."""
    pools: dict[str, list[str]]
    """What sums scopes up, and which: rows have it as their scope."""
    budgets: dict[str, float]
    """The episodes over which each scope's area is taken."""
    threshold: float
    level: float
    unfinished: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def scopes(self) -> list[str]:
        return list(self.at)

    @property
    def runs(self) -> list[Run]:
        return [run for runs in self.at.values() for run in runs]

    @property
    def env_ids(self) -> list[str]:
        return list(dict.fromkeys(map(self.env_id, self.scopes)))

    @property
    def of_settings(self) -> bool:
        """Whether scopes are settings: then seeds have plain means, and all of them the same luck in each."""
        return self.scopes != self.env_ids

    def env_id(self, scope: str) -> str:
        """Its task; of a pool the first."""
        return self.at[self.pools.get(scope, [scope])[0]][0].env_id

    def of(self, scope: str) -> list[Row]:
        return [row for row in self.rows if row.scope == scope]

    def against(self, scope: str) -> tuple[Row | None, list[Row]]:
        """The row of the agent that the others are measured against, if it is there, and theirs."""
        rows = {row.agent: row for row in self.of(scope)}
        return rows.pop(self.agents[0], None), [*rows.values()]

    def runs_of(self, scope: str, agent: str) -> list[Run]:
        return [run for run in self.at[scope] if run.label == agent]

    def name(self, scope: str) -> str:
        """Of a pool or setting as it is; of a task the last part of its id."""
        return scope if self.of_settings else short_name(scope)


def _order(runs: Sequence[Run], agents: Sequence[str] | None) -> list[str]:
    found = sorted({run.label for run in runs})
    if agents is None:
        # PPO is what the others are measured against, where it was run
        return sorted(found, key=lambda label: (label != "ppo", label))
    unknown = [agent for agent in agents if agent not in found]
    if unknown or not agents:
        raise ValueError(f"agents must be among {', '.join(found)}, got {', '.join(unknown) or 'none'}")
    return [*dict.fromkeys(agents)]


def _scores(runs: Sequence[Run], budget: float) -> Seeds:
    areas = [curves.area_under_curve(run.evals["episodes"], run.evals["success_rate"], budget) for run in runs]
    return {run.seed: np.array([[run.success_rate], [area]]) for run, area in zip(runs, areas, strict=True)}


Source = Path | str | Sequence[Run]
"""A folder with run folders somewhere below it, a file that `pack` wrote, or runs."""


def runs_of(source: Source) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs of a source, and what is unfinished; ValueError as `load_runs` and `unpack`."""
    if not isinstance(source, Path | str):
        return list(source), []
    return (unpack(Path(source)), []) if Path(source).is_file() else load_runs(source)


def summarize(
    source: Source,
    agents: Sequence[str] | None = None,
    *,
    threshold: float = 0.9,
    level: float = 0.95,
    seed: int = 0,
) -> Table:
    """Sum up runs: a row per scope and agent, and per agent over all scopes where each ran in each.

    A scope is a task. It is a setting of a study, named as the run's folder is before AGENT/seedK, where an agent ran
    with one seed more than once on a task; settings are summed up task by task. The area is taken over episodes up to
    the longest run of the scope; a run that stopped early counts with its last value. Differences are paired where two
    agents ran with the same seeds.

    Args:
        source: a folder, a packed file, or runs.
        agents: which agents; the first is the one the others are measured against, where it ran. None: all, PPO first.
        threshold: success rate whose first crossing is reported.
        level: coverage of the intervals.
        seed: of each interval's bootstrap, so that an interval depends on its runs alone, not on those beside them.
    Raises:
        ValueError: as `runs_of` and `by_scope`; an agent without a finished run.
    """
    runs, unfinished = runs_of(source)
    order = _order(runs, agents)
    at = by_scope([run for run in runs if run.label in order])
    for here in at.values():
        here.sort(key=lambda run: (order.index(run.label), run.seed))
    budgets = {scope: max(float(run.evals["episodes"][-1]) for run in runs) for scope, runs in at.items()}
    table = Table(
        rows=[],
        agents=order,
        at=at,
        pools={},
        budgets=budgets,
        threshold=threshold,
        level=level,
        unfinished=unfinished,
    )
    sums = (Plain if table.of_settings else Robust)(seed=seed, level=level)
    scores: dict[tuple[str, str], Seeds] = {}
    for scope, budget in budgets.items():
        if budget <= 0:
            raise ValueError(f"the runs on {scope} must count at least one episode in evals.csv, they end at 0")
        for agent in order:
            mine = table.runs_of(scope, agent)
            if not mine:
                continue
            scores[scope, agent] = _scores(mine, budget)
            first = None if agent == order[0] else scores.get((scope, order[0]))
            row = sums.row(scope, agent, scores[scope, agent], first)
            hits = {
                x: [curves.first_crossing(run.evals[x], run.evals["success_rate"], threshold) for run in mine]
                for x in ("episodes", "env_steps")
            }
            table.rows.append(
                replace(
                    row,
                    reached=sum(map(math.isfinite, hits["episodes"])),
                    episodes_to=stats.bootstrap_interval(hits["episodes"], seed, level=level),
                    env_steps_to=stats.bootstrap_interval(hits["env_steps"], seed, level=level),
                    seconds=stats.interquartile_mean([run.seconds for run in mine]),
                )
            )
    for pool, scopes, pooled in (_settings_pooled if table.of_settings else _tasks_pooled)(table, scores):
        table.pools[pool] = scopes
        for agent, seeds in pooled.items():
            table.rows.append(sums.row(pool, agent, seeds, None if agent == order[0] else pooled.get(order[0])))
    return table


Pooled = Iterator[tuple[str, list[str], dict[str, Seeds]]]
"""What sums scopes up, which, and every agent's scores."""


def _tasks_pooled(table: Table, scores: dict[tuple[str, str], Seeds]) -> Pooled:
    """All tasks side by side, if every agent has as many seeds on each."""
    counts = {len(seeds) for seeds in scores.values()}
    if len(table.scopes) > 1 and len(scores) == len(table.scopes) * len(table.agents) and len(counts) == 1:
        whole = {agent: [scores[scope, agent] for scope in table.scopes] for agent in table.agents}
        yield (
            ALL_TASKS,
            table.scopes,
            {
                agent: {
                    seeds: np.concatenate([mine[seed] for mine, seed in zip(each, seeds, strict=True)], axis=1)
                    for seeds in zip(*each, strict=True)
                }
                for agent, each in whole.items()
            },
        )


def _settings_pooled(table: Table, scores: dict[tuple[str, str], Seeds]) -> Pooled:
    """Of each task the mean over its settings of every seed that has them all: settings share the luck of a seed, so
    that they are not so many more trials."""
    for env_id in table.env_ids:
        scopes = [scope for scope in table.scopes if table.env_id(scope) == env_id]
        pooled: dict[str, Seeds] = {}
        for agent in table.agents:
            each = [scores.get((scope, agent), {}) for scope in scopes]
            seeds = [seed for seed in each[0] if all(seed in mine for mine in each)]
            if seeds:
                pooled[agent] = {seed: np.mean([mine[seed] for mine in each], axis=0) for seed in seeds}
        if len(scopes) > 1 and pooled:
            of = f" of {short_name(env_id)}" if len(table.env_ids) > 1 else ""
            yield f"all settings{of}", scopes, pooled


def short(value: float) -> str:
    """Three significant digits with k and M: 4352 -> 4.35k; inf -> never."""
    if math.isinf(value):
        return "never"
    # rounded first, so that 99 960 becomes 100k and 999 999 becomes 1.00M
    value = float(f"{value:.3g}")
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(abs(scaled))))}f}{unit}"
    return f"{value:.0f}"


def rate(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    return f"{value:+.3f}"


def bounds(interval: Interval, form: Callable[[float], str] = rate) -> str:
    """The interval in brackets; nothing where it only repeats that the threshold was never reached."""
    return "" if math.isinf(interval.low) else f"[{form(interval.low)}, {form(interval.high)}]"


def leaves_out_zero(gap: Interval) -> bool:
    """With the digits that are shown: one from +0.000 would look like a mistake."""
    return float(signed(gap.low)) > 0 or float(signed(gap.high)) < 0


def format_table(table: Table) -> str:
    """The table for a terminal, at most 100 characters wide: the estimate, and below it its interval."""
    percent = f"{100 * table.threshold:g}%"
    lines: list[str] = []
    for scope in [*table.scopes, *table.pools]:
        rows = table.of(scope)
        episodes, steps = units(table.env_id(scope))
        head = ["agent", "seeds", "final success", f"{episodes} to {percent}", f"{steps} to {percent}", "AUC"]
        head += [f"P(AUC > {table.agents[0]})"] * any(row.improvement for row in rows)
        cells = [head]
        for row in rows:
            reached = f" ({row.reached}/{row.seeds})"
            estimates, intervals = [row.agent, str(row.seeds)], ["", ""]
            for interval, form in (
                (row.final, rate),
                (row.episodes_to, short),
                (row.env_steps_to, short),
                (row.auc, rate),
            ):
                estimates.append("-" if interval is None else form(interval.estimate) + reached * (form is short))
                # one seed says nothing about the spread of seeds
                intervals.append("" if interval is None or row.seeds == 1 else bounds(interval, form))
            estimates.append(rate(row.improvement.estimate) if row.improvement else "-")
            intervals.append(bounds(row.improvement) if row.improvement and row.pairs > 1 else "")
            cells += [estimates[: len(head)], intervals[: len(head)]] if any(intervals) else [estimates[: len(head)]]
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        pad = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        title = scope if scope in table.pools else f"{scope}, {short(table.budgets[scope])} {episodes}"
        lines += [title, pad[0], "-" * max(map(len, pad)), *pad[1:], ""]
    level = f"{100 * table.level:g}%"
    lines.append(
        f"Mean over seeds, [{level} t interval]; P and to {percent} (interquartile mean): [{level} bootstrap interval]."
        if table.of_settings
        else f"Interquartile mean over seeds, [{level} stratified-bootstrap interval]."
    )
    lines += [f"Left out, unfinished: {path} ({why})" for path, why in table.unfinished]
    return "\n".join(lines)
