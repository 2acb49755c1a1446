"""What separates the settings of runs: between agents at a glance, between any two runs on request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from sppo.experiments.markup import sortable
from sppo.experiments.results import Run
from sppo.experiments.summary import Table
from sppo.experiments.tasks import short_name

MISSING = "–"
MANY = 3
"""Values over seeds that a cell names one by one."""


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, values as JSON: {"a": {"b": 1}} -> {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def configs_json(runs: Sequence[Run]) -> str:
    """The settings of all runs for the script that compares two of them."""
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


def differences(table: Table) -> dict[str, dict[str, str]]:
    """Settings that differ between agents on some task: setting -> agent -> its value, or its values over seeds.

    Where a value also depends on the task, it is given task by task.
    """
    configs = {
        (env_id, agent): [flatten(run.config) for run in table.runs_of(env_id, agent)]
        for env_id in table.env_ids
        for agent in table.agents
    }
    names = sorted({name for runs in configs.values() for config in runs for name in config} - {"agent"})
    found: dict[str, dict[str, str]] = {}
    for name in names:
        values = {key: _joined([config.get(name, MISSING) for config in runs]) for key, runs in configs.items() if runs}
        if any(len({v for (env, _), v in values.items() if env == env_id}) > 1 for env_id in table.env_ids):
            found[name] = {agent: _over_tasks(values, agent) for agent in table.agents}
    return found


def _joined(values: Sequence[str]) -> str:
    distinct = sorted(set(values))
    return ", ".join(distinct) if len(distinct) <= MANY else f"{', '.join(distinct[:MANY])}, ... ({len(distinct)})"


def _over_tasks(values: dict[tuple[str, str], str], agent: str) -> str:
    mine = {short_name(env_id): value for (env_id, name), value in values.items() if name == agent}
    if len(set(mine.values())) == 1:
        return next(iter(mine.values()))
    return "; ".join(f"{task}: {value}" for task, value in mine.items())


def differences_table(table: Table, made: str) -> str:
    """`differences` for the page; empty with a single agent."""
    if len(table.agents) < 2:
        return ""
    found = differences(table)
    if not found:
        return "<p>Between agents no setting differs but the agent.</p>"
    body = [
        f'<tr><td class="value">{escape(name)}</td>'
        + "".join(f'<td class="value">{escape(values[agent])}</td>' for agent in table.agents)
        + "</tr>"
        for name, values in found.items()
    ]
    caption = f"Every setting that differs between agents on some task; {MISSING}: the agent has no such setting.{made}"
    return sortable(["setting", *table.agents], body, caption)
