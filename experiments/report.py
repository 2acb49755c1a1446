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
from sppo.experiments.answer import agent_by_agent, answer, spanned
from sppo.experiments.compact import ENDING
from sppo.experiments.diagnostics import diagnostics_figure
from sppo.experiments.differences import between_settings_table, configs_json, differences_table
from sppo.experiments.glossary import glossary
from sppo.experiments.markup import agent_cell, interval_cell, listed, made_by, sortable
from sppo.experiments.matrix import matrix
from sppo.experiments.plots import curves_figure, plot_curves, svg_of
from sppo.experiments.results import units
from sppo.experiments.summary import Table, format_table, rate, short, signed, summarize

__all__ = ["Table", "format_table", "plot_curves", "summarize", "write_report"]

ROWS_SHOWN = 20
"""A longer list is one click away."""


def duration(seconds: float) -> str:
    """90 -> 1 min 30 s."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _table(table: Table, scopes: Sequence[str], made: str) -> str:
    """The rows of one scope, or of several settings of a study, or of what sums them up."""
    rows = [row for scope in scopes for row in table.of(scope)]
    percent = f"{100 * table.threshold:g}%"
    compared, pooled = len(table.agents) > 1, scopes[0] in table.pools
    episodes, steps = units(table.env_id(scopes[0]))
    heads = ["setting"] * table.of_settings + ["agent", "seeds", "final success", "AUC"]
    if compared:
        heads += ["AUC gain", f"P(AUC > {table.agents[0]})"]
    if not pooled:
        heads += [f"{episodes} to {percent}", f"{steps} to {percent}", "time per run"]
    body = []
    for row in rows:
        cells = [f'<td class="name">{escape(row.scope)}</td>'] * table.of_settings
        cells += [agent_cell(table, row.agent), f"<td>{row.seeds}</td>"]
        cells += [interval_cell(row.final, row.seeds, picture=True), interval_cell(row.auc, row.seeds, picture=True)]
        if compared:
            cells += [interval_cell(row.auc_gain, row.pairs, signed)]
            cells += [interval_cell(row.improvement, row.pairs, picture=True)]
        if not pooled:
            reached = f" ({row.reached} of {row.seeds})"
            cells += [interval_cell(row.episodes_to, row.seeds, short, beside=reached)]
            cells += [interval_cell(row.env_steps_to, row.seeds, short, beside=reached)]
            cells += [f'<td data-key="{row.seconds}">{duration(row.seconds or 0.0)}</td>']
        body.append(f"<tr>{''.join(cells)}</tr>")
    return sortable(heads, body, f"{_how(table, scopes)} In brackets the {100 * table.level:g}% interval.{made}")


def _how(table: Table, scopes: Sequence[str]) -> str:
    """What a table's numbers are of."""
    pooled = scopes[0] in table.pools
    if table.of_settings and pooled:
        return "Mean over seeds of each seed's mean over settings."
    if pooled:
        return "Interquartile mean over seeds and tasks."
    spent = " to ".join(dict.fromkeys(short(f([table.budgets[s] for s in scopes])) for f in (min, max)))
    mean = "Mean" if table.of_settings else "Interquartile mean"
    return f"{mean} over seeds; budget {spent} {units(table.env_id(scopes[0]))[0]}."


def _tasks(table: Table, made: str) -> str:
    parts = [f"<h2>{pool.capitalize()}</h2>{_table(table, [pool], made)}" for pool in table.pools]
    for scope in table.scopes:
        figure = svg_of(curves_figure(table, [scope]))
        parts.append(
            f"<h2>{escape(scope)}</h2>{_table(table, [scope], made)}<figure>{figure}"
            f"<figcaption>Success on held-out start states. Thin lines: single seeds; thick line: their interquartile "
            f"mean; band: its pointwise {100 * table.level:g}% bootstrap interval; dotted: {100 * table.threshold:g}% "
            "success. A run that ended before others keeps its last value. Wall-clock time is a seed's share of "
            f"the time that the seeds trained side by side took.{made}</figcaption></figure>"
        )
    return "\n".join(parts)


def _settings(table: Table, made: str) -> str:
    """A section per task: what its settings are, every agent at each, curves one click away."""
    parts = [f"<h2>Settings taken together</h2>{_table(table, [*table.pools], made)}"] if table.pools else []
    for env_id in table.env_ids:
        scopes = [scope for scope in table.scopes if table.env_id(scope) == env_id]
        what = _folded(len(scopes), "settings", between_settings_table(table, scopes, made))
        parts.append(
            f"<h2>{escape(env_id)}</h2>{what}{_table(table, scopes, made)}"
            f"<details><summary>Learning curves at each setting</summary><figure>"
            f"{svg_of(curves_figure(table, scopes))}<figcaption>Success on held-out start states. Line: interquartile "
            f"mean over seeds; band: its pointwise {100 * table.level:g}% bootstrap interval; dotted: "
            f"{100 * table.threshold:g}% success.{made}</figcaption></figure></details>"
        )
    return "\n".join(parts)


