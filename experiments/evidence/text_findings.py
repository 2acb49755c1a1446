"""What the studies on text found: the tables of success and of its cost, in tokens and in the processor's time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sppo.experiments import curves
from sppo.experiments.evidence.gains import told_gains
from sppo.experiments.results import Run, area, units
from sppo.experiments.scopes import AGENTS
from sppo.experiments.stats import Floats, Interval, Rows, bootstrap_rows
from sppo.experiments.summary import Table, format_table, rate, short, summarize
from sppo.experiments.tasks import TEXT, short_name

THRESHOLD = 0.5
THRESHOLDS = {TEXT + "reasoning_gym:basic_arithmetic": 0.2, TEXT + "reasoning_gym:spell_backward": 0.7}
"""Of tasks that few runs learn to one half, or all at once."""


COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "env_steps": ("Tokens", short),
    "cpu_seconds": ("Processor seconds", lambda seconds: f"{seconds:.0f} s" if np.isfinite(seconds) else "never"),
}
"""What they are called, and how they are told. Tokens are the same wherever they are counted; seconds are not, and not
where other work had the processor's cache or its other thread."""


def in_order(runs: Sequence[Run]) -> list[str]:
    """The agents that have finished runs, as the studies list them."""
    found = {run.label for run in runs}
    return [agent for agent in AGENTS if agent in found]


def told_by_task(runs: Sequence[Run]) -> str:
    """Success and its cost on each task, over seeds, and what is gained on each."""
    told = []
    for env_id in sorted({run.env_id for run in runs}):
        mine = [run for run in runs if run.env_id == env_id]
        table = summarize(mine, in_order(mine), threshold=THRESHOLDS.get(env_id, THRESHOLD))
        told += [format_table(table), *(_cost_table(table, env_id, cost) for cost in COSTS)]
    told.append(told_gains(summarize(runs, in_order(runs))))
    return "\n\n".join(told)


def told_of_single_runs(runs: Sequence[Run]) -> str:
    """Of one run of each agent what it came to, and what it cost."""
    env_id = runs[0].env_id
    episodes, steps = units(env_id)
    budget = max(float(run.evals["episodes"][-1]) for run in runs)
    lines = [
        f"{env_id}, {short(budget)} {episodes}, one run each (n = 1, so without intervals)",
        f"  {'agent':10}  success at start  {'final success':13}  {'area':5}  {steps:6}  processor seconds",
    ]
    for agent in in_order(runs):
        (run,) = (run for run in runs if run.label == agent)
        success = run.evals["success_rate"][0], run.success_rate
        lines.append(
            f"  {agent:10}  {rate(success[0]):16}  {rate(success[1]):13}  {rate(area(run))}  "
            f"{short(run.evals['env_steps'][-1]):6}  {run.evals['cpu_seconds'][-1]:.0f}"
        )
    return "\n".join(lines)


def cost_to(run: Run, threshold: float, cost: str) -> float:
    """Of sampling and learning, until an evaluation reaches the threshold; inf where none does."""
    return curves.first_crossing(run.evals[cost], run.evals["success_rate"], threshold)


def ratio_of_medians(x: Floats, y: Floats) -> Interval:
    """How many times as much X takes as Y, with a 95 % bootstrap interval over seeds, (S,) of both in the same order.

    rho = med(x) / med(y); seed s of x and of y are drawn together

    Costs may be infinite, where a threshold was never reached. Where both medians are, or both are zero, nothing is
    known of their ratio: the estimate is NaN, and a replicate counts as 0 to the lower end and as infinite to the
    upper.
    """

    def ratio(rows: Rows) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.median(x[rows], -1) / np.median(y[rows], -1))

    found = bootstrap_rows(x.shape, ratio, 0)
    return found._replace(low=max(found.low, 0.0))


def _cost_table(table: Table, env_id: str, cost: str) -> str:
    first = "sppo" if "sppo" in table.agents else table.agents[0]
    what, form = COSTS[cost]
    lines = [
        f"{what} to {table.threshold:.0%} of held-out prompts: median of the seeds, and over {first}'s "
        "[95% bootstrap interval over paired seeds]"
    ]
    costs = {
        agent: {run.seed: cost_to(run, table.threshold, cost) for run in table.runs_of(env_id, agent)}
        for agent in table.agents
    }
    for agent, mine in costs.items():
        told = form(float(np.median([*mine.values()])))
        siblings = table.runs_of(env_id, agent)[0].config["settings"].get("num_generations", 1)
        line = f"  {short_name(env_id)}  {agent:10}  N = {siblings}  {told:>7}"
        shared = sorted(mine.keys() & costs[first].keys())
        if agent != first and len(shared) > 1:
            ratio = told_ratio(*(np.array([of[seed] for seed in shared]) for of in (mine, costs[first])))
            line += f"  {ratio}  n = {len(shared)}"
        lines.append(line)
    return "\n".join(lines)


def told_ratio(x: Floats, y: Floats) -> str:
    """An agent's costs over SPPO's; in words where the medians have no ratio, or an end of it has no bound."""
    mine, own = np.median(x), np.median(y)
    if np.isinf(mine) and np.isinf(own):
        return "not known: neither gets there"
    if own == 0 and np.isfinite(mine):
        return f"not known: {'both are' if mine == 0 else 'sppo is'} there at the start"
    beyond = "never" if np.isinf(x).any() else "no bound"  # where draws of SPPO's seeds are there at the start
    estimate, low, high = (beyond if np.isinf(end) else f"{end:.2f}" for end in ratio_of_medians(x, y))
    return f"x {estimate} [{low}, {high}]"
