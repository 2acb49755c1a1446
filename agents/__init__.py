"""Algorithms for episodes with an outcome: a way to collect them and a way to give credit, over one update."""

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.control import ControlSampler
from sppo.agents.grpo import GRPO
from sppo.agents.ppo import PPO, PPOBCE
from sppo.agents.reinforce import Reinforce
from sppo.agents.rloo import RLOO
from sppo.agents.sppo import SPPO
from sppo.agents.tracker import Tracker

AGENTS: dict[str, type[Agent]] = {
    "ppo": PPO,
    "ppo-bce": PPOBCE,
    "sppo": SPPO,
    "tracker": Tracker,
    "reinforce": Reinforce,
    "grpo": GRPO,
    "rloo": RLOO,
}

__all__ = [
    "AGENTS",
    "GRPO",
    "PPO",
    "PPOBCE",
    "RLOO",
    "SPPO",
    "Agent",
    "AgentConfig",
    "ControlSampler",
    "Experience",
    "Reinforce",
    "Tracker",
    "Trajectories",
]
