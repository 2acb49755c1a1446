"""Figures: learning curves and a critic's reliability, drawn without a display."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter

from sppo.experiments import stats
from sppo.experiments.calibration import bins
from sppo.experiments.results import units
from sppo.experiments.scopes import AGENTS
from sppo.experiments.stats import Floats
from sppo.experiments.summary import Table
from sppo.experiments.tasks import short_name

# Okabe and Ito's colours, told apart by colour-blind readers; black and yellow are left out, for they vanish on a dark
# or a white page. The line styles tell the agents apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
# Text and axes are drawn in this ink, which the report replaces by the page's own.
INK = "#1a1a19"

X_AXES = ("episodes", "env_steps", "seconds")
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sppo",
}

IN_A_ROW = 5
"""Agents whose names fit into one row."""
SETTINGS_IN_A_ROW = 5
POINTS = 120


def _place(agents: Sequence[str], agent: str) -> int:
    """Those of the studies have their own, wherever they are drawn; others take what these leave free, grey first."""
    if agent in AGENTS:
        return AGENTS.index(agent)
    free = [i for i, known in reversed([*enumerate(AGENTS)]) if known not in agents]
    place = [each for each in agents if each not in AGENTS].index(agent)
    return free[place] if place < len(free) else len(AGENTS) + place - len(free)


def colour_of(agents: Sequence[str], agent: str) -> str:
    """An agent keeps its colour over all figures."""
    return COLOURS[_place(agents, agent) % len(COLOURS)]


def style_of(agents: Sequence[str], agent: str) -> Any:
    """Agents of one colour differ in style."""
    again, i = divmod(_place(agents, agent), len(COLOURS))
    return STYLES[(i + again) % len(STYLES)]


def common_grid(xs: Sequence[Floats], points: int = POINTS) -> Floats:
    """The x values of all curves where they are few, evenly spaced ones where they are many."""
    union = np.unique(np.concatenate(xs))
    return union if len(union) <= points else np.linspace(union[0], union[-1], points)


def align(xs: Sequence[Floats], ys: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Curves on one grid, (N,) and (S, N): linear between records, level after a curve's last one."""
    grid = common_grid(xs)
    return grid, np.stack([np.interp(grid, x, y) for x, y in zip(xs, ys, strict=True)])


def draw_curves(ax: Axes, table: Table, scope: str, x: str, seeds: bool = True, threshold: float | None = None) -> None:
    """Success over one x: thin lines are seeds, if wanted, the thick one their IQM, the band its bootstrap interval.

    The threshold is the table's unless another is given.
    """
    for agent in table.agents:
        runs = table.runs_of(scope, agent)
        if not runs:
            continue
        colour = colour_of(table.agents, agent)
        for run in runs if seeds else ():
            ax.plot(run.evals[x], run.evals["success_rate"], color=colour, linewidth=0.6, alpha=0.35)
        grid, curves = align([run.evals[x] for run in runs], [run.evals["success_rate"] for run in runs])
        middle, low, high = stats.curve_band(curves, 0, level=table.level)
        ax.plot(grid, middle, color=colour, linewidth=2, linestyle=style_of(table.agents, agent))
        if len(runs) > 1:
            ax.fill_between(grid, low, high, color=colour, alpha=min(0.18, 0.6 / len(table.agents)), linewidth=0)
    ax.axhline(table.threshold if threshold is None else threshold, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    episodes, steps = units(table.env_id(scope))
    labels = {"seconds": "wall-clock time [s]", "cpu_seconds": "processor time [s]"}
    labels |= {"episodes": f"training {episodes}", "env_steps": steps.replace("env ", "environment ")}
    ax.set_xlabel(labels[x])
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(ScalarFormatter() if x.endswith("seconds") else EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(5))


def legend_of(table: Table, scope: str) -> dict[str, Any]:
    """The agents of a scope and their number of seeds, as the arguments of a legend in one row."""
    counts = {agent: len(table.runs_of(scope, agent)) for agent in table.agents}
    lines = {
        f"{agent} (n = {n})": Line2D(
            [], [], color=colour_of(table.agents, agent), linestyle=style_of(table.agents, agent), linewidth=2
        )
        for agent, n in counts.items()
        if n
    }
    return {"handles": list(lines.values()), "labels": list(lines), "ncols": len(lines), "handlelength": 2.6}


def fullest(table: Table, scopes: Sequence[str]) -> str:
    """Of these the scope with most agents, whose legend stands for all."""
    return max(scopes, key=lambda scope: len({run.label for run in table.at[scope]}))


def curves_figure(table: Table, scopes: Sequence[str] | None = None) -> Figure:
    """A row of panels per task: success over episodes, steps and wall-clock time; a panel per setting of a study."""
    scopes = table.scopes if scopes is None else list(scopes)
    return _curves_by_setting(table, scopes) if table.of_settings else _curves_by_task(table, scopes)


def _curves_by_task(table: Table, scopes: Sequence[str]) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.5 * len(scopes)), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        axes = figure.subplots(len(scopes), 3, squeeze=False, sharey=True)
        for row, scope in zip(axes, scopes, strict=True):
            for ax, x in zip(row, X_AXES, strict=True):
                draw_curves(ax, table, scope, x)
            row[0].set_ylabel("success rate on held-out starts")
            row[0].set_title(scope, loc="left", fontsize="medium", fontweight="bold")
            legend = legend_of(table, scope)
            if len(legend["labels"]) <= IN_A_ROW:
                # above the panels, where no curve runs; it may reach over its neighbours without moving them
                drawn = row[2].legend(**legend, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0.1)
                drawn.set_in_layout(False)
            else:
                row[2].legend(**{**legend, "ncols": 1}, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    return figure


def _curves_by_setting(table: Table, scopes: Sequence[str]) -> Figure:
    height = math.ceil(len(scopes) / SETTINGS_IN_A_ROW)
    several = len({table.env_id(scope) for scope in scopes}) > 1
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(11, 0.6 + 1.9 * height), layout="constrained")
        axes = figure.subplots(height, SETTINGS_IN_A_ROW, squeeze=False, sharey=True)
        for i, (ax, scope) in enumerate(zip(axes.ravel(), scopes, strict=False)):
            draw_curves(ax, table, scope, "episodes", seeds=False)
            task, name = short_name(table.env_id(scope)), _within_its_task(table, scope)
            ax.set_title(f"{task}\n{name}" if several else name, loc="left", fontsize="medium")
            if i + SETTINGS_IN_A_ROW < len(scopes):  # a panel below has it
                ax.set_xlabel("")
        for ax in axes.ravel()[len(scopes) :]:
            ax.set_axis_off()
        for row in axes:
            row[0].set_ylabel("success rate")
        figure.legend(**legend_of(table, fullest(table, scopes)), loc="outside upper right")
    return figure


