"""Figures and tables of docs/WHY.md, from the measurements of `sppo why` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sppo.experiments import why
from sppo.experiments.gradients import Moments, bias, cosine, ratio, signal_to_noise
from sppo.experiments.plots import INK, STYLE, colour_of, save_figure, style_of
from sppo.experiments.positions import POSITIONS, brier, explained, mean_by_outcome
from sppo.experiments.stats import Interval
from sppo.experiments.studies import AGENTS
from sppo.experiments.tasks import short_name

PREDICTORS = ("ppo", "ppo-bce", "sppo")
MARKERS = "osD^vPX"


class Series(NamedTuple):
    """Which gradients: an agent, what its critic has seen, and PPO's lambda where it is not 1."""

    agent: str
    critic: Any = None
    gae_lambda: float = 1.0

    @property
    def name(self) -> str:
        return self.agent if self.gae_lambda == 1 else f"{self.agent}, λ = {self.gae_lambda:g}"


def at_last(agent: str, gae_lambda: float = 1.0) -> Series:
    """Of an agent whose critic, if it has one, has seen all it is shown."""
    return Series(agent, why.FITS[-1] if agent in (*PREDICTORS, "tracker") else None, gae_lambda)


OWN = "sppo"
"""Whom the others are measured against."""
DIALLED = (("ppo", 1.0), ("ppo", why.LAMBDA), ("sppo", 1.0))
"""Agents, and PPO's lambda, whose critic's quality is varied."""


class Measured:
    """The gradients on one task, by horizon."""

    def __init__(self, raw: dict[str, Any], env_id: str) -> None:
        found = [piece for name, piece in raw.items() if name.startswith(f"gradients/{env_id}/")]
        self.env_id = env_id
        self.horizons = sorted({piece["env_kwargs"]["horizon"] for piece in found})
        self.pieces = {h: [p for p in found if p["env_kwargs"]["horizon"] == h] for h in self.horizons}

    def batches(self, horizon: int, series: Series) -> list[Moments]:
        """One Moments per policy, none where this was not measured."""
        return [Moments(*(np.array(s[name]) for name in Moments._fields)) for s in self._all(horizon, series)]

    def steps(self, horizon: int, series: Series) -> float:
        """Environment steps behind a gradient."""
        return float(np.mean([s["steps"] for s in self._all(horizon, series)]))

    def mean(self, horizon: int, name: str) -> float:
        """Of what was measured once per policy."""
        return float(np.mean([piece[name] for piece in self.pieces[horizon]]))

    def _all(self, horizon: int, series: Series) -> list[dict[str, Any]]:
        def wanted(s: dict[str, Any]) -> bool:
            return Series(s["agent"], s["critic"], s["settings"].get("gae_lambda", 1.0)) == series

        return [s for piece in self.pieces[horizon] for s in piece["series"] if wanted(s)]


def tasks(raw: dict[str, Any]) -> list[Measured]:
    """Those whose gradients were measured."""
    return [Measured(raw, env_id) for env_id in why.ONE_HORIZON]


# Figures.


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
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(f"episodes that the critic has seen (H = {horizon})")


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
            for ax in row[:2]:
                ax.set_xscale("log")
                ax.set_xticks(task.horizons)
                ax.xaxis.set_major_formatter(ScalarFormatter())
                ax.xaxis.set_minor_formatter(NullFormatter())
                ax.set_xlabel(f"horizon H [steps], critics after {why.FITS[-1]} episodes")
            for ax, label in zip(
                row, ("signal-to-noise", "signal-to-noise over SPPO's", "signal-to-noise"), strict=True
            ):
                ax.set_yscale("log")
                ax.set_ylabel(f"{label}, {why.EPISODES} episodes" if label == "signal-to-noise" else label)
            row[0].set_title(_title(task), loc="left", fontsize="medium", fontweight="bold")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def bias_figure(raw: dict[str, Any]) -> Figure:
    """A panel per task: how far the mean gradient is from the true one, over the critic's quality."""
    with matplotlib.rc_context(STYLE):
        found = tasks(raw)
        figure = Figure(figsize=(4.6 * len(found), 3.6), layout="constrained")
        for ax, task in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            for agent, gae_lambda in DIALLED:
                _over_critic(ax, task, agent, gae_lambda, bias)
            ax.axhline(0, color=INK, linewidth=0.8)
            ax.set_ylabel("bias, |E g - g*|² / |g*|²")
            ax.set_title(_title(task), loc="left", fontsize="medium", fontweight="bold")
            ax.legend()
    return figure


