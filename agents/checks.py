"""Settings that do not fit an algorithm or its task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sppo.agents.config import AgentConfig

if TYPE_CHECKING:
    from sppo.agents.agent import Agent


def check_critic(agent: Agent) -> None:
    """Before the critic is made. Raises ValueError for one that cannot be."""
    c, name = agent.config, type(agent).__name__
    if c.critic_width is not None:
        if agent.critic_sees is None or c.shared_network:
            whose = "the policy's layers" if c.shared_network else "none"
            raise ValueError(f"critic_width needs a critic with layers of its own, and {name} has {whose}")
        if not hasattr(agent.policy, "net_arch"):
            raise ValueError(f"critic_width is of control: critics of {type(agent.sampler).__name__} are models apart")
    if not c.shared_network:
        if c.vf_coef != AgentConfig.vf_coef:
            raise ValueError(
                f"vf_coef weighs the critic's loss in a shared_network, and {name} has none: vf_coef must be "
                f"{AgentConfig.vf_coef:g}, got {c.vf_coef:g}"
            )
        return
    if agent.critic_sees is None:
        raise ValueError(f"shared_network needs a critic, and {name} has none")
    if not hasattr(agent.sampler, "shared_critic"):
        raise ValueError(f"shared_network needs a shared_critic, and {type(agent.sampler).__name__} has none")
    if c.critic_n_epochs is not None:
        raise ValueError(
            f"critic_n_epochs needs a critic that learns by itself, and {name} has the policy's layers "
            "(shared_network): critic_n_epochs must be None"
        )


def check_settings(agent: Agent) -> None:
    """Raises ValueError for what does not fit."""
    c, name = agent.config, type(agent).__name__
    if c.critic_warmup and agent.critic_learner is None:
        whose = "the policy's layers" if c.shared_network else "none"
        raise ValueError(f"critic_warmup needs a critic that learns by itself, and {name} has {whose}")
    if c.n_steps is not None and agent.critic_sees != "steps":
        raise ValueError(
            f"n_steps cuts episodes, and {name} gives credit by the outcome of whole ones: n_steps must be None"
        )
    if c.n_steps is not None and not agent.policy.memoryless:
        raise ValueError(
            f"n_steps keeps episodes under way as arrays, and states of {type(agent.sampler).__name__} differ in "
            "length: n_steps must be None"
        )
    if c.aggregation == "constant_horizon" and getattr(agent.sampler, "horizon", None) is None:
        raise ValueError("aggregation='constant_horizon' needs a task with a horizon, and this one has none")
