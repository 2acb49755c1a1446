"""A row of a comparison: what one agent's seeds sum up to, alone and against another agent's."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np

from sppo.experiments import stats
from sppo.experiments.stats import Floats, Interval

Seeds = dict[Hashable, Floats]
"""Of one agent, by seed: final success and area on K tasks, (2, K)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One agent in one scope, over its seeds. `episodes_to` and `env_steps_to` are inf where never."""

    scope: str
    agent: str
    seeds: int
    final: Interval
    auc: Interval
    # None over several tasks or settings: a threshold's episodes do not add up
    reached: int | None = None
    episodes_to: Interval | None = None
    env_steps_to: Interval | None = None
    seconds: float | None = None
    # against the comparison's first agent; None for that agent itself, and where it has nothing to compare with
    pairs: int = 0
    """The seeds that gains are over: those that both agents have; where they are not paired the fewer."""
    auc_gain: Interval | None = None
    mean_gain: Interval | None = None
    """The same of plain means, with Student's interval, which holds its level for few seeds too."""
    final_gain: Interval | None = None
    improvement: Interval | None = None
    paired: bool = False


@dataclass(frozen=True, kw_only=True)
class Robust:
    """Interquartile means with bootstrap intervals, paired where two agents ran with the same seeds."""

    seed: int
    level: float

    def row(self, scope: str, agent: str, seeds: Seeds, first: Seeds | None) -> Row:
        """Final success and area, alone and against the first agent."""
        scores = np.stack([*seeds.values()])  # (S, 2, K)
        row = Row(
            scope=scope,
            agent=agent,
            seeds=len(scores),
            final=self._interval(scores[:, 0]),
            auc=self._interval(scores[:, 1]),
        )
        matched = self._matched(seeds, first or {})
        if matched is None:
            return row
        mine, others, paired = matched
        return replace(
            row,
            pairs=min(len(mine), len(others)),
            final_gain=self._gain(mine[:, 0], others[:, 0], paired),
            auc_gain=self._gain(mine[:, 1], others[:, 1], paired),
            mean_gain=self._mean_gain(mine[:, 1].mean(1), others[:, 1].mean(1), paired),
            improvement=stats.probability_of_improvement(mine[:, 1], others[:, 1], self.seed, level=self.level),
            paired=paired,
        )

    def _interval(self, scores: Floats) -> Interval:
        return stats.bootstrap_interval(scores, self.seed, level=self.level)

    def _matched(self, mine: Seeds, others: Seeds) -> tuple[Floats, Floats, bool] | None:
        """Scores of both, and whether their rows are of the same seeds; None where there is nothing to compare."""
        if not others:
            return None
        return np.stack([*mine.values()]), np.stack([*others.values()]), [*mine] == [*others]

    def _gain(self, mine: Floats, others: Floats, paired: bool) -> Interval:
        gap = stats.paired_difference if paired else stats.difference
        return gap(mine, others, self.seed, level=self.level)

    def _mean_gain(self, mine: Floats, others: Floats, paired: bool) -> Interval:
        if paired:
            return stats.mean_interval(mine - others, level=self.level)
        return stats.mean_difference(mine, others, level=self.level)


class Plain(Robust):
    """Means with Student's intervals, over the seeds that two agents share: a study has many settings of few seeds, and
    a seed's mean over settings is to be what its settings add up to."""

    def _interval(self, scores: Floats) -> Interval:
        mean, low, high = stats.mean_interval(scores.mean(1), level=self.level)
        return Interval(mean, max(low, 0.0), min(high, 1.0))  # as far as a success rate goes

    def _matched(self, mine: Seeds, others: Seeds) -> tuple[Floats, Floats, bool] | None:
        shared = [seed for seed in mine if seed in others]
        if not shared:
            return None
        return np.stack([mine[seed] for seed in shared]), np.stack([others[seed] for seed in shared]), True

    def _gain(self, mine: Floats, others: Floats, paired: bool) -> Interval:
        return self._mean_gain(mine.mean(1), others.mean(1), paired)
