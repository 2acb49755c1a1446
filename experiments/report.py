"""The report of a comparison: one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from sppo.experiments import stats
from sppo.experiments.plots import colour_of, curves_figure, diagnostics_figure, plot_curves, svg_of
from sppo.experiments.results import Run, units
from sppo.experiments.stats import Interval
from sppo.experiments.summary import ALL_TASKS, Row, Table, bounds, format_table, rate, short, signed, summarize

__all__ = ["Table", "format_table", "plot_curves", "summarize", "write_report"]


def duration(seconds: float) -> str:
    """90 -> 1 min 30 s."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])


def _seeds(row: Row) -> str:
    return f"{row.seeds} seed" + "s" * (row.seeds != 1)


def _clear(gap: Interval) -> bool:
    return gap.low > 0 or gap.high < 0


def _odds(improvement: Interval, agent: str, first: str) -> str:
    # With few seeds a clean sweep has the interval [1, 1], which in words would claim certainty.
    if improvement.estimate == 1:
        return f"Every run of {agent} beat every run of {first}."
    if improvement.estimate == 0:
        return f"Every run of {first} beat every run of {agent}."
    return (
        f"A run of {agent} beats a run of {first} with probability {improvement.estimate:.2f} "
        f"({improvement.low:.2f} to {improvement.high:.2f})."
    )


def verdict(row: Row, first: Row, level: float) -> tuple[str, str]:
    """Which of two agents is ahead on a task, and by how much and how surely: a headline and its grounds."""
    assert row.auc_gain and row.final_gain and row.improvement
    gain = row.auc_gain.estimate
    better, worse = (row.agent, first.agent) if gain > 0 else (first.agent, row.agent)
    sure = f"{100 * level:g}% interval"
    if min(row.seeds, first.seeds) < 2:
        headline = f"{row.agent} against {first.agent}: one seed each cannot tell them apart"
    elif _clear(row.auc_gain):
        headline = f"{better} learns faster than {worse}"
    else:
        headline = f"No clear difference between {row.agent} and {first.agent} in learning speed"
    grounds = (
        f"Area under the learning curve: {row.agent} {rate(row.auc.estimate)}, "
        f"{first.agent} {rate(first.auc.estimate)}, "
        f"difference {signed(gain)} ({sure} {signed(row.auc_gain.low)} to {signed(row.auc_gain.high)}). "
        f"{_odds(row.improvement, row.agent, first.agent)} "
        f"Final success: {row.agent} {rate(row.final.estimate)}, {first.agent} {rate(first.final.estimate)}, "
        + (
            f"difference {signed(row.final_gain.estimate)} "
            f"({signed(row.final_gain.low)} to {signed(row.final_gain.high)})"
            if _clear(row.final_gain)
            else "no clear difference"
        )
        + (f"; {_seeds(row)} each." if row.seeds == first.seeds else f"; {_seeds(row)} against {_seeds(first)}.")
    )
    return headline, grounds


def _verdict_block(table: Table, scope: str) -> str:
    first, *others = table.of(scope)
    where = "over all tasks" if scope == ALL_TASKS else f"on {scope}"
    alone = (f"{first.agent} ends at {rate(first.final.estimate)} success", f"AUC {rate(first.auc.estimate)}.")
    return "".join(
        f'<div class="verdict"><p><strong>{escape(headline)}</strong> {escape(where)}.</p>'
        f"<p>{escape(grounds)}</p></div>"
        for headline, grounds in [verdict(row, first, table.level) for row in others] or [alone]
    )


def _verdicts(table: Table) -> str:
    """The answers on top; with a sum over all tasks, those of the single tasks are one click away."""
    tasks = [_verdict_block(table, env_id) for env_id in table.env_ids]
    if not table.of(ALL_TASKS):
        return "".join(tasks)
    return f"{_verdict_block(table, ALL_TASKS)}<details><summary>Task by task</summary>{''.join(tasks)}</details>"


def _range(interval: Interval) -> str:
    """An interval on the scale from 0 to 1, as a picture."""
    low, mid, high = (100 * min(max(value, 0.0), 1.0) for value in (interval.low, interval.estimate, interval.high))
    return (
        '<svg class="range" viewBox="-3 0 106 10" aria-hidden="true">'
        '<line x1="0" x2="100" y1="5" y2="5" stroke="currentColor" stroke-opacity=".2"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="5" y2="5" stroke="currentColor" stroke-width="3" opacity=".55"/>'
        f'<circle cx="{mid:.1f}" cy="5" r="3" fill="currentColor"/></svg>'
    )


def _cell(
    interval: Interval | None,
    seeds: int,
    form: Callable[[float], str] = rate,
    picture: bool = False,
    beside: str = "",
) -> str:
    if interval is None:
        return '<td data-key="">–</td>'
    key = "1e999" if math.isinf(interval.estimate) else repr(interval.estimate)
    spread = f"<small>{bounds(interval, form) if seeds > 1 else 'one seed: no interval'}</small>"
    drawn = _range(interval) if picture else ""
    return f'<td data-key="{key}">{form(interval.estimate)}{beside}{drawn}{spread}</td>'


