"""What the studies found, drawn from their packed runs: the figures and tables of docs/RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sppo.experiments import stats
from sppo.experiments.packed import ENDING, unpack
from sppo.experiments.plots import INK, STYLE, colour_of, draw_curves, legend_of, save_figure
from sppo.experiments.results import Run, area
from sppo.experiments.stats import Interval
from sppo.experiments.studies import AGENTS, RATES, STUDIES, best_rates
from sppo.experiments.summary import Table, bounds, format_table, signed, summarize
from sppo.experiments.tasks import short_name


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


def draw_map(maps: dict[str, list[list[Cell]]], agent: str, other: str) -> Figure:
    """The difference over horizon and start success; bold where its interval leaves zero out."""
    ends = max(abs(c.gain.estimate) for rows in maps.values() for row in rows for c in row)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.2 + 5.4 * len(maps), 3.9), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(maps)))
        for ax, (title, rows) in zip(axes, maps.items(), strict=True):
            values = [[c.gain.estimate for c in row] for row in rows]
            norm = TwoSlopeNorm(0.0, -ends, ends)
            image = ax.imshow(values, cmap="PuOr_r", norm=norm, origin="lower", aspect="auto")
            for y, row in enumerate(rows):
                for x, c in enumerate(row):
                    sure = c.gain.low > 0 or c.gain.high < 0
                    ax.text(
                        x,
                        y,
                        f"{signed(c.gain.estimate)}\n{bounds(c.gain, signed)}\nfrom {c.success:.0%}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        fontweight="bold" if sure else "normal",
                        color="white" if abs(c.gain.estimate) > 0.6 * ends else INK,
                    )
            ax.set_xticks(range(len(rows[0])), [f"{c.x:g}" for c in rows[0]])
            ax.set_yticks(range(len(rows)), [f"{np.mean([c.success for c in row]):.0%}" for row in rows])
            ax.set_xlabel("horizon [steps]")
            ax.set_ylabel("success of the start policy")
            ax.set_title(
                f"{title} (n = {min(c.seeds for row in rows for c in row)} seeds)", loc="left", fontsize="medium"
            )
        bar = figure.colorbar(image, ax=list(axes), shrink=0.9)
        bar.set_label(f"area under the curve, {agent} - {other}")
    return figure


def draw_tasks(table: Table) -> Figure:
    """Success over environment steps, a panel per task, and below it what each agent's area gains over the first's."""
    env_ids = table.env_ids
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * len(env_ids) + 0.6, 6.2), layout="constrained")
        axes = figure.subplots(2, len(env_ids), squeeze=False)
        for column, env_id in enumerate(env_ids):
            ax, below = axes[:, column]
            draw_curves(ax, table, env_id, "env_steps")
            ax.set_title(short_name(env_id), loc="left", fontsize="medium", fontweight="bold")
            rows = [row for row in table.of(env_id) if row.auc_gain]
            for y, row in enumerate(reversed(rows)):
                assert row.auc_gain
                colour = colour_of(table.agents, row.agent)
                below.plot([row.auc_gain.low, row.auc_gain.high], [y, y], color=colour, linewidth=2)
                below.plot(row.auc_gain.estimate, y, "o", color=colour, markersize=5)
            below.axvline(0.0, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
            below.set_yticks(
                range(len(rows)), [row.agent for row in reversed(rows)] if column == 0 else [""] * len(rows)
            )
            below.set_xlabel(f"area gained over {table.agents[0]}")
            below.xaxis.set_major_locator(MaxNLocator(4))
        axes[0, 0].set_ylabel("success on held-out starts")
        title = f"bands and bars: {100 * table.level:g}% bootstrap intervals over n seeds"
        figure.legend(**legend_of(table, env_ids[0]), loc="outside upper center", title=title)
    return figure


def _in_order(runs: Path) -> list[str]:
    """The agents that have finished runs, as the studies list them."""
    found = {run.label for run in unpack(runs)}
    return [agent for agent in AGENTS if agent in found]


def _figure(runs: Path, images: Path) -> str:
    table = summarize(runs, _in_order(runs))
    save_figure(draw_tasks(table), images / "figure")
    return format_table(table)


def _text(runs: Path, images: Path) -> str:
    table = summarize(runs, _in_order(runs), threshold=TEXT_THRESHOLD)
    save_figure(draw_tasks(table), images / "text")
    return f"{format_table(table)}\n\n{_seconds_table(table)}"


def seconds_to(run: Run, threshold: float) -> float:
    """Of the processor, sampling and learning, until an evaluation reaches the threshold; inf where none does."""
    return stats.first_crossing(run.evals["cpu_seconds"], run.evals["success_rate"], threshold)


def _seconds_table(table: Table) -> str:
    lines = [f"Processor seconds to {table.threshold:.0%} of held-out prompts, median of the seeds, and over SPPO's"]
    for env_id in table.env_ids:
        medians = {
            agent: float(np.median([seconds_to(run, table.threshold) for run in table.runs_of(env_id, agent)]))
            for agent in table.agents
        }
        own = medians.get("sppo", np.nan)
        lines += [f"  {short_name(env_id)}  {agent:10}{m:8.0f} s  x {m / own:.2f}" for agent, m in medians.items()]
    return "\n".join(lines)


def draw_dials(runs: Sequence[Run], agents: Sequence[str] = ("ppo", "sppo")) -> Figure:
    """A row per task, a column per dial: the mean area of each agent at each value, with its interval."""
    grid: dict[str, dict[str, dict[str, list[Run]]]] = {}
    for run in runs:
        task, dial, value, *_ = run.name.split("/")
        grid.setdefault(task, {}).setdefault(dial, {}).setdefault(value, []).append(run)
    with matplotlib.rc_context(STYLE):
        columns = max(map(len, grid.values()))
        figure = Figure(figsize=(2.9 * columns, 2.4 * len(grid) + 0.4), layout="constrained")
        axes = figure.subplots(len(grid), columns, squeeze=False, sharey="row")
        for row, (task, dials) in zip(axes, grid.items(), strict=True):
            for ax, (dial, values) in zip(row, dials.items(), strict=True):
                for agent in agents:
                    at = [_mean_area([run for run in here if run.label == agent]) for here in values.values()]
                    x = np.arange(len(values)) + 0.08 * (agents.index(agent) - 0.5)
                    middle = np.array([interval.estimate for interval in at])
                    ends = np.array([[i.estimate - i.low for i in at], [i.high - i.estimate for i in at]])
                    colour = colour_of(agents, agent)
                    ax.errorbar(x, middle, ends, fmt="o-", color=colour, markersize=4, capsize=2, label=agent)
                ax.set_xticks(range(len(values)), list(values))
                ax.set_xlabel(dial)
            row[0].set_ylabel(f"{task}\narea under the curve")
        axes[0, 0].legend(title=f"n = {len(next(iter(values.values()))) // len(agents)} seeds")
    return figure


def _mean_area(runs: Sequence[Run]) -> Interval:
    return stats.bootstrap_interval([area(run) for run in runs], 0, statistic=stats.mean_statistic)


def _dials(runs: Path, images: Path) -> str:
    loaded = unpack(runs)
    save_figure(draw_dials(loaded), images / "dials")
    lines = ["Area under the curve, sppo - ppo, as one thing varies, [95% bootstrap interval over paired seeds]"]
    settings: dict[str, list[Run]] = {}
    for run in loaded:
        settings.setdefault(run.name.rsplit("/", 2)[0], []).append(run)
    for name, here in settings.items():
        difference, n = gain(here, "sppo", "ppo")
        lines.append(f"  {name:55}  {signed(difference.estimate)} {bounds(difference, signed)}  n = {n}")
    return "\n".join(lines)


def _rates(runs: Path, images: Path) -> str:
    """The mean area at each learning rate, the best marked."""
    loaded = unpack(runs)
    best = best_rates(loaded)
    lines = [
        f"Mean area by learning rate, seeds {min(r.seed for r in loaded)} to {max(r.seed for r in loaded)}; * best"
    ]
    for env_id, agent in sorted(best, key=lambda key: (key[0], AGENTS.index(key[1]))):
        mine = [run for run in loaded if (run.env_id, run.label) == (env_id, agent)]
        areas = {rate: [area(r) for r in mine if r.config["settings"]["learning_rate"] == rate] for rate in RATES}
        cells_ = [f"{np.mean(a):.3f}{'*' if rate == best[env_id, agent] else ' '}" for rate, a in areas.items() if a]
        lines.append(f"  {short_name(env_id):22}{agent:10}  " + "  ".join(cells_))
    return "\n".join(lines)


def _map_table(name: str, rows: list[list[Cell]], agent: str, other: str) -> str:
    lines = [f"{name}: area under the curve, {agent} - {other}, [95% bootstrap interval over paired seeds]"]
    for row in rows:
        for c in row:
            lines.append(
                f"  horizon {c.x:5g}  start success {c.success:.3f}  {signed(c.gain.estimate)} "
                f"{bounds(c.gain, signed)}  n = {c.seeds}"
            )
    return "\n".join(lines)


def _maps(results: Path, images: Path) -> list[str]:
    """Of all map studies that are there, side by side."""
    found = {name: unpack(results / f"{name}{ENDING}") for name in MAPS if (results / f"{name}{ENDING}").exists()}
    told = []
    for agent, other in (("sppo", "ppo"), ("sppo", "reinforce")):
        both = {name: runs for name, runs in found.items() if {agent, other} <= {run.label for run in runs}}
        maps = {MAPS[name]: cells(runs, agent, other) for name, runs in both.items()}
        if maps:
            save_figure(draw_map(maps, agent, other), images / f"map-{agent}-{other}")
            told += [_map_table(title, rows, agent, other) for title, rows in maps.items()]
    return told


MAPS = {"chain-map": "SparseChain", "cartpole-map": "Precision CartPole"}
DRAWN: dict[str, Callable[[Path, Path], str]] = {"figure": _figure, "rates": _rates, "dials": _dials, "text": _text}
TEXT_THRESHOLD = 0.5


def redraw(results: Path, images: Path) -> str:
    """Draw all figures of the packed runs in a folder; their tables.

    Raises:
        ValueError: if it holds none.
    """
    names = [name for name in STUDIES if (results / f"{name}{ENDING}").exists()]
    if not names:
        raise ValueError(f"{results} must hold packed runs, such as {next(iter(STUDIES))}{ENDING}")
    images.mkdir(parents=True, exist_ok=True)
    told = [DRAWN[name](results / f"{name}{ENDING}", images) for name in names if name in DRAWN]
    return "\n\n".join([*told, *_maps(results, images)])