def _folded(count: int, what: str, shown: str) -> str:
    return shown if count <= ROWS_SHOWN else f"<details><summary>{count} {what}</summary>{shown}</details>"


def _run_table(table: Table, made: str) -> str:
    several = len(table.scopes) > 1
    episodes, steps = (" or ".join(dict.fromkeys(names)) for names in zip(*map(units, table.env_ids), strict=True))
    body = []
    for scope, run in ((scope, run) for scope, runs in table.at.items() for run in runs):
        x, y = run.evals["episodes"], run.evals["success_rate"]
        reached = curves.first_crossing(x, y, table.threshold)
        area = curves.area_under_curve(x, y, table.budgets[scope])
        key = reached if math.isfinite(reached) else "1e999"
        body.append(
            f"<tr>{f'<td>{escape(scope)}</td>' * several}{agent_cell(table, run.label)}<td>{run.seed}</td>"
            f'<td>{rate(run.success_rate)}</td><td>{rate(area)}</td><td data-key="{key}">{short(reached)}</td>'
            f'<td data-key="{x[-1]}">{short(x[-1])}</td>'
            f'<td data-key="{run.evals["env_steps"][-1]}">{short(run.evals["env_steps"][-1])}</td>'
            f'<td data-key="{run.seconds}">{duration(run.seconds)}</td>'
            f'<td class="path">{escape(run.name)}</td></tr>'
        )
    heads = ["setting" if table.of_settings else "task"] * several + [
        "agent",
        "seed",
        "final success",
        "AUC",
        f"{episodes} to {100 * table.threshold:g}%",
        episodes,
        steps,
        "time",
        "folder",
    ]
    caption = f"A click on a column head sorts by it. <code>sppo train --config FOLDER</code> makes a run again.{made}"
    shown = sortable(heads, body, caption)
    return _folded(len(table.runs), "runs", shown)


def _diagnostics(table: Table, made: str) -> str:
    """Not of the settings of a study, which are too many."""
    parts = []
    for scope in () if table.of_settings else table.scopes:
        figure = diagnostics_figure(table, scope)
        if figure is not None:
            parts.append(
                f"<h3>{escape(scope)}</h3><figure>{svg_of(figure)}<figcaption>As recorded while training. Line: "
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


def folder_of(source: Path | str) -> Path:
    """Where the page goes unless told otherwise: into a folder of runs; of a packed file into runs/reports/NAME."""
    source = Path(source)
    return Path("runs/reports") / source.name.removesuffix(ENDING) if source.is_file() else source


def write_report(
    source: Path | str, command: str, agents: Sequence[str] | None = None, out: Path | None = None, **options: Any
) -> Path:
    """Write report.html, the comparison as one self-contained page, and return its path.

    Args:
        source: folder of runs or packed file, as for `summarize`.
        command: what made the page, shown beside every figure as it is.
        agents: as for `summarize`.
        out: folder of the page, made where it is missing; by default as `folder_of`.
        options: threshold, level and rng of `summarize`.
    Raises:
        ValueError: as `summarize`.
    """
    out = out or folder_of(source)
    table = summarize(source, agents, **options)
    where = f"on {table.env_ids[0] if len(table.env_ids) == 1 else f'{len(table.env_ids)} tasks'}"
    unit = "setting" if table.of_settings else "task"
    seeds, made = spanned([row.seeds for row in table.rows]), made_by(command)
    page = Template(resources.files("sppo.experiments").joinpath("report.html").read_text("utf-8")).substitute(
        title=escape(f"{listed(table.agents)} {where}" + f" at {len(table.scopes)} settings" * table.of_settings),
        subtitle=escape(
            f"{len(table.runs)} finished runs, {seeds} seed{'s' * (seeds != '1')} per agent and {unit} · "
            f"{len(table.unfinished)} unfinished · Python {platform.python_version()}"
        ),
        answer="".join(f"<p>{escape(sentence)}</p>" for sentence in answer(table)),
        matrix=matrix(table, command),
        words=agent_by_agent(table),
        unfinished=_unfinished(table, out),
        tasks=(_settings if table.of_settings else _tasks)(table, made),
        differences=differences_table(table, made),
        runs=_run_table(table, made),
        diagnostics=_diagnostics(table, made),
        command=escape(command),
        configs=configs_json(table),
        glossary=glossary(table),
        threshold=f"{100 * table.threshold:g}%",
        first=escape(table.agents[0]),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    files.replace(path, page.encode())
    return path
