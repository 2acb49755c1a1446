"""The figures of docs/RESULTS.md: success by task, the map of two agents over two dials, single dials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sppo.experiments import stats
from sppo.experiments.answer import is_clear, spanned
from sppo.experiments.evidence.gains import Cell
from sppo.experiments.plots import INK, STYLE, colour_of, draw_curves, fullest, legend_of, style_of
from sppo.experiments.results import Run, area, units
from sppo.experiments.stats import Interval
from sppo.experiments.summary import Table, bounds, leaves_out_zero, signed
from sppo.experiments.tasks import short_name

CLIPPED = 0.1
"""A difference of areas from which on a map has its full colour, so that one loud cell does not pale the others."""


def draw_map(maps: dict[str, list[list[Cell]]], agent: str, other: str) -> Figure:
    """The difference over horizon and start success; framed and bold where its interval leaves zero out.

    By chance alone it does so in one of twenty cells.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(7.6, 1.2 + 0.75 * sum(map(len, maps.values())) + 0.6 * len(maps)), layout="constrained"
        )
        heights = [len(rows) + 0.8 for rows in maps.values()]
        axes = np.atleast_1d(figure.subplots(len(maps), 1, height_ratios=heights))
        for ax, (title, rows) in zip(axes, maps.items(), strict=True):
            values = [[c.gain.estimate for c in row] for row in rows]
            image = ax.imshow(values, cmap="PuOr_r", vmin=-CLIPPED, vmax=CLIPPED, origin="lower", aspect="auto")
            for y, row in enumerate(rows):
                for x, c in enumerate(row):
                    told = leaves_out_zero(c.gain)
                    if told:
                        ax.add_patch(
                            Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor=INK, linewidth=1.6)
                        )
                    ax.text(
                        x,
                        y,
                        f"{signed(c.gain.estimate)}\n{bounds(c.gain, signed)}\nfrom {_percent(c.success)}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        fontweight="bold" if told else "normal",
                        color="white" if abs(c.gain.estimate) > 0.7 * CLIPPED else INK,
                    )
            ax.set_xticks(range(len(rows[0])), [f"{c.x:g}" for c in rows[0]])
            ax.set_yticks(range(len(rows)), [_percent(float(np.median([c.success for c in row]))) for row in rows])
            ax.set_xlabel(f"horizon [{'tokens' if 'tokens' in title else 'steps'}]")
            n = min(c.seeds for row in rows for c in row)
            ax.set_title(f"{title}: mean of n = {n} seeds, [95% t interval]", loc="left", fontsize="medium")
        figure.supylabel("success of the start policy (median of the row)", fontsize="medium")
        bar = figure.colorbar(image, ax=list(axes), extend="both", location="top", shrink=0.6, aspect=40)
        bar.set_ticks([-CLIPPED, -CLIPPED / 2, 0, CLIPPED / 2, CLIPPED])
        bar.set_label(f"area under the curve, {agent} - {other}; framed: the interval leaves out zero")
    return figure


def _percent(share: float) -> str:
    return "<1%" if share < 0.005 else f"{share:.0%}"


