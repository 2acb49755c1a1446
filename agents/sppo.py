"""Sequence-level PPO: the whole episode is one action of a contextual bandit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.credit import outcome_advantage
from sppo.agents.losses import ValueLossName


@dataclass(frozen=True, kw_only=True)
class SPPOConfig(AgentConfig):
    """Settings of SPPO.

    Args:
        value_loss: "bce" (binary cross-entropy) for outcomes in [0, 1], or "squared_error" for any.
    """

    value_loss: ValueLossName = "bce"


class SPPO(Agent):
    """A_t = R - V(s_0) for every step, V a critic that sees the start state alone.

    V = sigmoid(v(s_0)) is fitted to R with binary cross-entropy; one sample per start.

    Source: Sequence-Level PPO, arXiv 2604.08865.
    """

    Config = SPPOConfig
    critic_sees = "start"

    def make_critic(self) -> Any:
        return self.new_critic(self.config.value_loss)

    def credit(self, traj: Trajectories) -> Experience:
        outcomes, values = traj.outcomes, self.critic.value(traj)
        return self.experience(
            traj,
            outcome_advantage(outcomes, values, traj.valid),
            values=values[:, None],
            value_targets=outcomes[:, None],
        )
