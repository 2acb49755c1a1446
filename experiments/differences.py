"""What separates the settings of runs: between agents at a glance, between any two runs on request."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html import escape
from typing import Any

from sppo.experiments.markup import sortable
from sppo.experiments.summary import Table

MISSING = "–"
MANY = 3
"""Values over seeds that a cell names one by one."""
MANY_SCOPES = 8
"""Tasks whose values it does."""


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, values as JSON: {"a": {"b": 1}} -> {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def configs_json(table: Table) -> str:
    """The settings of all runs for the script that compares two of them."""
    several = len(table.scopes) > 1
    records = [
        {
            "name": run.name if table.of_settings else f"{run.label} seed {run.seed}" + f" on {run.env_id}" * several,
            "agent": run.label,
            "scope": scope,
            "config": flatten(run.config),
        }
        for scope, runs in table.at.items()
        for run in runs
    ]
    # No sequence that could end the script element may stand in it.
    return json.dumps(records).replace("<", "\\u003c")


def differences(table: Table) -> dict[str, dict[str, str]]:
    """Settings that differ between agents in some scope: setting -> agent -> its value, or its values over seeds.

    Where a value also depends on the scope, it is given scope by scope.
    """
    configs = {
        (scope, agent): [flatten(run.config) for run in table.runs_of(scope, agent)]
        for scope in table.scopes
        for agent in table.agents
    }
    many = "at {} settings" if table.of_settings else "on {} tasks"
    names = sorted({name for runs in configs.values() for config in runs for name in config} - {"agent"})
    found: dict[str, dict[str, str]] = {}
    for name in names:
        values = {key: _joined([config.get(name, MISSING) for config in runs]) for key, runs in configs.items() if runs}
        if any(len({values[key] for key in values if key[0] == scope}) > 1 for scope in table.scopes):
            by_agent = {
                agent: {table.name(s): v for (s, a), v in values.items() if a == agent} for agent in table.agents
            }
            found[name] = {agent: _over_scopes(mine, many) for agent, mine in by_agent.items()}
    return found


def _joined(values: Sequence[str]) -> str:
    distinct = sorted(set(values))
    return ", ".join(distinct) if len(distinct) <= MANY else f"{', '.join(distinct[:MANY])}, ... ({len(distinct)})"


def _over_scopes(values: dict[str, str], many: str) -> str:
    """The value, or what it is where; of many scopes how many have it."""
    where: dict[str, list[str]] = {}
    for scope, value in values.items():
        where.setdefault(value, []).append(scope)
    if len(where) == 1:
        return next(iter(where))
    if len(values) <= MANY_SCOPES:
        return "; ".join(f"{scope}: {value}" for scope, value in values.items())
    return "; ".join(
        f"{', '.join(scopes) if len(scopes) <= MANY else many.format(len(scopes))}: {value}"
        for value, scopes in where.items()
    )


def differences_table(table: Table, made: str) -> str:
    """`differences` for the page; empty with a single agent."""
    if len(table.agents) < 2:
        return ""
    found = differences(table)
    if not found:
        return "<p>Between agents no setting differs but the agent.</p>"
    where = "at some setting of the study" if table.of_settings else "on some task"
    caption = f"Every setting that differs between agents {where}; {MISSING}: the agent has no such setting.{made}"
    rows = [[name, *(values[agent] for agent in table.agents)] for name, values in found.items()]
    return sortable(["setting", *table.agents], _lines(rows), caption)


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["<tr>" + "".join(f'<td class="value">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows]


def between_settings(table: Table, scopes: Sequence[str]) -> dict[str, list[str]]:
    """What differs between settings of a study for one and the same agent: name -> value at each.

    Of text that differs by seed what it has in common.
    """
    configs = {(scope, run.label): [] for scope in scopes for run in table.at[scope]}  # type: dict[tuple[str, str], list[dict[str, str]]]
    for scope in scopes:
        for run in table.at[scope]:
            configs[scope, run.label].append(flatten(run.config))
    names = {name for runs in configs.values() for config in runs for name in config}
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        values = {key: _common([config.get(name, MISSING) for config in runs]) for key, runs in configs.items()}
        # an empty group of settings has a name of its own, a full one has not
        empty = set(values.values()) <= {"{}", MISSING}
        if not empty and any(len({v for (_, a), v in values.items() if a == agent}) > 1 for agent in table.agents):
            found[name] = [_joined([v for (s, _), v in values.items() if s == scope]) for scope in scopes]
    return found


def _common(values: Sequence[str]) -> str:
    """runs/0.safetensors, runs/1.safetensors -> runs/*.safetensors"""
    if len(set(values)) == 1 or not all(value.startswith('"') for value in values):
        return _joined(values)
    head = os.path.commonprefix(values)
    tail = os.path.commonprefix([value[len(head) :][::-1] for value in values])[::-1]
    return f"{head}*{tail}"


def between_settings_table(table: Table, scopes: Sequence[str], made: str) -> str:
    """`between_settings` for the page."""
    found = between_settings(table, scopes)
    rows = [[scope, *(values[i] for values in found.values())] for i, scope in enumerate(scopes)]
    caption = f"What differs between these settings, the same for all agents unless several values stand there.{made}"
    return sortable(["setting", *found], _lines(rows), caption)