def draw_tasks(
    table: Table,
    xs: Sequence[str] = ("env_steps",),
    thresholds: Mapping[str, float] | None = None,
    root: bool = False,
) -> Figure:
    """Success over each x, a panel per task, and below them what each agent's area gains over the first's.

    Single runs have no intervals, and no gains are drawn of them. Thresholds by task go before the table's. The root of
    x shows what is learned in the first tenth of a budget as well as what is lost at its end.
    """
    env_ids = table.env_ids
    gains = any(row.pairs > 1 for row in table.rows)
    panels = len(xs) + gains
    with matplotlib.rc_context(STYLE):
        alone = len(env_ids) == 1  # then beside them
        size = (4.5 * panels, 3.8) if alone else (3.1 * len(env_ids) + 0.6, 3.1 * panels)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(*((1, panels) if alone else (panels, len(env_ids))), squeeze=False)
        axes = axes.reshape(panels, -1)
        for column, env_id in enumerate(env_ids):
            for ax, x in zip(axes[:, column], xs, strict=False):
                draw_curves(ax, table, env_id, x, threshold=(thresholds or {}).get(env_id))
                if root:
                    _to_its_root(ax)
            axes[0, column].set_title(short_name(env_id), loc="left", fontsize="medium", fontweight="bold")
            if gains:
                _draw_gains(axes[-1, column], table, env_id, names=column == 0)
        for ax in axes[: len(xs), 0]:
            ax.set_ylabel("success on held-out starts")
        title = f"bands and bars: {100 * table.level:g}% bootstrap intervals over n seeds"
        title += "; full dots: Student's leaves out zero too" if gains else ""
        if not any(row.seeds > 1 for row in table.rows):
            title = "n = 1: one run of each, no intervals"
        title += "; steps to the square root" if root else ""
        legend = {**legend_of(table, fullest(table, env_ids)), "ncols": 4 if len(env_ids) < 5 else 7}
        figure.legend(**legend, loc="outside upper center", title=title)
    return figure


