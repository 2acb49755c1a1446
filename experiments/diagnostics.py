"""Training metrics of all agents on a task, a panel each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from sppo.experiments import stats
from sppo.experiments.plots import STYLE, align, colour_of, legend_of, style_of
from sppo.experiments.results import Run
from sppo.experiments.stats import Floats
from sppo.experiments.summary import Table

# Diagnostics in the order in which one reads them; tags that a run lacks are skipped, tags not named here follow.
FIRST_TAGS = (
    "rollout/success_rate",
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "train/approx_kl",
    "train/clip_fraction",
    "train/entropy_loss",
    "train/policy_gradient_loss",
    "train/value_loss",
    "train/explained_variance",
)
# Counters only repeat the x axis.
SKIPPED = ("time/total", "time/n_updates", "time/episodes", "time/steps", "time/seconds", "time/cpu", "count/")
COUNTERS = ("train/n_updates",)
MAX_PANELS = 24
# docs/METRICS.md says what each is; those without a unit are left out.
UNITS = {
    "share": """rollout/success_rate rollout/cut_off rollout/truncated train/clip_fraction train/preference_accuracy
        critic/value_start critic/auc credit/rows_without_signal credit/masked_steps eval/success_rate reward/""",
    "reward": "rollout/ep_rew_mean train/policy_gradient_loss credit/advantage_ eval/mean_reward",
    "steps": "rollout/ep_len_mean eval/mean_ep_length time/steps_this_update",
    "nat": "train/approx_kl train/reference_kl train/entropy_loss sampling/logprob_difference",
    "s": "time/rollout_seconds",
    "steps/s": "time/fps",
}


def unit_of(tag: str) -> str:
    """In brackets; empty where there is none."""
    found = (unit for unit, tags in UNITS.items() for name in tags.split() if tag.startswith(name))
    return next((f" [{unit}]" for unit in found), "")


def diagnostic_tags(runs: Sequence[Run]) -> list[str]:
    """Tags worth a panel: numbers that some run recorded at least twice, counters of time and budget aside."""
    found = {
        tag
        for run in runs
        for tag, values in run.progress.items()
        if tag not in COUNTERS and not tag.startswith(SKIPPED) and np.isfinite(values).sum() > 1
    }
    named = [tag for tag in FIRST_TAGS if tag in found]
    return (named + sorted(found - set(named)))[:MAX_PANELS]


def _progress(run: Run, tag: str) -> tuple[Floats, Floats, str]:
    """Where the tag was recorded, against episodes, or env steps or updates where those were not counted."""
    values = run.progress[tag]
    x, label = np.arange(1.0, len(values) + 1), "updates"
    for column, name in (("time/total_timesteps", "env steps"), ("time/total_episodes", "episodes")):
        if np.isfinite(run.progress.get(column, np.nan)).any():
            x, label = run.progress[column], name
    keep = np.isfinite(values) & np.isfinite(x)
    return x[keep], values[keep], label


def diagnostics_figure(table: Table, scope: str) -> Figure | None:
    """Training metrics of every agent in one scope: IQM over seeds, the band spans all seeds. None: no metrics."""
    tags = diagnostic_tags(table.at[scope])
    if not tags:
        return None
    columns = 3
    height = math.ceil(len(tags) / columns)
    with matplotlib.rc_context({**STYLE, "font.size": 8.5}):
        figure = Figure(figsize=(11, 2.1 * height), layout="constrained")
        axes = figure.subplots(height, columns, squeeze=False).ravel()
        for ax, tag in zip(axes, tags, strict=False):
            label = ""
            for agent in table.agents:
                curves = [_progress(run, tag) for run in table.runs_of(scope, agent) if tag in run.progress]
                curves = [curve for curve in curves if len(curve[0])]
                if not curves:
                    continue
                label = curves[0][2]
                grid, ys = align([curve[0] for curve in curves], [curve[1] for curve in curves])
                colour = colour_of(table.agents, agent)
                middle = [stats.interquartile_mean(column) for column in ys.T]
                ax.plot(grid, middle, color=colour, linewidth=1.4, linestyle=style_of(table.agents, agent))
                ax.fill_between(grid, ys.min(axis=0), ys.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            ax.set_title(tag + unit_of(tag), loc="left", fontsize="medium")
            ax.set_xlabel(label, fontsize="small")
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_locator(MaxNLocator(4))
        for ax in axes[len(tags) :]:
            ax.set_axis_off()
        figure.legend(**legend_of(table, scope), loc="outside upper right")
    return figure
