"""The first screen of a report in words: who is ahead, where, by how much, how surely."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sppo.experiments.markup import listed
from sppo.experiments.rows import Row
from sppo.experiments.stats import Interval
from sppo.experiments.summary import Table, bounds, leaves_out_zero, rate, signed

FEW = 4
"""Agents of whom a sentence also says by how much."""


def is_clear(row: Row) -> bool:
    """Whether the interval of the area gained leaves out zero, and Student's too, since a bootstrap's of few seeds is
    too narrow; one seed has no interval."""
    gains = (row.auc_gain, row.mean_gain)
    return row.pairs > 1 and all(gain is not None and leaves_out_zero(gain) for gain in gains)


def _gained(row: Row) -> str:
    assert row.auc_gain
    return f"{signed(row.auc_gain.estimate)} {bounds(row.auc_gain, signed)}"


def _named(row: Row) -> str:
    return f"{row.agent} ({_gained(row)})"


def _where(table: Table, scope: str) -> str:
    if scope not in table.pools:
        return f"{'At' if table.of_settings else 'On'} {table.name(scope)}"
    count = len(table.pools[scope])
    return f"Over all {count} {scope.removeprefix('all ')}"


def standing(table: Table, scope: str) -> str:
    """One sentence: who learns faster or slower than the first agent on a task, or over all, and who does neither."""
    first, others = table.against(scope)
    where = _where(table, scope)
    if first is None:
        there = "seed in all of them" if scope in table.pools else "run there"
        return f"{where} no agents are compared, for {table.agents[0]} has no {there}."
    if not others:
        return (
            f"{where} {first.agent} ends at {rate(first.final.estimate)} success and "
            f"averages {rate(first.auc.estimate)} over training."
        )
    told = [row for row in others if row.pairs > 1]
    if not told:
        return f"{where} {_too_few(others)} cannot tell agents apart."
    clear = sorted((row for row in told if is_clear(row)), key=_estimate, reverse=True)
    parts = []
    for rows, how in (
        ([row for row in clear if _estimate(row) > 0], "faster"),
        ([row for row in clear if _estimate(row) < 0], "slower"),
    ):
        if rows:
            verb = "learns" if len(rows) == 1 else "learn"
            parts.append(f"{listed([_named(row) for row in rows])} {verb} {how} than {first.agent}")
    rest = [row for row in told if row not in clear]
    if len(rest) == len(others) > 1:
        parts.append(f"no agent clearly differs from {first.agent}")
    elif rest:
        names = listed([_named(row) if len(others) == 1 else row.agent for row in rest])
        parts.append(f"{names} {'does' if len(rest) == 1 else 'do'} not clearly differ from {first.agent}")
    if lag := [row for row in others if row not in told]:
        parts.append(f"of {listed([row.agent for row in lag])} {_too_few(lag)} cannot tell")
    return f"{where} {'; '.join(parts)}."


def _too_few(rows: Sequence[Row]) -> str:
    return "one seed" if any(row.pairs for row in rows) else "seeds that are not shared"


def _estimate(row: Row) -> float:
    assert row.auc_gain
    return row.auc_gain.estimate


def _task_by_task(table: Table) -> str:
    """Where agents learn clearly faster or slower: how many, and the one that does so most."""
    told, first = [], table.agents[0]
    compared = {scope: [row for row in table.of(scope) if row.pairs > 1] for scope in table.scopes}
    for scope, others in compared.items():
        parts = []
        for sign, how in ((1, "faster"), (-1, "slower")):
            rows = sorted(
                (row for row in others if is_clear(row) and sign * _estimate(row) > 0),
                key=lambda row: abs(_estimate(row)),
            )
            if len(rows) > 1:
                parts.append(f"{len(rows)} of {len(others)} {how} than {first}, most {_named(rows[-1])}")
            elif rows:
                parts.append(f"{_named(rows[0])} {how} than {first}")
        told += [f"on {table.name(scope)} {' and '.join(parts)}"] * bool(parts)
    count = sum(map(bool, compared.values()))
    if not count:
        return f"On no single task do {first} and another agent have two seeds."
    if not told:
        return "On no single task is a difference clear."
    rest, without = count - len(told), len(compared) - count
    left = f"; no clear difference on {'another' if without else 'the other'}{f' {rest}' * (rest > 1)}"
    return f"Task by task: {'; '.join(told)}{left * bool(rest)}{f'; nothing to compare on {without}' * bool(without)}."


def _setting_by_setting(table: Table) -> str:
    """Of every agent at how many settings it learns clearly faster or slower, and where it does so most."""
    told = []
    for agent in table.agents[1:]:
        rows = [row for scope in table.scopes for row in table.of(scope) if row.agent == agent and row.pairs > 1]
        clear = [row for row in rows if is_clear(row)]
        parts = []
        for sign, how in ((1, "faster"), (-1, "slower")):
            mine = [row for row in clear if sign * _estimate(row) > 0]
            if mine:
                most = max(mine, key=lambda row: abs(_estimate(row)))
                how_much = f" ({_gained(most)})" * (len(table.agents) <= FEW)
                parts.append(
                    f"{how} at {len(mine)} of {len(rows)}, {'most ' * (len(mine) > 1)}at {most.scope}{how_much}"
                )
        if rows:
            told.append(f"{agent} {' and '.join(parts)}" if parts else f"{agent} at none of {len(rows)}")
    if not told:
        return f"At no single setting do {table.agents[0]} and another agent share two seeds."
    return f"Clearly apart from {table.agents[0]} at single settings: {'; '.join(told)}."


def answer(table: Table) -> list[str]:
    """What was found, in a few sentences; the last says what the numbers are and how far to trust them."""
    several = len(table.scopes) > 1
    found = [standing(table, scope) for scope in (table.pools if several else table.scopes)]
    if several and len(table.agents) > 1:
        found.append((_setting_by_setting if table.of_settings else _task_by_task)(table))
    if not found:
        found = [standing(table, scope) for scope in table.scopes]
    counts = [row.pairs for row in table.rows if row.pairs > 1]
    if not counts:
        return found
    chance = len(counts) * (1 - table.level)
    clear = " A difference is clear where zero is outside of that interval and of Student's of the plain mean."
    return [
        *found,
        f"Numbers: gain in success rate averaged over training (AUC), its {100 * table.level:g}% interval over "
        f"n = {spanned(counts)} seeds."
        + clear * (not table.of_settings)
        + f" By chance about {chance:.0f} of {len(counts)} intervals would leave out zero." * (chance >= 1)
        + " Settings share their seeds, and so a seed's luck." * table.of_settings,
    ]


def spanned(counts: Sequence[int]) -> str:
    """5, or 3 to 5."""
    return " to ".join(str(count) for count in dict.fromkeys((min(counts), max(counts))))


def _odds(improvement: Interval, agent: str, first: str, run: str) -> str:
    # With few seeds a clean sweep has the interval [1, 1], which in words would claim certainty.
    if improvement.estimate == 1:
        return f"Every {run} of {agent} beat every {run} of {first}."
    if improvement.estimate == 0:
        return f"Every {run} of {first} beat every {run} of {agent}."
    return (
        f"A {run} of {agent} beats a {run} of {first} with probability {improvement.estimate:.2f} "
        f"({improvement.low:.2f} to {improvement.high:.2f})."
    )


def grounds(row: Row, first: Row, level: float, run: str = "run") -> str:
    """What two agents reached in a scope: areas, how often one run beats another, final success."""
    assert row.auc_gain and row.final_gain and row.improvement
    final = row.final_gain
    seeds = f"{row.pairs} shared" if row.paired else spanned([row.seeds, first.seeds])
    apart = f"difference {signed(final.estimate)} ({signed(final.low)} to {signed(final.high)})"
    return (
        f"Area under the learning curve: {row.agent} {rate(row.auc.estimate)}, "
        f"{first.agent} {rate(first.auc.estimate)}, difference {signed(row.auc_gain.estimate)} "
        f"({100 * level:g}% interval {signed(row.auc_gain.low)} to {signed(row.auc_gain.high)}). "
        f"{_odds(row.improvement, row.agent, first.agent, run)} "
        f"Final success: {row.agent} {rate(row.final.estimate)}, {first.agent} {rate(first.final.estimate)}, "
        f"{apart if leaves_out_zero(final) else 'no clear difference'}; n = {seeds} seeds."
    )


def agent_by_agent(table: Table) -> str:
    """The grounds of every pair and scope: at hand where there are few, else one click away."""
    scopes = [*table.pools, *table.scopes]
    parts = []
    for scope in scopes:
        first, others = table.against(scope)
        run = "seed" if table.of_settings and scope in table.pools else "run"
        told = "".join(
            f"<p>{escape(grounds(row, first, table.level, run))}</p>" for row in others if first and row.pairs > 1
        )
        parts.append(f"<h3>{escape(table.name(scope))}</h3>{told}" if told and len(scopes) > 1 else told)
    opened = " open" if len(table.agents) * len(scopes) <= 2 else ""
    return (
        f"<details{opened}><summary>In words, agent by agent</summary>{''.join(parts)}</details>" if any(parts) else ""
    )
