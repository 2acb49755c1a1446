"""What a table of responses comes to: avg@n, pass@k, maj@k, their intervals over prompts, and the table to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import comb

from sppo.experiments import stats
from sppo.experiments.stats import Floats, Interval

Row = dict[str, Any]
"""One response; the columns are those of `evaluate.respond`."""

RESAMPLES = 1000


def pass_at_k(successes: Floats, n: int, k: int) -> Floats:
    """The chance that at least one of k responses is right, without bias from n of which so many are.

    pass@k = 1 - C(n - c, k) / C(n, k)

    Source: Chen et al. 2021, arXiv 2107.03374.
    Args:
        successes: (P,) right responses c among the n to each prompt.
        n: responses to each prompt.
        k: 1 to n.
    Returns:
        (P,), one estimate per prompt.
    Raises:
        ValueError: k outside 1..n, or successes outside 0..n.
    """
    c = np.asarray(successes, np.float64)
    if not 1 <= k <= n:
        raise ValueError(f"k must be in 1..n = 1..{n}, got {k}")
    if ((c < 0) | (c > n)).any():
        raise ValueError(f"successes must be in 0..n = 0..{n}, got {c.min():g} to {c.max():g}")
    return 1.0 - np.prod([np.maximum(n - c - i, 0.0) / (n - i) for i in range(k)], axis=0)


def majority_at_k(answers: Sequence[str | None], rewards: Sequence[float]) -> Floats:
    """The expected reward of the most frequent answer among k of n responses, for every k.

    maj@k = mean over all k-subsets of mean over its most frequent answers of r(answer); 0 where nothing is answered

    All subsets are counted, none is drawn: for each number of votes w that may win, in how many ways answers with w
    votes and answers with fewer make up a subset. r(answer) is the mean reward of the responses that give it.

    Source: self-consistency, Wang et al. 2022, arXiv 2203.11171; over subsets as pass@k is.
    Args:
        answers: (n,) what the responses to one prompt answer; None does not vote.
        rewards: (n,).
    Returns:
        (n,) for k = 1, ..., n.
    Raises:
        ValueError: lengths that differ, or no response.
    """
    n = len(answers)
    if n == 0 or n != len(rewards):
        raise ValueError(f"answers and rewards must be as many, and at least one, got {n} and {len(rewards)}")
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    worth = {a: float(np.mean([r for b, r in zip(answers, rewards, strict=True) if a == b])) for a in votes}
    total = np.zeros(n + 1)
    for w in range(1, max(votes.values(), default=0) + 1):
        ways = np.zeros((n + 1, len(votes) + 1))  # [subset size, answers with w votes]
        ways[0, 0] = 1
        paid = np.zeros_like(ways)  # the same ways, each times the sum of what those answers are worth
        for answer, count in votes.items():
            new_ways, new_paid = np.zeros_like(ways), np.zeros_like(ways)
            for j in range(min(count, w) + 1):
                wins = int(j == w)
                rows, columns = n + 1 - j, len(votes) + 1 - wins
                before = comb(count, j) * ways[:rows, :columns]
                new_ways[j:, wins:] += before
                new_paid[j:, wins:] += comb(count, j) * paid[:rows, :columns] + wins * worth[answer] * before
            ways, paid = new_ways, new_paid
        won = (paid[:, 1:] / np.arange(1, len(votes) + 1)).sum(1)
        for j in range(silent + 1):
            total[j:] += comb(silent, j) * won[: n + 1 - j]
    return (total / comb(n, np.arange(n + 1)))[1:]


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return sorted({2**i for i in range(n.bit_length())} | {n})


def per_prompt(rows: Sequence[Row]) -> dict[str, Floats]:
    """avg@n, pass@k and maj@k of each prompt (P,), from the rows of all; a reward of 1 is a pass."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["key"], []).append(row)
    sizes = {len(group) for group in groups.values()}
    if len(sizes) != 1:
        raise ValueError(f"every prompt must have as many responses, got {sorted(sizes)}")
    (n,) = sizes
    rewards = np.array([[row["reward"] for row in group] for group in groups.values()])  # (P, n)
    votes = np.array([majority_at_k([r["answer"] for r in g], [r["reward"] for r in g]) for g in groups.values()])
    ks = powers_of_two(n)
    passes = (rewards >= 1).sum(1)
    return {
        f"avg@{n}": rewards.mean(1),
        **{f"pass@{k}": pass_at_k(passes, n, k) for k in ks},
        **{f"maj@{k}": votes[:, k - 1] for k in ks},
    }


def summarise(rows: Sequence[Row], max_completion_length: int, seed: int = 0) -> dict[str, Any]:
    """What summary.json says of one task: scores with 95 % bootstrap intervals over prompts, lengths and reasons."""
    answered = [row for row in rows if row["budget"] > 0]
    reasons = Counter(row["reason"] for row in rows)
    sources = sorted({row["data_source"] for row in rows})
    return {
        "prompts": len({row["key"] for row in rows}),
        "responses": len(rows),
        "scores": {name: _interval(values, seed) for name, values in per_prompt(rows).items()},
        "tokens": float(np.mean([row["tokens"] for row in answered])) if answered else 0.0,
        "cut": float(np.mean([not row["stopped"] for row in answered])) if answered else 0.0,
        "prompts_with_less_room": len({row["key"] for row in answered if row["budget"] < max_completion_length}),
        "reasons": {reason: count / len(rows) for reason, count in reasons.most_common()},
        "data_sources": {
            source: float(np.mean([row["reward"] for row in rows if row["data_source"] == source]))
            for source in sources
        },
    }


def _interval(values: Floats, seed: int) -> Interval:
    return stats.bootstrap_interval(values, seed, statistic=stats.mean_statistic, resamples=RESAMPLES)


def mean_of_tasks(tables: Sequence[Sequence[Row]], seed: int = 0) -> Interval:
    """avg@n averaged over tasks, each weighing the same; replicates draw prompts inside every task."""
    values = [next(iter(per_prompt(rows).values())) for rows in tables]
    rng = np.random.default_rng(seed)
    draws = np.mean([[v[rng.integers(len(v), size=len(v))].mean() for _ in range(RESAMPLES)] for v in values], axis=0)
    return Interval(float(np.mean([v.mean() for v in values])), *map(float, np.quantile(draws, [0.025, 0.975])))


def as_markdown(summaries: dict[str, dict[str, Any]], mean: Sequence[float] | None = None) -> str:
    """The table of a README, in per cent: a task per row; then pass@k and maj@k for every k."""
    names = list(next(iter(summaries.values()))["scores"])
    last = {name.split("@")[0]: name for name in names}  # avg@n, pass@n, maj@n

    def percent(interval: Sequence[float]) -> str:
        return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in interval))

    lines = _table(
        ["task", "prompts", *last.values(), "tokens", "cut"],
        [
            [
                task,
                str(s["prompts"]),
                *(percent(s["scores"][name]) for name in last.values()),
                f"{s['tokens']:.0f}",
                f"{100 * s['cut']:.1f}",
            ]
            for task, s in summaries.items()
        ]
        + ([["mean", "", percent(mean), "", "", "", ""]] if mean is not None else []),
    )
    # avg@n of 0 and 1 is pass@1, which the second table has for every task.
    each = [[task, *(f"{100 * s['scores'][name][0]:.1f}" for name in names[1:])] for task, s in summaries.items()]
    return "\n".join([*lines, "", *_table(["task", *names[1:]], each)]) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