def _title(task: Measured) -> str:
    return f"{short_name(task.env_id)} (n = {len(why.SEEDS)} policies x {why.BATCHES} batches)"


def _followed(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Tasks whose episodes were followed: arrays by agent."""
    for name, rows in raw.items():
        if name.startswith("along/"):
            fields = ("outcomes", "lengths", "advantages", "values")
            yield (
                name.removeprefix("along/"),
                {row["agent"]: {f: np.array(row[f]) for f in fields if f in row} for row in rows},
            )


def _panels(raw: dict[str, Any], rows: int) -> tuple[Figure, Any]:
    found = list(_followed(raw))
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
        for column, (_, agents) in zip(axes.T, _followed(raw), strict=True):
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
        for column, (_, agents) in zip(axes.T, _followed(raw), strict=True):
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


# Tables.


def tables(raw: dict[str, Any]) -> str:
    """What docs/WHY.md quotes: PPO against SPPO by horizon, all methods at one horizon, critics by position."""
    return "\n\n".join(
        [*(_by_horizon(task) for task in tasks(raw)), *(_by_method(task) for task in tasks(raw)), _by_position(raw)]
    )


def _cell(found: Interval, digits: int = 2) -> str:
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*found, d=digits)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_horizon(task: Measured) -> str:
    """The signal-to-noise ratio of PPO over that of SPPO whose critic has seen as much."""
    columns = [
        (f"PPO, {critic}" + f", λ = {lam:g}" * (lam != 1), Series("ppo", critic, lam), Series(OWN, critic))
        for lam in (1.0, why.LAMBDA)
        for critic in (why.FITS[1], why.FITS[-1], "exact")
        if task.batches(task.horizons[0], Series("ppo", critic))
    ]
    head = [
        short_name(task.env_id),
        "start success",
        f"SPPO, {why.FITS[-1]}: SNR",
        *(f"{name}, x SPPO" for name, *_ in columns),
    ]
    rows = [
        [
            f"H = {h}",
            f"{task.mean(h, 'success'):.3f}",
            _cell(signal_to_noise(task.batches(h, at_last(OWN)))),
            *(_cell(ratio(task.batches(h, a), task.batches(h, b))) for _, a, b in columns),
        ]
        for h in task.horizons
    ]
    return _markdown(head, rows)


def _by_method(task: Measured) -> str:
    """Every series of the horizon at which all were measured."""
    horizon = why.ONE_HORIZON[task.env_id]
    series = [
        Series(s["agent"], s["critic"], s["settings"].get("gae_lambda", 1.0)) for s in task.pieces[horizon][0]["series"]
    ]
    own = task.batches(horizon, at_last(OWN))
    rows = []
    for each in series:
        batches = task.batches(horizon, each)
        rows.append(
            [
                each.name,
                "" if each.critic is None else str(each.critic),
                f"{task.steps(horizon, each):.0f}",
                _cell(signal_to_noise(batches)),
                _cell(ratio(batches, own)),
                _cell(cosine(batches), 3),
                _cell(bias(batches), 3),
            ]
        )
    head = ["", "critic", "steps", "SNR", f"x SPPO, {why.FITS[-1]}", "cosine", "bias"]
    return _markdown([f"{short_name(task.env_id)}, H = {horizon}", *head[1:]], rows)


def _by_position(raw: dict[str, Any]) -> str:
    """Explained variance and Brier score at the start, half way, near the end and at the last step."""
    shown = (0, 5, 9, 10)
    rows = []
    for env_id, agents in _followed(raw):
        for agent in PREDICTORS:
            for name, measure in (("explained", explained), ("Brier", brier)):
                found = measure(agents[agent]["values"], agents[agent]["outcomes"])
                cells = [_cell(found[i]) if i < len(found) else "the same" for i in shown]
                rows.append([short_name(env_id), agent, name, *cells])
    return _markdown(["", "critic of", "of R", *(f"t/T = {POSITIONS[i]:g}" for i in shown)], rows)
