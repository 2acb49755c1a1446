"""Algorithms for episodes with an outcome: a way to collect them and a way to give credit, over one update."""

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.config import AgentConfig
from sppo.agents.control import ControlSampler
from sppo.agents.dapo import DAPO
from sppo.agents.dpo import DPO
from sppo.agents.drgrpo import DrGRPO
from sppo.agents.grpo import GRPO
from sppo.agents.gspo import GSPO
from sppo.agents.ppo import PPO, PPOBCE
from sppo.agents.reinforce import Reinforce
from sppo.agents.remax import ReMax
from sppo.agents.restem import RestEM
from sppo.agents.rloo import RLOO
from sppo.agents.spo_chain import SPOChain
from sppo.agents.spo_tree import SPOTree
from sppo.agents.sppo import SPPO
from sppo.agents.tracker import Tracker
from sppo.agents.vineppo import VinePPO

AGENTS: dict[str, type[Agent]] = {
    "ppo": PPO,
    "ppo-bce": PPOBCE,
    "sppo": SPPO,
    "tracker": Tracker,
    "reinforce": Reinforce,
    "grpo": GRPO,
    "drgrpo": DrGRPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "rloo": RLOO,
    "restem": RestEM,
    "dpo": DPO,
    "remax": ReMax,
    "vineppo": VinePPO,
    "spo-chain": SPOChain,
    "spo-tree": SPOTree,
}

__all__ = [
    "AGENTS",
    "DAPO",
    "DPO",
    "GRPO",
    "GSPO",
    "PPO",
    "PPOBCE",
    "RLOO",
    "SPPO",
    "Agent",
    "AgentConfig",
    "ControlSampler",
    "DrGRPO",
    "Experience",
    "ReMax",
    "Reinforce",
    "RestEM",
    "SPOChain",
    "SPOTree",
    "Tracker",
    "Trajectories",
    "VinePPO",
]