def _to_its_root(ax: Axes) -> None:
    """Draws x as its square root, at which fewer labels have room."""
    formatter = ax.xaxis.get_major_formatter()
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    ax.xaxis.set_major_formatter(formatter)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _draw_gains(ax: Axes, table: Table, env_id: str, names: bool) -> None:
    """An agent is at one height on all tasks, and has none where it has no gain with an interval."""
    others = table.agents[:0:-1]
    for row in table.of(env_id):
        if row.auc_gain is None or row.pairs < 2:
            continue
        y = others.index(row.agent)
        colour = colour_of(table.agents, row.agent)
        ax.plot([row.auc_gain.low, row.auc_gain.high], [y, y], color=colour, linewidth=2)
        face = colour if is_clear(row) else "white"
        ax.plot(row.auc_gain.estimate, y, "o", color=colour, markerfacecolor=face, markersize=5)
    ax.axvline(0.0, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    ax.set_yticks(range(len(others)), others if names else [""] * len(others))
    ax.set_ylim(-0.5, len(others) - 0.5)
    ax.set_xlabel(f"area over {units(env_id)[0]}\ngained over {table.agents[0]}")
    ax.xaxis.set_major_locator(MaxNLocator(4))


def draw_profiles(table: Table) -> Figure:
    """Of each agent the share of runs, over tasks, whose area is above a threshold: the further right, the better."""
    thresholds = np.linspace(0, 1, 101)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = figure.subplots()
        for agent in table.agents:
            areas = np.array([[area(run) for run in table.runs_of(env_id, agent)] for env_id in table.env_ids]).T
            share, low, high = stats.performance_profile(areas, thresholds, 0, level=table.level)
            colour = colour_of(table.agents, agent)
            ax.plot(thresholds, share, color=colour, linestyle=style_of(table.agents, agent), label=agent)
            ax.fill_between(thresholds, low, high, color=colour, alpha=0.08, linewidth=0)
        ax.set_xlabel("area under the curve of success")
        ax.set_ylabel("share of runs above it")
        tasks = len(table.env_ids)
        ax.set_title(f"n = {len(areas)} seeds of {tasks} tasks, {100 * table.level:g}% bootstrap bands", loc="left")
        ax.legend(ncols=2, handlelength=2.6)
    return figure


def draw_dials(runs: Sequence[Run], agents: Sequence[str] = ("ppo", "sppo")) -> Figure:
    """The mean area of each agent at each value of a dial, with its interval: a row per dial and a column per task, or
    three panels in a row where tasks share no dial."""
    grid: dict[str, dict[str, dict[str, list[Run]]]] = {}
    for run in runs:
        task, dial, value, *_ = run.name.split("/")
        grid.setdefault(dial, {}).setdefault(task, {}).setdefault(value, []).append(run)
    tasks = list(dict.fromkeys(task for of_dial in grid.values() for task in of_dial))
    shared = len(tasks) > 1 and any(len(of_dial) > 1 for of_dial in grid.values())
    panels = [(dial, task) for dial in grid for task in tasks if shared or task in grid[dial]]
    columns = len(tasks) if shared else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * columns, 2.2 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        of_task: dict[str, list[Axes]] = {}
        for i, ax in enumerate(axes.flat):
            dial, task = panels[i] if i < len(panels) else ("", "")
            if not (found := grid.get(dial, {}).get(task)):
                ax.remove()
                continue
            of_task.setdefault(task, []).append(ax)
            _draw_dial(ax, {value: found[value] for value in sorted(found, key=float)}, agents)
            ax.set_xlabel(dial)
            if len(tasks) > 1 and (i < columns or not shared):
                ax.set_title(task, loc="left", fontsize="medium", fontweight="bold")
            if i % columns == 0:
                ax.set_ylabel("area under the curve")
        for mine in of_task.values():  # on one scale, within what Student's intervals reach beyond: a share
            low, high = (f(end for ax in mine for end in ax.get_ylim()) for f in (min, max))
            for ax in mine:
                ax.set_ylim(max(low, 0.0), min(high, 1.02))
        axes[0, 0].legend()
        n = spanned(
            [len({run.seed for run in here}) for of in grid.values() for at in of.values() for here in at.values()]
        )
        told = f"{tasks[0] + ': ' if len(tasks) == 1 else ''}n = {n}; bars: 95% t interval of each mean"
        figure.suptitle(
            told + "; seeds are shared, so that differences are surer" * (len(agents) > 1), fontsize="small"
        )
    return figure


def _draw_dial(ax: Axes, values: Mapping[str, Sequence[Run]], agents: Sequence[str]) -> None:
    for agent in agents:
        at = [_mean_area([run for run in here if run.label == agent]) for here in values.values()]
        _draw_intervals(ax, at, agents, agent)
    ax.set_xticks(range(len(values)), list(values))


def _draw_intervals(ax: Axes, at: Sequence[Interval], agents: Sequence[str], agent: str, line: str = "-") -> None:
    """An agent's, at 0, 1, 2 and so on, beside those of the others."""
    x = np.arange(len(at)) + 0.08 * (agents.index(agent) - (len(agents) - 1) / 2)
    middle = np.array([interval.estimate for interval in at])
    ends = np.array([[i.estimate - i.low for i in at], [i.high - i.estimate for i in at]])
    ax.errorbar(x, middle, ends, fmt=f"o{line}", color=colour_of(agents, agent), markersize=4, capsize=2, label=agent)


def draw_rates(
    areas: Mapping[str, Mapping[str, Interval]], gains: Mapping[str, Mapping[str, Interval]], n: int
) -> Figure:
    """Areas of agents by learning rate, and what others gain over the first, at each rate and at each one's best."""
    agents = list(areas)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for agent, by_rate in areas.items():
            _draw_intervals(left, list(by_rate.values()), agents, agent)
        for agent, by_rate in gains.items():
            _draw_intervals(right, list(by_rate.values()), agents, agent, line="")
        right.axhline(0.0, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        for ax, of in ((left, areas), (right, gains)):
            names = list(next(iter(of.values())))
            ax.set_xticks(range(len(names)), names)
            ax.set_xlabel("learning rate of the policy")
        left.set_ylabel("mean area over the map")
        right.set_ylabel(f"area gained over {agents[0]}")
        told = f"n = {n} seeds; bars: 95% t intervals, of gains over paired seeds"
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(agents), title=told)
    return figure


def _mean_area(runs: Sequence[Run]) -> Interval:
    return stats.mean_interval([area(run) for run in runs])
