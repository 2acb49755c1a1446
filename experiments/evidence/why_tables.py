"""Tables of docs/WHY.md, from the measurements of `sppo why` alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sppo.experiments.evidence import why
from sppo.experiments.evidence.gradients import bias, cosine, ratio, signal_to_noise, variance
from sppo.experiments.evidence.positions import POSITIONS, brier, explained
from sppo.experiments.evidence.why_series import DIALLED, OWN, PREDICTORS, Measured, Series, at_last, followed, tasks
from sppo.experiments.scopes import AGENTS
from sppo.experiments.stats import Interval
from sppo.experiments.tasks import short_name


def tables(raw: dict[str, Any]) -> str:
    """What docs/WHY.md quotes: PPO against SPPO by horizon, all methods at one horizon, critics by position."""
    by_task = [make(task) for make in (_by_horizon, _parts_by_horizon, _by_method) for task in tasks(raw)]
    return "\n\n".join([*by_task, _by_position(raw)])


def _cell(found: Interval, digits: int = 2) -> str:
    numbers = (round(x, digits) + 0.0 for x in found)  # no -0.00
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*numbers, d=digits)


def _part(found: Interval) -> str:
    """Of |g*|^2."""
    return "{:.2g} [{:.2g}, {:.2g}]".format(*found)


def _direction(found: Interval) -> str:
    """A mean gradient that cannot be told from none has no direction."""
    return _cell(found, 3) if found.high - found.low < 1 else "not known"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ppo(task: Measured) -> dict[str, Series]:
    """PPO by what its critic has seen and lambda, by name."""
    return {
        f"PPO, {critic}" + f", λ = {lam:g}" * (lam != 1): Series("ppo", critic, lam)
        for lam in (1.0, why.LAMBDA)
        for critic in (why.FITS[1], why.FITS[-1], "exact")
        if task.batches(task.horizons[0], Series("ppo", critic))
    }


def _by_horizon(task: Measured) -> str:
    """The signal-to-noise ratio of PPO over that of SPPO whose critic has seen as much."""
    columns = _ppo(task)
    head = [
        short_name(task.env_id),
        "start success",
        f"SPPO, {why.FITS[-1]}: SNR",
        *(f"{name}, x SPPO" for name in columns),
    ]
    rows = [
        [
            f"H = {h}",
            f"{task.mean(h, 'success'):.3f}",
            _cell(signal_to_noise(task.batches(h, at_last(OWN)))),
            *(_cell(ratio(task.batches(h, x), task.batches(h, Series(OWN, x.critic)))) for x in columns.values()),
        ]
        for h in task.horizons
    ]
    return _markdown(head, rows)


def _parts_by_horizon(task: Measured) -> str:
    """The two parts of a gradient's error."""
    columns = {f"SPPO, {why.FITS[-1]}": at_last(OWN), **_ppo(task)}
    rows = [
        [f"{name}, H = {h}", *(_part(figure(task.batches(h, series))) for series in columns.values())]
        for name, figure in (("variance", variance), ("bias", bias))
        for h in task.horizons
    ]
    return _markdown([short_name(task.env_id), *columns], rows)


def _by_method(task: Measured) -> str:
    """The figure's methods, and others, at the horizon at which all were measured."""
    horizon = why.ONE_HORIZON[task.env_id]
    exact = [Series(agent, "exact", gae_lambda) for agent, gae_lambda in (*DIALLED, ("ppo", 0.0))]
    blind = Series("ppo", "constant", why.LAMBDA)
    chosen = [*map(at_last, AGENTS), at_last("ppo", why.LAMBDA), blind, *exact, *map(Series, why.OTHERS)]
    own = task.batches(horizon, at_last(OWN))
    rows = []
    for each in chosen:
        batches = task.batches(horizon, each)
        if not batches:
            continue
        rows.append(
            [
                each.name,
                "" if each.critic is None else str(each.critic),
                f"{task.steps(horizon, each):.0f}",
                _cell(signal_to_noise(batches)),
                _cell(ratio(batches, own)),
                _direction(cosine(batches)),
                _part(variance(batches)),
                _part(bias(batches)),
            ]
        )
    head = ["", "critic", "steps", "SNR", f"x SPPO, {why.FITS[-1]}", "cosine", "variance", "bias"]
    return _markdown([f"{short_name(task.env_id)}, H = {horizon}", *head[1:]], rows)


def _by_position(raw: dict[str, Any]) -> str:
    """Explained variance at the start, half way, near the end and at the last step; Brier scores at both ends."""
    shown = (0, 5, 9, 10)
    rows = []
    for env_id, agents in followed(raw):
        for agent in PREDICTORS:
            values, outcomes = agents[agent]["values"], agents[agent]["outcomes"]
            found, scores = explained(values, outcomes), brier(values, outcomes)
            cells = [_cell(found[i]) if i < len(found) else "the same" for i in shown]
            rows.append([short_name(env_id), agent, *cells, *(f"{scores[i].estimate:.3f}" for i in (0, -1))])
    head = ["explained variance of R", "critic", *(f"t/T = {POSITIONS[i]:g}" for i in shown)]
    return _markdown([*head, "Brier, start", "Brier, end"], rows)
