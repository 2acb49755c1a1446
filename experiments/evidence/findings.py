"""What the studies found: the tables of docs/RESULTS.md, from packed runs, and their figures beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppo.experiments.compact import ENDING
from sppo.experiments.evidence.calibrations import BY_SIZE, told_calibrations, told_critics
from sppo.experiments.evidence.findings_figures import (
    draw_dials,
    draw_profiles,
    draw_tasks,
)
from sppo.experiments.evidence.gains import gain, told_gains
from sppo.experiments.evidence.maps import MAPS, told_map_rates, told_maps
from sppo.experiments.evidence.studies import SEEDS, STUDIES, best_rates, rate_of
from sppo.experiments.evidence.study import LAMBDA
from sppo.experiments.evidence.text_findings import THRESHOLD, THRESHOLDS, in_order, told_by_task, told_of_single_runs
from sppo.experiments.packed import unpack
from sppo.experiments.plots import save_figure
from sppo.experiments.results import Run, area
from sppo.experiments.scopes import AGENTS, by_setting, by_value
from sppo.experiments.summary import ALL_TASKS, bounds, format_table, signed, summarize
from sppo.experiments.tasks import short_name

TELLS = "critic/auc"
"""Recorded in every update: how often the critic puts a start of a success above one of a failure."""


def _by_task(runs: Sequence[Run], image: Path) -> str:
    table = summarize(runs, in_order(runs))
    save_figure(draw_tasks(table, root=True), image)
    if table.of(ALL_TASKS):
        save_figure(draw_profiles(table), image.with_name(f"{image.name}-profiles"))
    return f"{format_table(table)}\n\n{told_gains(table)}"


def _figure(runs: Path, images: Path) -> str:
    return _by_task(unpack(runs), images / "figure")


def _tuned(runs: Path, images: Path) -> str:
    """The figure with each agent at its best rate of the sweep, on the tasks where all of its runs are there."""
    rates = runs.with_name(f"rates{ENDING}")
    best = best_rates(unpack(rates)) if rates.exists() else {}
    found = whole_tasks([run for run in unpack(runs) if rate_of(run) == best.get((run.env_id, run.label))])
    if not found:
        return ""
    lines = ["Learning rate of each agent, its best of the sweep"]
    for env_id in sorted({run.env_id for run in found}):
        told = (f"{agent} {best[env_id, agent]:g}" for agent in AGENTS)
        lines.append(f"  {short_name(env_id):22}" + "  ".join(told))
    return "\n".join(lines) + f"\n\n{_by_task(found, images / 'tuned')}"


def whole_tasks(runs: Sequence[Run], agents: Sequence[str] = AGENTS) -> list[Run]:
    """Those on tasks where each of these has all of the figure's seeds: elsewhere some would be told, others not."""
    chosen: list[Run] = []
    for env_id in sorted({run.env_id for run in runs}):
        here = [run for run in runs if run.env_id == env_id]
        if all({run.seed for run in here if run.label == agent} == {*SEEDS} for agent in agents):
            chosen += here
    return chosen


def _lambda(runs: Path, images: Path) -> str:
    """PPO with another lambda beside the figure's PPO and SPPO, on the tasks where all of its runs are there."""
    agents = [f"ppo, lambda {LAMBDA:g}", "ppo", "sppo"]
    figure = runs.with_name(f"figure{ENDING}")
    own = [run for run in (unpack(figure) if figure.exists() else ()) if run.label in agents]
    found = whole_tasks([*own, *(replace(run, label=agents[0]) for run in unpack(runs))], agents)
    if not found:
        return ""
    table = summarize(found, agents)
    save_figure(draw_tasks(table, root=True), images / "lambda")
    return f"{format_table(table)}\n\n{told_gains(table)}"


def _text(runs: Path, images: Path) -> str:
    return told_by_task(_drawn_text(runs, images))


def _single_runs(runs: Path, images: Path) -> str:
    return told_of_single_runs(_drawn_text(runs, images))


