"""Token-level PPO: every step is an action, with a value of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.credit import generalized_advantage
from sppo.agents.losses import ValueLossName


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AgentConfig):
    """Settings of PPO; gamma = gae_lambda = 1 suits a reward at the end alone: A_t = R - V(s_t).

    Args:
        gamma: discount per step.
        gae_lambda: 1 gives return minus value, 0 the one-step temporal difference.
        value_loss: "squared_error" to the return, or "bce" (binary cross-entropy) for returns in [0, 1].
    """

    gamma: float = 1.0
    gae_lambda: float = 1.0
    value_loss: ValueLossName = "squared_error"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


class PPO(Agent):
    """A_t = GAE(gamma, gae_lambda) over a critic of every state, fitted to A_t + V(s_t).

    Source: Schulman et al. 2017, arXiv 1707.06347.
    Departs from stable-baselines3: policy and critic are separate networks with separate optimisers, learning rates and
    gradient clipping; a truncated episode is continued by V(s_T) inside the recursion instead of in its last reward.
    """

    Config = PPOConfig
    critic_sees = "steps"

    def make_critic(self) -> Any:
        return self.new_critic(self.config.value_loss)

    def credit(self, traj: Trajectories) -> Experience:
        c = self.config
        values = self.critic.values(traj)
        advantages = generalized_advantage(
            traj.rewards, values, traj.valid, traj.truncated, gamma=c.gamma, gae_lambda=c.gae_lambda
        )
        targets = advantages + values[:, :-1]
        return self.experience(traj, advantages, values=values[:, :-1], value_targets=targets)


@dataclass(frozen=True, kw_only=True)
class PPOBCEConfig(PPOConfig):
    """PPO with the value loss of SPPO, on every step."""

    value_loss: ValueLossName = "bce"


class PPOBCE(PPO):
    """The ablation between PPO and SPPO: V(s_t) = sigmoid(logit), fitted with binary cross-entropy to R."""

    Config = PPOBCEConfig
