"""The regime map: what one agent gains over another over horizon and start success; and at other learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sppo.experiments.compact import ENDING
from sppo.experiments.evidence.findings_figures import draw_map, draw_rates
from sppo.experiments.evidence.gains import Cell, cells, horizon_slope, pooled_area, pooled_gain
from sppo.experiments.evidence.studies import HIGHER_SEEDS, MAPPED, SEEDS, rate_of
from sppo.experiments.packed import unpack
from sppo.experiments.plots import save_figure
from sppo.experiments.results import Run
from sppo.experiments.stats import Interval
from sppo.experiments.summary import bounds, rate, signed

MAPS = {"chain-map": "SparseChain", "cartpole-map": "Precision CartPole", "text-map": "Chains of arithmetic, in tokens"}
PAIRS = (
    ("sppo", "ppo"),
    ("sppo", "ppo-bce"),
    ("sppo", "reinforce"),
    ("ppo-bce", "ppo"),
    ("ppo-bce", "reinforce"),
    ("reinforce", "ppo"),
)


def told_maps(results: Path, images: Path) -> str:
    """Of all map studies that are there, side by side, for each two agents."""
    found = {name: unpack(results / f"{name}{ENDING}") for name in MAPS if (results / f"{name}{ENDING}").exists()}
    told = []
    for agent, other in PAIRS:
        both = {name: runs for name, runs in found.items() if {agent, other} <= {run.label for run in runs}}
        maps = {MAPS[name]: cells(runs, agent, other) for name, runs in both.items()}
        if maps:
            save_figure(draw_map(maps, agent, other), images / f"map-{agent}-{other}")
            told += [_map_table(MAPS[name], runs, maps[MAPS[name]], agent, other) for name, runs in both.items()]
    return "\n\n".join(told)


def _map_table(name: str, runs: Sequence[Run], rows: list[list[Cell]], agent: str, other: str) -> str:
    lines = [f"{name}: area under the curve, {agent} - {other}, [95% t interval over paired seeds]"]
    later = [run for run in runs if run.seed not in SEEDS]  # taken after the first had been looked at
    for told, mine in (("all settings", runs), (f"all settings, from seed {SEEDS.stop} on", later)):
        if mine:
            overall, seeds = pooled_gain(mine, agent, other)
            lines.append(f"  {told}  {signed(overall.estimate)} {bounds(overall, signed)}  n = {seeds}")
    slope, seeds = horizon_slope(runs, agent, other)
    lines.append(f"  per tenfold horizon  {signed(slope.estimate)} {bounds(slope, signed)}  n = {seeds}")
    for row in rows:
        for c in row:
            lines.append(
                f"  horizon {c.x:5g}  start success {c.success:.3f}  {signed(c.gain.estimate)} "
                f"{bounds(c.gain, signed)}  n = {c.seeds}"
            )
    return "\n".join(lines)


OF_RATES = "cartpole-rates"
"""The study of one map at other learning rates."""
AT_BEST = "each at its best"


def told_map_rates(file: Path, images: Path) -> str:
    """By learning rate, areas over the map on Precision CartPole and what agents gain over one another.

    The common rate is that of the map itself, of which the same seeds are taken; others count once they have all runs.
    """
    found: dict[float, list[Run]] = {}
    of_map = file.with_name(f"cartpole-map{ENDING}")
    for run in [*(unpack(of_map) if of_map.exists() else ()), *unpack(file)]:
        if run.seed in HIGHER_SEEDS:
            setting = replace(run, name="/".join(run.name.split("/")[-4:]))  # HORIZON/START/AGENT/seedK
            found.setdefault(rate_of(run), []).append(setting)
    most = max(map(len, found.values()))
    at = {f"{x:g}": found[x] for x in sorted(found) if len(found[x]) == most}
    areas = {agent: {x: pooled_area(runs, agent) for x, runs in at.items()} for agent in MAPPED}
    best = {agent: max(areas[agent], key=lambda x: areas[agent][x].estimate) for agent in MAPPED}
    chosen = [run for x, runs in at.items() for run in runs if x == best[run.label]]
    if len({*best.values()}) > 1:  # otherwise it is one of the rates
        at[AT_BEST] = chosen
    pooled = {pair: {told: pooled_gain(runs, *pair) for told, runs in at.items()} for pair in PAIRS}
    gains = {pair: {told: gained for told, (gained, _) in of_pair.items()} for pair, of_pair in pooled.items()}
    n = min(seeds for of_pair in pooled.values() for _, seeds in of_pair.values())
    save_figure(draw_rates(areas, {agent: gains[agent, "ppo"] for agent in MAPPED[1:]}, n), images / OF_RATES)
    at_best = {"Precision CartPole, each at its best rate": cells(chosen, "sppo", "ppo")}
    save_figure(draw_map(at_best, "sppo", "ppo"), images / f"{OF_RATES}-best")
    return _rates_table(areas, best, gains, n)


def _rates_table(
    areas: dict[str, dict[str, Interval]],
    best: dict[str, str],
    gains: dict[tuple[str, str], dict[str, Interval]],
    n: int,
) -> str:
    lines = [f"Precision CartPole, mean area over the map by learning rate, [95% t interval], n = {n}; * best"]
    lines.append(_columns("", areas["ppo"]))
    for agent, by_rate in areas.items():
        starred = [f"{rate(a.estimate)} {bounds(a)}{'*' * (x == best[agent])}" for x, a in by_rate.items()]
        lines.append(_columns(agent, starred))
    lines.append(f"area gained over the map, [95% t interval over paired seeds], n = {n}")
    lines.append(_columns("", gains["sppo", "ppo"]))
    for (agent, other), gained in gains.items():
        told = [f"{signed(g.estimate)} {bounds(g, signed)}" for g in gained.values()]
        lines.append(_columns(f"{agent} - {other}", told))
    return "\n".join(lines)


def _columns(first: str, others: Iterable[str]) -> str:
    return f"  {first:22}{''.join(f'{each:26}' for each in others)}".rstrip()
