"""The report of a comparison: one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from sppo.experiments import curves, files
from sppo.experiments.answer import agent_by_agent, answer, matrix, seeds_of
from sppo.experiments.diagnostics import diagnostics_figure
from sppo.experiments.differences import configs_json, differences_table
from sppo.experiments.markup import agent_cell, interval_cell, listed, made_by, sortable
from sppo.experiments.plots import curves_figure, plot_curves, svg_of
from sppo.experiments.results import units
from sppo.experiments.summary import ALL_TASKS, Table, format_table, rate, short, signed, summarize

__all__ = ["Table", "format_table", "plot_curves", "summarize", "write_report"]

RUNS_SHOWN = 20
"""A longer list of runs is one click away."""


def duration(seconds: float) -> str:
    """90 -> 1 min 30 s."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _task_table(table: Table, scope: str, made: str) -> str:
    rows = table.of(scope)
    percent = f"{100 * table.threshold:g}%"
    heads = ["agent", "seeds", "final success", "AUC"]
    if len(rows) > 1:
        heads += ["AUC gain", f"P(AUC > {rows[0].agent})"]
    if scope != ALL_TASKS:
        episodes, steps = units(scope)
        heads += [f"{episodes} to {percent}", f"{steps} to {percent}", "time per run"]
    body = []
    for row in rows:
        cells = [agent_cell(table, row.agent), f"<td>{row.seeds}</td>"]
        cells += [interval_cell(row.final, row.seeds, picture=True), interval_cell(row.auc, row.seeds, picture=True)]
        if len(rows) > 1:
            cells += [interval_cell(row.auc_gain, row.seeds, signed)]
            cells += [interval_cell(row.improvement, row.seeds, picture=True)]
        if scope != ALL_TASKS:
            reached = f" ({row.reached} of {row.seeds})"
            cells += [interval_cell(row.episodes_to, row.seeds, short, beside=reached)]
            cells += [interval_cell(row.env_steps_to, row.seeds, short, beside=reached)]
            cells += [f'<td data-key="{row.seconds}">{duration(row.seconds or 0.0)}</td>']
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = (
        "Interquartile mean over seeds and tasks."
        if scope == ALL_TASKS
        else f"Interquartile mean over seeds; budget {short(table.budgets[scope])} {units(scope)[0]}."
    )
    return sortable(heads, body, f"{caption} In brackets the {100 * table.level:g}% interval.{made}")


def _tasks(table: Table, made: str) -> str:
    parts = [f"<h2>All tasks</h2>{_task_table(table, ALL_TASKS, made)}"] if table.of(ALL_TASKS) else []
    for env_id in table.env_ids:
        figure = svg_of(curves_figure(table, [env_id]))
        parts.append(
            f"<h2>{escape(env_id)}</h2>{_task_table(table, env_id, made)}<figure>{figure}"
            f"<figcaption>Success on held-out start states. Thin lines: single seeds; thick line: their interquartile "
            f"mean; band: its pointwise {100 * table.level:g}% bootstrap interval; dotted: {100 * table.threshold:g}% "
            "success. A run that ended before others keeps its last value. Wall-clock time is a seed's share of "
            f"the time that the seeds trained side by side took.{made}</figcaption></figure>"
        )
    return "\n".join(parts)


def _run_table(table: Table, made: str) -> str:
    several = len(table.env_ids) > 1
    body = []
    for run in table.runs:
        x, y = run.evals["episodes"], run.evals["success_rate"]
        reached = curves.first_crossing(x, y, table.threshold)
        area = curves.area_under_curve(x, y, table.budgets[run.env_id])
        key = reached if math.isfinite(reached) else "1e999"
        body.append(
            f"<tr>{f'<td>{escape(run.env_id)}</td>' * several}{agent_cell(table, run.label)}<td>{run.seed}</td>"
            f'<td>{rate(run.success_rate)}</td><td>{rate(area)}</td><td data-key="{key}">{short(reached)}</td>'
            f'<td data-key="{x[-1]}">{short(x[-1])}</td>'
            f'<td data-key="{run.evals["env_steps"][-1]}">{short(run.evals["env_steps"][-1])}</td>'
            f'<td data-key="{run.seconds}">{duration(run.seconds)}</td>'
            f'<td class="path">{escape(run.name)}</td></tr>'
        )
    heads = ["task"] * several + [
        "agent",
        "seed",
        "final success",
        "AUC",
        f"episodes to {100 * table.threshold:g}%",
        "episodes",
    ]
    caption = f"A click on a column head sorts by it. <code>sppo train --config FOLDER</code> makes a run again.{made}"
    shown = sortable([*heads, "env steps", "time", "folder"], body, caption)
    count = len(table.runs)
    return shown if count <= RUNS_SHOWN else f"<details><summary>{count} runs</summary>{shown}</details>"


def _diagnostics(table: Table, made: str) -> str:
    parts = []
    for env_id in table.env_ids:
        figure = diagnostics_figure(table, env_id)
        if figure is not None:
            parts.append(
                f"<h3>{escape(env_id)}</h3><figure>{svg_of(figure)}<figcaption>As recorded while training. Line: "
                f"interquartile mean over seeds; band: all seeds.{made}</figcaption></figure>"
            )
    return f"<h2>Training diagnostics</h2>{''.join(parts)}" if parts else ""


def _unfinished(table: Table, out: Path) -> str:
    if not table.unfinished:
        return ""
    items = "".join(f"<li>{escape(os.path.relpath(path, out))}: {escape(why)}</li>" for path, why in table.unfinished)
    count = len(table.unfinished)
    told = f"{count} unfinished run{'s' * (count != 1)} left out"
    return f'<details><summary class="warn">{told}</summary><ul>{items}</ul></details>'


def write_report(
    source: Path | str, command: str, agents: Sequence[str] | None = None, out: Path | None = None, **options: Any
) -> Path:
    """Write report.html, the comparison as one self-contained page, and return its path.

    Args:
        source: folder of runs or packed file, as for `summarize`.
        command: what made the page, shown beside every figure as it is.
        agents: as for `summarize`.
        out: folder of the page; by default the runs'.
        options: threshold, level and rng of `summarize`.
    Raises:
        ValueError: as `summarize`.
    """
    out = out or Path(source)
    table = summarize(source, agents, **options)
    where = table.env_ids[0] if len(table.env_ids) == 1 else f"{len(table.env_ids)} tasks"
    seeds, made = seeds_of(table.rows), made_by(command)
    page = Template(resources.files("sppo.experiments").joinpath("report.html").read_text("utf-8")).substitute(
        title=escape(f"{listed(table.agents)} on {where}"),
        subtitle=escape(
            f"{len(table.runs)} finished runs, {seeds} seed{'s' * (seeds != '1')} per agent and task · "
            f"{len(table.unfinished)} unfinished · Python {platform.python_version()}"
        ),
        answer="".join(f"<p>{escape(sentence)}</p>" for sentence in answer(table)),
        matrix=matrix(table, command),
        words=agent_by_agent(table),
        unfinished=_unfinished(table, out),
        tasks=_tasks(table, made),
        differences=differences_table(table, made),
        runs=_run_table(table, made),
        diagnostics=_diagnostics(table, made),
        command=escape(command),
        configs=configs_json(table.runs),
        level=f"{100 * table.level:g}%",
        threshold=f"{100 * table.threshold:g}%",
        first=escape(table.agents[0]),
    )
    path = out / "report.html"
    files.replace(path, page.encode())
    return path
