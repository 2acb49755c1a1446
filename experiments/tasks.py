"""What the control benchmark fixes for each task; any other registered id takes the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STARTS = Path(__file__).parent / "starts"
"""The start policies that ship with the package."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Settings of one task that are the same for every algorithm."""

    episodes_per_update: int = 64
    """Trajectories per update, as in section 5.3 of arXiv 2604.08865."""
    total_episodes: int = 10_000
    """Episodes in the paper's figure."""
    sft: dict[str, Any] = field(default_factory=dict)
    """What differs from SFTConfig's defaults."""


TASKS = {
    "sppo/PrecisionCartPole-v0": Task(episodes_per_update=64, total_episodes=20_000),
    "sppo/MountainCar-v0": Task(episodes_per_update=8, total_episodes=10_000),
    "sppo/Hopper-v0": Task(
        episodes_per_update=8,
        total_episodes=20_000,
        sft={"learning_rate": 5e-4, "check_every": 25, "check_episodes": 40, "measure_episodes": 128},
    ),
    "sppo/LunarLander-v0": Task(episodes_per_update=16, total_episodes=30_000),
    # Torques at random succeed in 10 % of episodes, and a policy that has learned little in 20 %.
    "sppo/Pendulum-v0": Task(episodes_per_update=16, total_episodes=40_000, sft={"low": 0.1, "high": 0.3}),
}


def task(env_id: str) -> Task:
    """The settings of an id."""
    return TASKS.get(env_id, Task())


def short_name(env_id: str) -> str:
    """The folder name of an environment id: its last part."""
    return env_id.rsplit("/", 1)[-1]
