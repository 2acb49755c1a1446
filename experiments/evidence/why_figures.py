"""Figures of docs/WHY.md, from the measurements of `sppo why` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from sppo.experiments.evidence import why
from sppo.experiments.evidence.gradients import bias, ratio, signal_to_noise, variance
from sppo.experiments.evidence.positions import POSITIONS, brier, explained, mean_by_outcome
from sppo.experiments.evidence.why_series import DIALLED, OWN, PREDICTORS, Measured, Series, at_last, followed, tasks
from sppo.experiments.plots import INK, STYLE, colour_of, save_figure, style_of
from sppo.experiments.scopes import AGENTS
from sppo.experiments.stats import Interval
from sppo.experiments.tasks import short_name

MARKERS = "osD^vPX"


def _line(ax: Axes, xs: Any, found: Sequence[Interval], series: Series, **style: Any) -> None:
    middle, low, high = np.array(found).T
    colour = colour_of(AGENTS, series.agent)
    dashes = style_of(AGENTS, series.agent) if series.gae_lambda == 1 else (0, (1, 1))
    marker = MARKERS[AGENTS.index(series.agent)]
    drawn: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "linewidth": 1.6}
    ax.plot(xs, middle, **{**drawn, "label": series.name, **style})
    ax.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def _over_horizon(ax: Axes, task: Measured, series: Series, figure: Callable[..., Interval], **style: Any) -> None:
    xs = [h for h in task.horizons if task.batches(h, series)]
    if xs:
        _line(ax, xs, [figure(task.batches(h, series), h) for h in xs], series, **style)
    ax.set_xscale("log")
    ax.set_xticks(task.horizons)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"horizon H [steps],\ncritics after {why.FITS[-1]} episodes")


def _over_critic(ax: Axes, task: Measured, agent: str, gae_lambda: float, figure: Callable[..., Interval]) -> None:
    """A constant stands left of the first critic, the exact values right of the last."""
    places: dict[Any, float] = {"constant": why.FITS[0] / 4, **{k: k for k in why.FITS}, "exact": why.FITS[-1] * 4}
    horizon = why.ONE_HORIZON[task.env_id]
    chosen = [(x, Series(agent, critic, gae_lambda)) for critic, x in places.items()]
    chosen = [(x, series) for x, series in chosen if task.batches(horizon, series)]
    _line(ax, [x for x, _ in chosen], [figure(task.batches(horizon, s)) for _, s in chosen], chosen[0][1])
    named = {x: str(critic) for critic, x in places.items() if x <= chosen[-1][0]}
    ax.set_xscale("log")
    ax.set_xticks(list(named), list(named.values()), rotation=30)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(f"episodes that the critic has seen (H = {horizon})")


def _plain(axis: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def signal_figure(raw: dict[str, Any]) -> Figure:
    """A row per task: signal-to-noise over horizon, the same relative to SPPO, and over the critic's quality."""
    with matplotlib.rc_context(STYLE):
        found = tasks(raw)
        figure = Figure(figsize=(12, 3.7 * len(found)), layout="constrained")
        axes = figure.subplots(len(found), 3, squeeze=False)
        for row, task in zip(axes, found, strict=True):
            for series in (*map(at_last, AGENTS), at_last("ppo", why.LAMBDA)):
                _over_horizon(row[0], task, series, lambda b, h: signal_to_noise(b))
                if series.agent != OWN:
                    _over_horizon(row[1], task, series, lambda b, h, t=task: ratio(b, t.batches(h, at_last(OWN))))
            row[1].axhline(1, color=colour_of(AGENTS, OWN), linewidth=1.6, linestyle=style_of(AGENTS, OWN))
            for agent, gae_lambda in DIALLED:
                _over_critic(row[2], task, agent, gae_lambda, signal_to_noise)
            for ax, label in zip(
                row, ("signal-to-noise", "signal-to-noise over SPPO's", "signal-to-noise"), strict=True
            ):
                ax.set_yscale("log")
                _plain(ax.yaxis)
                ax.set_ylabel(f"{label}, {why.EPISODES} episodes" if label == "signal-to-noise" else label)
            row[0].set_title(_title(task), loc="left", fontsize="medium", fontweight="bold")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def bias_figure(raw: dict[str, Any]) -> Figure:
    """A row per task: variance and bias, each over horizon and over the critic's quality."""
    early = Series("ppo", why.FITS[1], why.LAMBDA)
    told = {"label": f"{early.name}, critic after {early.critic}", "markerfacecolor": "white"}
    with matplotlib.rc_context(STYLE):
        found = tasks(raw)
        figure = Figure(figsize=(13, 3.7 * len(found)), layout="constrained")
        axes = figure.subplots(len(found), 4, squeeze=False)
        for row, task in zip(axes, found, strict=True):
            for (left, right), part in ((row[:2], variance), (row[2:], bias)):
                for series in (*map(at_last, AGENTS), at_last("ppo", why.LAMBDA), early):
                    style = told if series == early else {}
                    _over_horizon(left, task, series, lambda b, h, part=part: part(b), **style)
                right.sharey(left)
                for agent, gae_lambda in DIALLED:
                    _over_critic(right, task, agent, gae_lambda, part)
            row[0].set_yscale("log")
            _plain(row[0].yaxis)
            row[0].set_ylabel(f"variance, tr Cov g / |g*|², {why.EPISODES} episodes")
            row[2].set_ylabel("bias, |E g - g*|² / |g*|²")
            for ax in row[2:]:
                ax.axhline(0, color=INK, linewidth=0.8)
            row[0].set_title(_title(task), loc="left", fontsize="medium", fontweight="bold")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _title(task: Measured) -> str:
    n = [len(task.pieces[horizon]) for horizon in task.horizons]
    policies = f"{n[0]} policies" + f" ({n[-1]} at H = {task.horizons[-1]})" * (n[-1] != n[0])
    return f"{short_name(task.env_id)}, n = {policies} x {why.BATCHES} batches"


