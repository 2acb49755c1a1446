"""Sums finished runs up over seeds: one row per task and agent, and the table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sppo.experiments import curves, stats
from sppo.experiments.packed import unpack
from sppo.experiments.results import Run, load_runs, units
from sppo.experiments.stats import Floats, Interval

ALL_TASKS = "all tasks"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One agent on one task, over its seeds. `episodes_to` and `env_steps_to` are inf where never."""

    env_id: str
    agent: str
    seeds: int
    final: Interval
    auc: Interval
    # None over all tasks: a threshold's episodes do not add up across tasks
    reached: int | None = None
    episodes_to: Interval | None = None
    env_steps_to: Interval | None = None
    seconds: float | None = None
    # against the first agent of the same task; None for that agent itself
    auc_gain: Interval | None = None
    final_gain: Interval | None = None
    improvement: Interval | None = None
    paired: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a comparison found. `budgets`: the episodes over which each task's area is taken."""

    rows: list[Row]
    runs: list[Run]
    agents: list[str]
    budgets: dict[str, float]
    threshold: float
    level: float
    unfinished: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def env_ids(self) -> list[str]:
        return list(self.budgets)

    def of(self, env_id: str) -> list[Row]:
        return [row for row in self.rows if row.env_id == env_id]

    def runs_of(self, env_id: str, agent: str) -> list[Run]:
        return [run for run in self.runs if (run.env_id, run.label) == (env_id, agent)]


def _order(runs: Sequence[Run], agents: Sequence[str] | None) -> list[str]:
    found = sorted({run.label for run in runs})
    if agents is None:
        # PPO is what the others are measured against, where it was run
        return sorted(found, key=lambda label: (label != "ppo", label))
    unknown = [agent for agent in agents if agent not in found]
    if unknown or not agents:
        raise ValueError(f"agents must be among {', '.join(found)}, got {', '.join(unknown) or 'none'}")
    return [*dict.fromkeys(agents)]


def _scores(runs: Sequence[Run], budget: float) -> Floats:
    areas = [curves.area_under_curve(run.evals["episodes"], run.evals["success_rate"], budget) for run in runs]
    return np.array([[[run.success_rate], [area]] for run, area in zip(runs, areas, strict=True)])  # (S, 2, 1)


def _row(
    env_id: str,
    agent: str,
    scores: Floats,
    first: Floats | None,
    paired: bool,
    rng: np.random.Generator,
    level: float,
) -> Row:
    """Final success and area, alone and against the first agent; scores are (S, 2, K)."""
    final, auc = scores[:, 0], scores[:, 1]  # (S, K)
    row = Row(
        env_id=env_id,
        agent=agent,
        seeds=len(scores),
        final=stats.bootstrap_interval(final, rng, level=level),
        auc=stats.bootstrap_interval(auc, rng, level=level),
    )
    if first is None:
        return row
    gap = stats.paired_difference if paired else stats.difference
    return replace(
        row,
        final_gain=gap(final, first[:, 0], rng, level=level),
        auc_gain=gap(auc, first[:, 1], rng, level=level),
        improvement=stats.probability_of_improvement(auc, first[:, 1], rng, level=level),
        paired=paired,
    )


Source = Path | str | Sequence[Run]
"""A folder with run folders somewhere below it, a file that `pack` wrote, or runs."""