def _within_its_task(table: Table, setting: str) -> str:
    """Its name without that of its task, which the others beside it share."""
    return "/".join(part for part in setting.split("/") if part != short_name(table.env_id(setting))) or setting


def plot_curves(table: Table, stem: Path | str) -> list[Path]:
    """Write the learning curves as STEM.png and STEM.svg.

    Args:
        table: of `summarize`.
        stem: path without its ending; its folder exists.
    Returns:
        the two paths.
    """
    return save_figure(curves_figure(table), stem)


def plot_reliability(values: Floats, outcomes: Floats, stem: Path | str, starts: str = "held-out starts") -> list[Path]:
    """Write STEM.png and STEM.svg: success rates at starts against what was predicted there.

    Args:
        values: (P,) predicted success rates.
        outcomes: (P, n) outcomes of n episodes from each start.
        stem: path without its ending; its folder exists.
        starts: what they are, to be written below.
    Returns:
        the two paths.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        ax = figure.subplots()
        draw_reliability(ax, values, outcomes)
        ax.set_xlabel(f"success rate predicted at {starts}")
        ax.set_ylabel(f"success rate in {outcomes.shape[1]} episodes")
        ax.legend(loc="lower right")
    return save_figure(figure, stem)


def draw_reliability(ax: Axes, values: Floats, outcomes: Floats) -> None:
    """A dot is a start. Large dots are the means of the starts in a tenth of the predictions, with a bootstrap interval
    over them; a calibrated critic's lie on the diagonal."""
    rates = outcomes.mean(1)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
    ax.plot(values, rates, "o", color=COLOURS[0], markersize=3, alpha=0.35, markeredgewidth=0, label="a start")
    means = []
    for rows in bins(values):
        middle, low, high = stats.bootstrap_interval(rates[rows], 0, statistic=stats.mean_statistic, resamples=1000)
        means.append((values[rows].mean(), middle))
        ax.plot([means[-1][0]] * 2, [low, high], color=COLOURS[1], linewidth=1.4)
    ax.plot(*zip(*means, strict=True), "o-", color=COLOURS[1], linewidth=1.4, label="mean of a tenth")
    ax.margins(x=0.02)  # not [0, 1]: a value fitted by squared error may lie beyond
    ax.set(ylim=(-0.02, 1.02), aspect="equal")


def save_figure(figure: Figure, stem: Path | str) -> list[Path]:
    """Write STEM.png and STEM.svg."""
    paths = [Path(stem).with_name(Path(stem).name + ending) for ending in (".png", ".svg")]
    with matplotlib.rc_context(STYLE):
        figure.savefig(paths[0], dpi=160)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def svg_of(figure: Figure) -> str:
    """The figure as an SVG element for a page: no background, ink of the page's own colour."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    # A tenth of a point is finer than a screen; all digits would make pages twice as large.
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+| ?\n", r"\1", path[0]), svg)
    return svg[svg.index("<svg") :].replace(INK, "currentColor").strip()
