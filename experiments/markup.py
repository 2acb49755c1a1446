"""Pieces of a page: sortable tables, their cells, an interval as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from sppo.experiments.plots import colour_of
from sppo.experiments.stats import Interval
from sppo.experiments.summary import Table, bounds, rate


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])


def made_by(command: str) -> str:
    """What stands beside a figure or table."""
    return f' <span class="made">Made by <code>{escape(command)}</code></span>'


def sortable(heads: Sequence[str], body: Sequence[str], caption: str) -> str:
    """A table that a click on a column head sorts; heads are text, rows and caption are markup."""
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return (
        f'<div class="wide"><table class="sortable"><caption>{caption}</caption><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def dot(table: Table, agent: str) -> str:
    """An agent's name with its colour in the figures."""
    colour = colour_of(table.agents, agent)
    return f'<span class="dot" style="background:{colour}"></span>{escape(agent)}'


def agent_cell(table: Table, agent: str) -> str:
    return f'<td data-key="{escape(agent)}">{dot(table, agent)}</td>'


def interval_cell(
    interval: Interval | None,
    seeds: int,
    form: Callable[[float], str] = rate,
    picture: bool = False,
    beside: str = "",
) -> str:
    """An estimate and below it its interval, which one seed does not have."""
    if interval is None:
        return '<td data-key="">–</td>'
    key = "1e999" if math.isinf(interval.estimate) else repr(interval.estimate)
    spread = f"<small>{bounds(interval, form) if seeds > 1 else 'one seed: no interval'}</small>"
    drawn = _picture(interval) if picture else ""
    return f'<td data-key="{key}">{form(interval.estimate)}{beside}{drawn}{spread}</td>'


def _picture(interval: Interval) -> str:
    """On the scale from 0 to 1."""
    low, mid, high = (100 * min(max(value, 0.0), 1.0) for value in (interval.low, interval.estimate, interval.high))
    return (
        '<svg class="range" viewBox="-3 0 106 10" aria-hidden="true">'
        '<line x1="0" x2="100" y1="5" y2="5" stroke="currentColor" stroke-opacity=".2"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="5" y2="5" stroke="currentColor" stroke-width="3" opacity=".55"/>'
        f'<circle cx="{mid:.1f}" cy="5" r="3" fill="currentColor"/></svg>'
    )