def runs_of(source: Source) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs of a source, and what is unfinished; ValueError as `load_runs` and `unpack`."""
    if not isinstance(source, Path | str):
        return list(source), []
    return (unpack(Path(source)), []) if Path(source).is_file() else load_runs(source)


def _check_unique(runs: Sequence[Run]) -> None:
    seen: dict[tuple[str, str, int], str] = {}
    for run in runs:
        key = (run.env_id, run.label, run.seed)
        if key in seen:
            raise ValueError(f"{seen[key]} and {run.name} are both {run.label} on {run.env_id} with seed {run.seed}")
        seen[key] = run.name


def summarize(
    source: Source,
    agents: Sequence[str] | None = None,
    *,
    threshold: float = 0.9,
    level: float = 0.95,
    rng: np.random.Generator | int = 0,
) -> Table:
    """Sum up runs: a row per task and agent, and per agent over all tasks where each ran on each.

    The area is taken over episodes up to the longest run on the task; a run that stopped early counts with its last
    value. Differences are paired where two agents ran with the same seeds.

    Args:
        source: a folder, a packed file, or runs.
        agents: which agents; the first is the one the others are measured against. None: all, PPO first.
        threshold: success rate whose first crossing is reported.
        level: coverage of the intervals.
        rng: generator of the bootstrap, or its seed.
    Raises:
        ValueError: as `runs_of`; an agent without a finished run; two runs of one agent on one task with one seed.
    """
    runs, unfinished = runs_of(source)
    _check_unique(runs)
    order = _order(runs, agents)
    runs = sorted((r for r in runs if r.label in order), key=lambda r: (r.env_id, order.index(r.label), r.seed))
    generator = np.random.default_rng(rng)
    budgets: dict[str, float] = {}
    for run in runs:
        budgets[run.env_id] = max(budgets.get(run.env_id, 0.0), float(run.evals["episodes"][-1]))
    table = Table(
        rows=[], runs=runs, agents=order, budgets=budgets, threshold=threshold, level=level, unfinished=unfinished
    )
    scores: dict[tuple[str, str], Floats] = {}
    seeds: dict[tuple[str, str], list[int]] = {}
    for env_id, budget in budgets.items():
        if budget <= 0:
            raise ValueError(f"the runs on {env_id} must count at least one episode in evals.csv, they end at 0")
        here = [agent for agent in order if table.runs_of(env_id, agent)]
        for agent in here:
            mine = table.runs_of(env_id, agent)
            scores[env_id, agent], seeds[env_id, agent] = _scores(mine, budget), [run.seed for run in mine]
            first = None if agent == here[0] else scores[env_id, here[0]]
            paired = first is not None and seeds[env_id, agent] == seeds[env_id, here[0]]
            hits = {
                x: [curves.first_crossing(run.evals[x], run.evals["success_rate"], threshold) for run in mine]
                for x in ("episodes", "env_steps")
            }
            table.rows.append(
                replace(
                    _row(env_id, agent, scores[env_id, agent], first, paired, generator, level),
                    reached=sum(map(math.isfinite, hits["episodes"])),
                    episodes_to=stats.bootstrap_interval(hits["episodes"], generator, level=level),
                    env_steps_to=stats.bootstrap_interval(hits["env_steps"], generator, level=level),
                    seconds=stats.interquartile_mean([run.seconds for run in mine]),
                )
            )
    counts = {len(scores[key]) for key in scores}
    if len(budgets) > 1 and len(scores) == len(budgets) * len(order) and len(counts) == 1:
        whole = {agent: np.concatenate([scores[env_id, agent] for env_id in budgets], axis=2) for agent in order}
        for agent in order:
            first = None if agent == order[0] else whole[order[0]]
            paired = first is not None and all(seeds[env, agent] == seeds[env, order[0]] for env in budgets)
            table.rows.append(_row(ALL_TASKS, agent, whole[agent], first, paired, generator, level))
    return table


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


def format_table(table: Table) -> str:
    """The table for a terminal, at most 100 characters wide: the estimate, and below it its interval."""
    percent = f"{100 * table.threshold:g}%"
    lines: list[str] = []
    for env_id in [*table.env_ids, ALL_TASKS]:
        rows = table.of(env_id)
        if not rows:
            continue
        episodes, steps = units(env_id)
        head = ["agent", "seeds", "final success", f"{episodes} to {percent}", f"{steps} to {percent}", "AUC"]
        head += [f"P(AUC > {rows[0].agent})"] if len(rows) > 1 else []
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
            intervals.append(bounds(row.improvement) if row.improvement and row.seeds > 1 else "")
            cells += [estimates[: len(head)], intervals[: len(head)]] if any(intervals) else [estimates[: len(head)]]
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        pad = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        title = env_id if env_id == ALL_TASKS else f"{env_id}, {short(table.budgets[env_id])} {episodes}"
        lines += [title, pad[0], "-" * max(map(len, pad)), *pad[1:], ""]
    lines.append(f"Interquartile mean over seeds, [{100 * table.level:g}% stratified-bootstrap interval].")
    lines += [f"Left out, unfinished: {path} ({why})" for path, why in table.unfinished]
    return "\n".join(lines)
