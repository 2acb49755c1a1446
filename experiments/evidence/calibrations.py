"""What critics and tables know of starts: by study, and by the size of the critic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sppo.experiments import stats
from sppo.experiments.calibration import metrics
from sppo.experiments.compact import ENDING
from sppo.experiments.evidence.findings_figures import draw_dials
from sppo.experiments.evidence.studies import STUDIES
from sppo.experiments.packed import unpack
from sppo.experiments.plots import STYLE, draw_reliability, save_figure
from sppo.experiments.results import SPLITS, Run, area
from sppo.experiments.scopes import by_setting, by_value, setting_of
from sppo.experiments.stats import Floats
from sppo.experiments.summary import bounds, rate, signed

FIGURES = ("pearson", "spearman", "ceiling", "brier", "auc")
BY_SIZE = "critics"
"""The study whose settings are sizes of the critic."""

Calibrated = dict[tuple[str, str], list[dict[str, Floats]]]
"""By row and panel, what `sppo calibrate` found of each seed."""


def told_calibrations(results: Path, images: Path) -> str:
    """How well predictions tell starts apart, in the runs that were calibrated, by study, setting and agent."""
    told = []
    for split in SPLITS.values():
        found: Calibrated = {}
        for name in STUDIES.keys() - {BY_SIZE}:
            file = results / f"{name}{ENDING}"
            for run in unpack(file) if file.exists() else ():
                if calibrated := getattr(run, split.field):
                    found.setdefault((f"{name}/{setting_of(run)}", run.label), []).append(calibrated)
        if found:
            found = dict(sorted(found.items()))
            save_figure(draw_calibrations(found, split.starts), images / split.stem)
            told.append(calibration_table(found, split.starts))
    return "\n\n".join(told)


def told_critics(runs: Path, images: Path) -> str:
    """Area and calibration by the size of the critic."""
    loaded = unpack(runs)
    settings = sorted(by_setting(loaded).items(), key=lambda setting: by_value(setting[0]))
    save_figure(draw_dials(loaded, ("sppo",)), images / BY_SIZE)
    lines = ["Area under the curve by size of the critic, and gained over the smallest, [95% t interval over seeds]"]
    smallest: dict[str, dict[int, float]] = {}
    found: Calibrated = {}
    for setting, here in settings:
        dial, _, size = setting.rpartition("/")
        lines.append(f"  {dial:30}{size:>4}  {_areas(here, smallest.setdefault(dial, _by_seed(here)))}")
        if calibrated := [run.calibration for run in here if run.calibration]:
            found[dial, size] = calibrated
    if not found:
        return "\n".join(lines)
    starts = SPLITS["test"].starts
    save_figure(draw_calibrations(found, starts), images / f"{BY_SIZE}-calibration")
    return "\n".join(lines) + "\n\n" + calibration_table(found, starts)


def _by_seed(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: area(run) for run in runs}


def _areas(runs: Sequence[Run], others: dict[int, float]) -> str:
    """Their mean, and less that of others, over the seeds that both have."""
    mine = _by_seed(runs)
    mean = stats.mean_interval([*mine.values()])
    told = f"{rate(mean.estimate)} {bounds(mean)}"
    gains = [mine[seed] - others[seed] for seed in sorted(mine.keys() & others.keys())]
    if mine != others and gains:
        gain = stats.mean_interval(gains)
        told += f"  {signed(gain.estimate)} {bounds(gain, signed)}"
    return f"{told}  n = {len(mine)}"


def calibration_table(found: Calibrated, starts: str) -> str:
    """A row per setting and agent: means and ranges over seeds; nothing of a figure that a seed does not have."""
    lines = [f"V(s0), or the tracker's p, against the success rate at {starts}: mean over seeds (range)"]
    lines.append(f"  {'':40}" + "".join(f"{name:26}" for name in FIGURES) + "seeds x starts x episodes")
    for (setting, label), mine in found.items():
        figures = [metrics(one["values"], one["outcomes"]) for one in mine]
        told = "".join(f"{_over_seeds([figure[name] for figure in figures]):26}" for name in FIGURES)
        sizes = " or ".join("{} x {}".format(*shape) for shape in sorted({one["outcomes"].shape for one in mine}))
        lines.append(f"  {setting:29} {label:10}{told}{len(mine)} x {sizes}")
    return "\n".join(lines)


def _over_seeds(each: Sequence[float]) -> str:
    """A constant has no correlation."""
    if not np.isfinite(each).all():
        return "-"
    return f"{rate(float(np.mean(each)))} ({rate(min(each))} to {rate(max(each))})"


def draw_calibrations(found: Calibrated, starts: str) -> Figure:
    """Rows and panels of reliability: success rates at starts against predictions, the starts of all seeds."""
    rows: dict[str, list[str]] = {}
    for of, label in found:
        rows.setdefault(of, []).append(label)
    columns = max(map(len, rows.values()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * columns + 0.4, 2.9 * len(rows) + 0.5), layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
        for row, (of, labels) in zip(axes, rows.items(), strict=True):
            for ax in row[len(labels) :]:
                ax.set_visible(False)
            for ax, label in zip(row, labels, strict=False):
                seeds = found[of, label]
                draw_reliability(ax, *(np.concatenate([one[name] for one in seeds]) for name in ("values", "outcomes")))
                ax.set_title(f"{of}\n{label}: n = {len(seeds)} seeds", loc="left", fontsize="small")
            row[0].set_ylabel("success rate")
        figure.supxlabel(f"success rate predicted at {starts}", fontsize="medium")
        axes[0, 0].legend(loc="lower right", fontsize="small")
    return figure