def _agent_cell(table: Table, agent: str) -> str:
    colour = colour_of(table.agents, agent)
    return f'<td data-key="{escape(agent)}"><span class="dot" style="background:{colour}"></span>{escape(agent)}</td>'


def _task_table(table: Table, scope: str) -> str:
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
        cells = [_agent_cell(table, row.agent), f"<td>{row.seeds}</td>"]
        cells += [_cell(row.final, row.seeds, picture=True), _cell(row.auc, row.seeds, picture=True)]
        if len(rows) > 1:
            cells += [_cell(row.auc_gain, row.seeds, signed), _cell(row.improvement, row.seeds, picture=True)]
        if scope != ALL_TASKS:
            reached = f" ({row.reached} of {row.seeds})"
            cells += [_cell(row.episodes_to, row.seeds, short, beside=reached)]
            cells += [_cell(row.env_steps_to, row.seeds, short, beside=reached)]
            cells += [f'<td data-key="{row.seconds}">{duration(row.seconds or 0.0)}</td>']
        body.append(f"<tr>{''.join(cells)}</tr>")
    caption = (
        "Interquartile mean over seeds and tasks."
        if scope == ALL_TASKS
        else f"Interquartile mean over seeds; budget {short(table.budgets[scope])} {units(scope)[0]}."
    )
    return _sortable(heads, body, f"{caption} In brackets the {100 * table.level:g}% interval.")


def _sortable(heads: Sequence[str], body: Sequence[str], caption: str) -> str:
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return (
        f'<div class="wide"><table class="sortable"><caption>{escape(caption)}</caption><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _tasks(table: Table) -> str:
    parts = [f"<h2>All tasks</h2>{_task_table(table, ALL_TASKS)}"] if table.of(ALL_TASKS) else []
    for env_id in table.env_ids:
        parts.append(
            f"<h2>{escape(env_id)}</h2>{_task_table(table, env_id)}<figure>{svg_of(curves_figure(table, [env_id]))}"
            f"<figcaption>Success on held-out start states. Thin lines: single seeds; thick line: their interquartile "
            f"mean; band: its pointwise {100 * table.level:g}% bootstrap interval; dotted: {100 * table.threshold:g}% "
            "success. A run that ended before others keeps its last value. Wall-clock time is a seed's share of "
            "the time that the seeds trained side by side took.</figcaption></figure>"
        )
    return "\n".join(parts)


def _run_table(table: Table) -> str:
    several = len(table.env_ids) > 1
    body = []
    for run in table.runs:
        x, y = run.evals["episodes"], run.evals["success_rate"]
        reached = stats.first_crossing(x, y, table.threshold)
        area = stats.area_under_curve(x, y, table.budgets[run.env_id])
        key = reached if math.isfinite(reached) else "1e999"
        body.append(
            f"<tr>{f'<td>{escape(run.env_id)}</td>' * several}{_agent_cell(table, run.label)}<td>{run.seed}</td>"
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
    return _sortable([*heads, "env steps", "time", "folder"], body, "A click on a column head sorts by it.")


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, values as JSON: {"a": {"b": 1}} -> {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def _configs(runs: Sequence[Run]) -> str:
    several = len({run.env_id for run in runs}) > 1
    records = [
        {
            "name": f"{run.label} seed {run.seed}" + f" on {run.env_id}" * several,
            "agent": run.label,
            "env_id": run.env_id,
            "config": flatten(run.config),
        }
        for run in runs
    ]
    # No sequence that could end the script element may stand in it.
    return json.dumps(records).replace("<", "\\u003c")


def _diagnostics(table: Table) -> str:
    parts = []
    for env_id in table.env_ids:
        figure = diagnostics_figure(table, env_id)
        if figure is not None:
            parts.append(
                f"<h3>{escape(env_id)}</h3><figure>{svg_of(figure)}<figcaption>As recorded while training. Line: "
                "interquartile mean over seeds; band: all seeds.</figcaption></figure>"
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
        command: what made the runs, shown as it is.
        agents: as for `summarize`.
        out: folder of the page; by default the runs'.
        options: threshold, level and rng of `summarize`.
    Raises:
        ValueError: as `summarize`.
    """
    out = out or Path(source)
    table = summarize(source, agents, **options)
    where = table.env_ids[0] if len(table.env_ids) == 1 else f"{len(table.env_ids)} tasks"
    counts = sorted({row.seeds for row in table.rows})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    page = Template(resources.files("sppo.experiments").joinpath("report.html").read_text("utf-8")).substitute(
        title=escape(f"{_listed(table.agents)} on {where}"),
        subtitle=escape(
            f"{len(table.runs)} finished runs, {seeds} seed{'s' * (seeds != '1')} per agent and task · "
            f"{len(table.unfinished)} unfinished · Python {platform.python_version()}"
        ),
        verdicts=_verdicts(table),
        unfinished=_unfinished(table, out),
        tasks=_tasks(table),
        runs=_run_table(table),
        diagnostics=_diagnostics(table),
        command=escape(command),
        configs=_configs(table.runs),
        level=f"{100 * table.level:g}%",
        threshold=f"{100 * table.threshold:g}%",
        first=escape(table.agents[0]),
    )
    path = out / "report.html"
    partial = path.with_suffix(".part")
    partial.write_text(page, "utf-8")
    partial.replace(path)
    return path
