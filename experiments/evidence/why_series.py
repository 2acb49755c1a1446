"""What `sppo why` measured, read by series: an agent, what its critic had seen, a horizon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sppo.experiments.evidence import why
from sppo.experiments.evidence.gradients import Moments

PREDICTORS = ("ppo", "ppo-bce", "sppo")


class Series(NamedTuple):
    """Which gradients: an agent, what its critic has seen, and PPO's lambda where it is not 1."""

    agent: str
    critic: Any = None
    gae_lambda: float = 1.0

    @property
    def name(self) -> str:
        return self.agent if self.gae_lambda == 1 else f"{self.agent}, λ = {self.gae_lambda:g}"


def at_last(agent: str, gae_lambda: float = 1.0) -> Series:
    """Of an agent whose critic, if it has one, has seen all it is shown."""
    return Series(agent, why.FITS[-1] if agent in (*PREDICTORS, "tracker") else None, gae_lambda)


OWN = "sppo"
"""Whom the others are measured against."""
DIALLED = (("ppo", 1.0), ("ppo", why.LAMBDA), ("sppo", 1.0))
"""Agents, and PPO's lambda, whose critic's quality is varied."""


class Measured:
    """The gradients on one task, by horizon."""

    def __init__(self, raw: dict[str, Any], env_id: str) -> None:
        found = [piece for name, piece in raw.items() if name.startswith(f"gradients/{env_id}/")]
        self.env_id = env_id
        self.horizons = sorted({piece["env_kwargs"]["horizon"] for piece in found})
        self.pieces = {h: [p for p in found if p["env_kwargs"]["horizon"] == h] for h in self.horizons}

    def batches(self, horizon: int, series: Series) -> list[Moments]:
        """One Moments per policy, none where this was not measured."""
        return [Moments(*(np.array(s[name]) for name in Moments._fields)) for s in self._all(horizon, series)]

    def steps(self, horizon: int, series: Series) -> float:
        """Environment steps behind a gradient."""
        return float(np.mean([s["steps"] for s in self._all(horizon, series)]))

    def mean(self, horizon: int, name: str) -> float:
        """Of what was measured once per policy."""
        return float(np.mean([piece[name] for piece in self.pieces[horizon]]))

    def _all(self, horizon: int, series: Series) -> list[dict[str, Any]]:
        def wanted(s: dict[str, Any]) -> bool:
            return Series(s["agent"], s["critic"], s["settings"].get("gae_lambda", 1.0)) == series

        return [s for piece in self.pieces[horizon] for s in piece["series"] if wanted(s)]


def tasks(raw: dict[str, Any]) -> list[Measured]:
    """Those whose gradients were measured."""
    return [Measured(raw, env_id) for env_id in why.ONE_HORIZON]


def followed(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Tasks whose episodes were followed: arrays by agent."""
    for name, rows in raw.items():
        if name.startswith("along/"):
            fields = ("outcomes", "lengths", "advantages", "values")
            yield (
                name.removeprefix("along/"),
                {row["agent"]: {f: np.array(row[f]) for f in fields if f in row} for row in rows},
            )
