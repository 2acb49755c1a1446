"""`sppo calibrate`: does a critic, or a table, know beforehand which starts its policy will solve?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import ArrayLike, NDArray

from sppo.experiments.results import SPLITS
from sppo.experiments.stats import Floats, Interval

# SciPy, torch and matplotlib are imported when they are called for: the command line loads this file.

BINS = 10
RESAMPLES = 1000


def metrics(values: Floats, outcomes: Floats) -> dict[str, float]:
    """How well predictions made at the start agree with what came of them; nan where a figure is not defined.

    With q_p = mean_i R_pi, the success rate of start p:
        pearson   corr(V_p, q_p)
        spearman  corr(rank V_p, rank q_p)
        brier     mean_pi (V_p - R_pi)^2
        auc       P(V of a success > V of a failure) over all pairs of episodes, ties counting half
        ece       sum_b P_b / P |mean_b V - mean_b q| over the bins of `bin_of`
        ceiling   sqrt(1 - mean_p s_p^2 / Var q), s_p^2 = q_p (1 - q_p) / (n - 1): about the pearson of a critic that
                  knows every true success rate, against rates counted from n episodes; one says nothing of its noise

    Source: Guo et al. 2017, arXiv 1706.04599, for ece; the others are definitions.
    Args:
        values: (P,) predicted success rates V.
        outcomes: (P, n) outcomes R of n episodes from each start, in [0, 1].
    Raises:
        ValueError: for other shapes, values that are not finite, outcomes outside [0, 1].
    """
    from scipy.stats import rankdata

    v, r = _checked(values, outcomes)
    n, q = r.shape[1], r.mean(1)
    return {
        "pearson": _correlation(v, q),
        "spearman": _correlation(rankdata(v), rankdata(q)),
        "brier": float(((v[:, None] - r) ** 2).mean()),
        "auc": _auc(v, q),
        "ece": float(sum(len(b) * abs(v[b].mean() - q[b].mean()) for b in bins(v)) / len(v)),
        "ceiling": _ceiling(q, n),
    }


def bins(values: Floats) -> list[NDArray[np.int64]]:
    """Which predictions fall into each tenth of [0, 1], empty ones left out; those beyond count with the outermost."""
    which = np.clip((values * BINS).astype(int), 0, BINS - 1)
    return [np.flatnonzero(which == b) for b in np.unique(which)]


def calibration(values: Floats, outcomes: Floats, seed: int = 0) -> dict[str, Interval]:
    """`metrics` with their 95 % percentile-bootstrap intervals over starts."""
    v, r = _checked(values, outcomes)
    return _over_starts(lambda rows: metrics(v[rows], r[rows]), len(v), seed)


def paired_difference(a: tuple[Floats, Floats], b: tuple[Floats, Floats], seed: int = 0) -> dict[str, Interval]:
    """`metrics` of a minus those of b, each (values, outcomes) on the same starts in the same order.

    A replicate draws the same starts for both, so that what makes a start hard for both cancels.
    """
    (v, r), (w, s) = _checked(*a), _checked(*b)
    if len(v) != len(w):
        raise ValueError(f"both must be on the same starts, got {len(v)} and {len(w)}")

    def difference(rows: NDArray[np.int64]) -> dict[str, float]:
        first, second = metrics(v[rows], r[rows]), metrics(w[rows], s[rows])
        return {name: first[name] - second[name] for name in first}

    return _over_starts(difference, len(v), seed)


def _over_starts(statistics: Callable[[NDArray[np.int64]], dict[str, float]], n: int, seed: int) -> dict[str, Interval]:
    rng = np.random.default_rng(seed)
    estimates = statistics(np.arange(n))
    draws = [statistics(rng.integers(n, size=n)) for _ in range(RESAMPLES)]
    found = {}
    for name, estimate in estimates.items():
        # A replicate of equal starts alone has no correlation.
        defined = [draw[name] for draw in draws if np.isfinite(draw[name])]
        low, high = np.quantile(defined, [0.025, 0.975]) if np.isfinite(estimate) and defined else (np.nan, np.nan)
        found[name] = Interval(estimate, float(low), float(high))
    return found


def _checked(values: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    v, r = np.asarray(values, np.float64), np.asarray(outcomes, np.float64)
    if v.ndim != 1 or r.ndim != 2 or len(v) != len(r) or not r.size:
        raise ValueError(f"values must be (P,) and outcomes (P, n), got {v.shape} and {r.shape}")
    if not np.isfinite(v).all():
        raise ValueError(f"values must be finite, got {v[~np.isfinite(v)][0]}")
    if not ((r >= 0) & (r <= 1)).all():
        raise ValueError(f"outcomes must be in [0, 1], got {r.min():g} to {r.max():g}")
    return v, r


def _correlation(x: Floats, y: Floats) -> float:
    a, b = x - x.mean(), y - y.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 1e-12 else np.nan


def _ceiling(rates: Floats, n: int) -> float:
    if n == 1 or rates.var() == 0:
        return np.nan
    noise = (rates * (1 - rates)).mean() / (n - 1)
    return float(np.sqrt(max(0.0, 1 - noise / rates.var())))


def _auc(values: Floats, rates: Floats) -> float:
    _, level = np.unique(values, return_inverse=True)
    won, lost = np.bincount(level, rates), np.bincount(level, 1 - rates)  # by value, ascending
    pairs = won.sum() * lost.sum()
    return float((won * (lost.cumsum() - lost / 2)).sum() / pairs) if pairs > 0 else np.nan


def measure(agent: Any, sampler: Any, starts: Any, n: int, progress_bar: bool = False) -> tuple[Floats, Floats]:
    """What the agent predicts at each start, (P,), and the outcomes of n episodes from it, (P, n).

    Args:
        agent: with a critic of starts (SPPO) or of steps (PPO), whose V(s_0) is then taken, or a table (Tracker).
        sampler: rolls out the agent's policy; `domains.held_out` and `domains.trained_on` make one.
        starts: (P,) as the sampler takes them.
        n: episodes from each start.
    Raises:
        ValueError: if the agent has neither.
    """
    from tqdm import tqdm

    outcomes: list[Floats] = []
    for _ in tqdm(range(n), desc="episodes from each start", disable=None if progress_bar else True):
        traj = sampler.rollout(starts)
        if not outcomes:
            values = agent.predicted(traj).cpu().numpy().astype(np.float64)
        outcomes.append(traj.outcomes.cpu().numpy())
    return values, np.stack(outcomes, 1).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Compare what a run's critic or table predicts at starts with the success rate of its policy there."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder; its newest checkpoint counts."""
    prompts: int = 200
    """Prompts, or start states."""
    samples: int = 32
    """Episodes from each."""
    split: Literal["test", "train"] = "test"
    """Held-out starts, or on text the prompts that the run was trained on: a tracker's table knows no others."""
    against: Path | None = None
    """Another run that was calibrated on the same starts: differences to it, paired by start, are printed too."""
    out: Path | None = None
    """The folder of calibration.json, .png and .svg, of training prompts calibration-train; by default the run's."""

    def __call__(self) -> None:
        from sppo.experiments.config import read_config
        from sppo.experiments.domains import domain
        from sppo.experiments.plots import plot_reliability
        from sppo.experiments.run import load_run

        if self.prompts < 2 or self.samples < 1:
            raise ValueError(f"prompts must be at least 2 and samples 1, got {self.prompts} and {self.samples}")
        kind, stem = SPLITS[self.split].starts, SPLITS[self.split].stem
        other = None if self.against is None else _read(self.against / f"{stem}.json")
        config = replace(read_config(self.run), n_eval_episodes=self.prompts)
        agent, its = load_run(self.run), domain(config)
        sampler, starts = (its.held_out if self.split == "test" else its.trained_on)(agent, config)
        starts = starts[np.sort(np.unique(starts, return_index=True)[1])]  # repeated where there are too few
        if len(starts) < self.prompts:
            print(f"{config.env_id} has {len(starts)} {kind}, fewer than {self.prompts}: all are taken")
        posed = {"env_id": config.env_id, "env_kwargs": config.env_kwargs, "eval_task": config.text.get("eval_task")}
        for name, here in {**posed, "starts": starts.tolist()}.items():
            if other is not None and other.get(name) != here:
                raise ValueError(f"{self.against} was calibrated on another task: its {name} differ")
        values, outcomes = measure(agent, sampler, starts, self.samples, progress_bar=True)
        if np.ptp(values) == 0:
            print(f"{config.agent} predicts {values[0]:.3f} at all {len(starts)} {kind}: nothing correlates with that")
        figures = calibration(values, outcomes)
        out = self.out or self.run
        out.mkdir(parents=True, exist_ok=True)
        content = {
            **posed,
            "split": self.split,
            "agent": config.agent,
            "n_updates": agent.n_updates,
            "samples": self.samples,
        }
        arrays = {"starts": starts.tolist(), "values": values.tolist(), "outcomes": outcomes.tolist()}
        content["metrics"] = {name: [None if np.isnan(x) else x for x in figure] for name, figure in figures.items()}
        (out / f"{stem}.json").write_text(json.dumps({**content, **arrays}) + "\n")
        print(_table(figures))
        if other is not None:
            there = np.array(other["values"]), np.array(other["outcomes"])
            print(f"less {self.against}:\n{_table(paired_difference((values, outcomes), there))}")
        for path in plot_reliability(values, outcomes, out / stem, kind):
            print(path)


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise ValueError(f"{file.parent} has no {file.name}: calibrate it first")
    return dict(json.loads(file.read_text()))


def _table(figures: dict[str, Interval]) -> str:
    return "\n".join(f"{name:9s} {x:6.3f}  [{low:.3f}, {high:.3f}]" for name, (x, low, high) in figures.items())