def _drawn_text(runs: Path, images: Path) -> list[Run]:
    """The packed runs, once they are drawn."""
    found = unpack(runs)
    table = summarize(found, in_order(found), threshold=THRESHOLD)
    figure = draw_tasks(table, ("env_steps", "cpu_seconds"), THRESHOLDS)
    save_figure(figure, images / runs.name.removesuffix(ENDING))
    return found


def _dials(runs: Path, images: Path) -> str:
    loaded = unpack(runs)
    save_figure(draw_dials(loaded), images / runs.name.removesuffix(ENDING))
    lines = [
        "Success at the start, how well SPPO's V(s0) tells starts apart while it learns (AUC of outcomes; 0.5 knows "
        "nothing), mean areas under the curve, and SPPO's less the other's, as one thing varies, "
        "[95% t interval over paired seeds]",
        f"  {'':50}  start  V(s0)  other           sppo   sppo - other",
    ]
    for setting, here in sorted(by_setting(loaded).items(), key=lambda found: by_value(found[0])):
        start = np.mean([run.evals["success_rate"][0] for run in here])
        areas = {name: np.mean([area(run) for run in here if run.label == name]) for name in in_order(here)}
        known = [np.nanmean(run.progress[TELLS]) for run in here if run.label == "sppo" and TELLS in run.progress]
        tells = f"{np.mean(known):.3f}" if known else "-"
        for other in (name for name in areas if name != "sppo"):
            difference, n = gain(here, "sppo", other)
            lines.append(
                f"  {setting:50}  {start:.3f}  {tells:5}  {other:8} {areas[other]:.3f}  {areas['sppo']:.3f}  "
                f"{signed(difference.estimate)} {bounds(difference, signed)}  n = {n}"
            )
    return "\n".join(lines)


def _rates(runs: Path, images: Path) -> str:
    """The mean area at each learning rate, the best marked."""
    loaded = unpack(runs)
    best, rates = best_rates(loaded), sorted({rate_of(run) for run in loaded})
    lines = [
        f"Mean area by learning rate, seeds {min(r.seed for r in loaded)} to {max(r.seed for r in loaded)}; * best"
    ]
    lines.append(f"  {'':22}{'':10}  " + "".join(f"{rate:<8g}" for rate in rates).rstrip())
    for env_id, agent in sorted(best, key=lambda key: (key[0], AGENTS.index(key[1]))):
        mine = [run for run in loaded if (run.env_id, run.label) == (env_id, agent)]
        areas = {rate: [area(r) for r in mine if rate_of(r) == rate] for rate in rates}
        cells_ = [
            f"{np.mean(a):.3f}{'*' if rate == best[env_id, agent] else ' '}" if a else "-" for rate, a in areas.items()
        ]
        lines.append(f"  {short_name(env_id):22}{agent:10}  " + "".join(f"{cell:8}" for cell in cells_).rstrip())
    return "\n".join(lines)


DRAWN: dict[str, Callable[[Path, Path], str]] = {
    "figure": _figure,
    "lambda": _lambda,
    "rates": _rates,
    "text-rates": _rates,
    "tuned": _tuned,
    "dials": _dials,
    "text-dials": _dials,
    "text": _text,
    "text-pool": _text,
    BY_SIZE: told_critics,
    "smollm2": _single_runs,
    "cartpole-rates": told_map_rates,
}


def redraw(results: Path, images: Path) -> str:
    """Draw all figures of the packed runs in a folder; their tables, below the command that made the runs.

    Raises:
        ValueError: if it holds none.
    """
    names = [name for name in STUDIES if (results / f"{name}{ENDING}").exists()]
    if not names:
        raise ValueError(f"{results} must hold packed runs, such as {next(iter(STUDIES))}{ENDING}")
    images.mkdir(parents=True, exist_ok=True)
    told = {f"sppo study {name}": DRAWN[name](results / f"{name}{ENDING}", images) for name in names if name in DRAWN}
    told["; ".join(f"sppo study {name}" for name in names if name in MAPS)] = told_maps(results, images)
    told["sppo calibrate RUN"] = told_calibrations(results, images)
    return "\n\n".join(f"{made_by}\n\n{tables}" for made_by, tables in told.items() if tables)
