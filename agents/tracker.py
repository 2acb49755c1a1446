"""A table instead of a critic: the running success rate of each start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.credit import outcome_advantage


@dataclass(frozen=True, kw_only=True)
class TrackerConfig(AgentConfig):
    """Settings of Tracker.

    Args:
        forgetting: in (0, 1]; what remains of old counts when a start is seen again.
        prior_count: pseudo-episodes behind the first estimate of 1/2, half of them successes.
    """

    forgetting: float = 0.9
    prior_count: float = 2.0


class BetaTable:
    """Success and failure counts with forgetting, per start key.

    p = s / (s + f);  on outcomes R_1..R_n of a start:  s <- rho s + sum R,  f <- rho f + sum (1 - R).
    """

    def __init__(self, forgetting: float, prior_count: float) -> None:
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting must be in (0, 1], got {forgetting}")
        if not prior_count > 0:
            raise ValueError(f"prior_count must be positive, got {prior_count}")
        self.forgetting, self.prior = forgetting, prior_count / 2
        self.counts: dict[int, tuple[float, float]] = {}

    def value(self, keys: Tensor) -> Tensor:
        """(B,) the success rate of each start, before this batch."""
        pairs = (self.counts.get(int(key), (self.prior, self.prior)) for key in keys)
        return torch.tensor([s / (s + f) for s, f in pairs])

    def observe(self, keys: Tensor, outcomes: Tensor) -> None:
        """Count outcomes (B,), in [0, 1]."""
        if bool((outcomes < 0).any()) or bool((outcomes > 1).any()):
            raise ValueError(
                f"Tracker needs outcomes in [0, 1], got [{float(outcomes.min()):g}, {float(outcomes.max()):g}]; "
                "use Reinforce (the batch mean) instead"
            )
        for key in keys.unique().tolist():
            chosen = outcomes[keys == key]
            s, f = self.counts.get(key, (self.prior, self.prior))
            s, f = self.forgetting * s, self.forgetting * f
            self.counts[key] = (s + float(chosen.sum()), f + float((1 - chosen).sum()))

    def state_dict(self) -> dict[str, Any]:
        return {str(key): list(pair) for key, pair in self.counts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = {int(key): (float(s), float(f)) for key, (s, f) in state.items()}


class Tracker(Agent):
    """A_t = R - p(start), p a running success rate per start; one shared entry where starts are continuous.

    Source: Single-stream Policy Optimization, arXiv 2509.13232 (its tracker; forgetting here is a constant, there it
    depends on how far the policy moved).
    """

    Config = TrackerConfig

    def make_critic(self) -> Any:
        return BetaTable(self.config.forgetting, self.config.prior_count)

    def predicted(self, traj: Trajectories) -> Tensor:
        """(B,) the table's entries."""
        values: Tensor = self.critic.value(traj.start_key)
        return values

    def credit(self, traj: Trajectories) -> Experience:
        outcomes, values = traj.outcomes, self.predicted(traj).to(traj.rewards)
        self.critic.observe(traj.start_key, outcomes)
        return self.experience(
            traj,
            outcome_advantage(outcomes, values, traj.valid),
            values=values[:, None],
            value_targets=outcomes[:, None],
        )