def _panels(raw: dict[str, Any], rows: int) -> tuple[Figure, Any]:
    found = list(followed(raw))
    figure = Figure(figsize=(4.1 * len(found), 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, len(found), squeeze=False)
    for column, (env_id, agents) in zip(axes.T, found, strict=True):
        outcomes = agents["ppo"]["outcomes"]
        n = f"{int(outcomes.sum())} of {len(outcomes)} episodes succeed"
        column[0].set_title(f"{env_id.removeprefix('sppo/')}, {n}", loc="left", fontsize="medium", fontweight="bold")
        column[-1].set_xlabel("position in the episode, t / T")
        for ax in column:
            ax.axhline(0, color=INK, linewidth=0.8)
    return figure, axes


def tail_figure(raw: dict[str, Any]) -> Figure:
    """A column per task: the mean advantage along episodes that succeeded, and along the others."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(raw, 2)
        for column, (_, agents) in zip(axes.T, followed(raw), strict=True):
            for agent, arrays in agents.items():
                found = mean_by_outcome(arrays["advantages"], arrays["outcomes"])
                for ax, won in zip(column, (True, False), strict=True):
                    _along(ax, found[won], agent)
        for ax, kind in zip(axes[:, 0], ("success", "failure"), strict=True):
            ax.set_ylabel(f"mean advantage, {kind}")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(AGENTS))
    return figure


def _along(ax: Axes, found: list[Interval], agent: str) -> None:
    """What does not change along an episode, a single number, is a level line."""
    _line(ax, POSITIONS, found if len(found) > 1 else found * len(POSITIONS), Series(agent))


def explained_figure(raw: dict[str, Any]) -> Figure:
    """A column per task: explained variance and Brier score of the critics' values by position."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(raw, 2)
        for column, (_, agents) in zip(axes.T, followed(raw), strict=True):
            for ax, measure in zip(column, (explained, brier), strict=True):
                for agent in PREDICTORS:
                    _along(ax, measure(agents[agent]["values"], agents[agent]["outcomes"]), agent)
        axes[0, 0].set_ylabel("explained variance of R")
        axes[1, 0].set_ylabel("Brier score, mean of (V - R)²")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PREDICTORS))
    return figure


FIGURES = {"signal": signal_figure, "bias": bias_figure, "tail": tail_figure, "explained": explained_figure}


def draw(raw: dict[str, Any], images: Path) -> list[Path]:
    """Write why-*.png and .svg."""
    images.mkdir(parents=True, exist_ok=True)
    return [path for name, figure in FIGURES.items() for path in save_figure(figure(raw), images / f"why-{name}")]
