"""The first screen of a report as a table: every agent's gain over the first, everywhere."""

from __future__ import annotations

from html import escape
from statistics import fmean

from sppo.experiments.answer import FEW, is_clear, spanned
from sppo.experiments.differences import between_settings
from sppo.experiments.markup import dot, made_by
from sppo.experiments.results import units
from sppo.experiments.rows import Row
from sppo.experiments.summary import Table, bounds, rate, short, signed

NUMBERS = 3
"""That say what a setting is, at most, in columns of their own."""


def matrix(table: Table, command: str) -> str:
    """Marked only where a difference is clear; a row per agent, or per setting, of which there are more."""
    return _by_setting(table, command) if table.of_settings else _by_agent(table, command)


def _by_agent(table: Table, command: str) -> str:
    scopes = [*table.pools, *table.scopes]
    rows = {scope: {row.agent: row for row in table.of(scope)} for scope in scopes}
    heads = "".join(
        f'<th scope="col">{escape(table.name(scope))}<small>{_under(table, scope)}</small></th>' for scope in scopes
    )
    body = []
    for agent in table.agents:
        cells = "".join(_cell(rows[scope].get(agent), agent == table.agents[0]) for scope in scopes)
        body.append(f'<tr><th scope="row">{dot(table, agent)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="matrix">{_caption(table, command, "row")}'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _by_setting(table: Table, command: str) -> str:
    """Sortable, below the pools, which stay where they are."""
    few = len(table.agents) <= FEW
    known = _in_numbers(table) if few else {}
    heads = ["setting", *map(escape, known), "success at start", *(dot(table, agent) for agent in table.agents)]

    def line(scope: str) -> str:
        rows = {row.agent: row for row in table.of(scope)}
        runs = [run for of in table.pools.get(scope, [scope]) for run in table.at[of]]
        start = fmean(float(run.evals["success_rate"][0]) for run in runs)
        cells = "".join(_cell(rows.get(agent), agent == table.agents[0], keyed=True) for agent in table.agents)
        told = "".join(f"<td>{escape(values.get(scope, ''))}</td>" for values in known.values())
        return (
            f'<tr><td class="name">{escape(scope)}</td>{told}<td data-key="{start}">{start:.1%}'
            f"<small>n = {_seeds(table, scope)}</small></td>{cells}</tr>"
        )

    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    pools, settings = ("".join(map(line, scopes)) for scopes in (table.pools, table.scopes))
    kind = "matrix sortable" + " compact" * few
    return (
        f'<div class="wide"><table class="{kind}">{_caption(table, command, "column")}'
        f"<thead><tr>{head}</tr>{pools}</thead><tbody>{settings}</tbody></table></div>"
    )


def _in_numbers(table: Table) -> dict[str, dict[str, str]]:
    """What the names of settings stand for, by setting, where that is a few numbers."""
    found = between_settings(table, table.scopes)
    few = {name: values for name, values in found.items() if all(map(_is_number, values))}
    if len(few) > NUMBERS:
        return {}
    return {name.rpartition(".")[2]: dict(zip(table.scopes, values, strict=True)) for name, values in few.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _caption(table: Table, command: str, where: str) -> str:
    first = escape(table.agents[0])
    told = (
        f"Gain in AUC over {first}, whose own AUC is in its {where}. "
        '<span class="ahead">▲ ahead</span> <span class="behind">▼ behind</span>: the interval leaves out zero'
        f"{'' if table.of_settings else ', and that of the plain mean too (Student), which the mouse shows'}."
        if len(table.agents) > 1
        else "Success rate averaged over training (AUC)."
    )
    return f"<caption>{told}{made_by(command)}</caption>"


def _under(table: Table, scope: str) -> str:
    """Of a column's head: how many seeds, and what each spent."""
    seeds = f"n = {_seeds(table, scope)}"
    if scope in table.pools:
        return seeds
    return f"{seeds}, {short(table.budgets[scope])} {units(table.env_id(scope))[0]}"


def _seeds(table: Table, scope: str) -> str:
    """Those that the numbers shown of it are over: the first agent's own, and of the others those of their gains."""
    return spanned([row.pairs or row.seeds for row in table.of(scope)])


def _cell(row: Row | None, reference: bool, keyed: bool = False) -> str:
    """reference: of the agent that the others are measured against; keyed: of a table sorted by its columns."""
    shown = None if row is None else row.auc if reference else row.auc_gain
    if row is None or shown is None:
        return '<td data-key="">–</td>' if keyed else "<td>–</td>"
    seeds, form, kind, mark = (row.seeds, rate, ' class="reference"', "") if reference else (row.pairs, signed, "", "")
    if is_clear(row):
        kind, mark = (' class="ahead"', "▲ ") if shown.estimate > 0 else (' class="behind"', "▼ ")
    key = f' data-key="{shown.estimate}"' if keyed else ""
    spread = bounds(shown, form) if seeds > 1 else "one seed"
    if not reference and row.mean_gain and row.pairs > 1:
        key += f' title="plain mean {signed(row.mean_gain.estimate)} {bounds(row.mean_gain, signed)}"'
    return f"<td{kind}{key}>{mark}{form(shown.estimate)}<small>{spread}</small></td>"
