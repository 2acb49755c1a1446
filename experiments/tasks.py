"""What the benchmarks fix for each task, the same for every algorithm; any other id takes the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STARTS = Path(__file__).parent / "starts"
"""The start policies that ship with the package."""

TEXT = "text/"
"""Begins the environment id of a text task: text/arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Settings of one task that are the same for every algorithm; the user's own go before them."""

    episodes_per_update: int = 64
    """Trajectories per update, as in section 5.3 of arXiv 2604.08865."""
    total_episodes: int = 10_000
    """Episodes in the paper's figure."""
    n_evals: int = 20
    sft: dict[str, Any] = field(default_factory=dict)
    """What differs from SFTConfig's defaults."""
    start: str | None = None
    """The model that a text task starts from."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from the agents' defaults."""
    text: dict[str, Any] = field(default_factory=dict)
    """What differs from TextConfig's defaults."""


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

# One pass over the responses of an update, as in the paper's runs; minibatches of rows.
TEXT_SETTINGS: dict[str, Any] = {"n_epochs": 1, "n_minibatches": 4, "microbatch_size": 16, "max_grad_norm": 1.0}

# Of models of 0.8 million parameters, which learn in a minute or two.
TINY: dict[str, Any] = {"learning_rate": 1e-4, "critic_learning_rate": 1e-3, "microbatch_size": 32}
TINY_TEXT: dict[str, Any] = {"critic_layers": 2, "threads": 1}

# Plain text of few characters, paid for full scores alone.
PLAIN: dict[str, Any] = {"system": "", "chat": False, "binary": True, "train_size": 20_000, "test_size": 512}

TEXT_TASKS = {
    # The model that ships was taught chains of up to five terms, and to miss subtractions: prompts differ in how hard
    # they are for it, which V(s_0) can know.
    TEXT + "arithmetic": Task(
        episodes_per_update=128,
        total_episodes=9_600,
        start="arithmetic",
        env_kwargs={"terms": [2, 7], "operands": [1, 20]},
        settings={**TEXT_SETTINGS, **TINY},
        text={"max_completion_length": 88, **TINY_TEXT},
    ),
    # Start models: see evidence/text_starts.py. The longer a word or a sum, the more slips; the model can know it.
    TEXT + "reasoning_gym:spell_backward": Task(
        episodes_per_update=128,
        total_episodes=4_800,
        env_kwargs={**PLAIN, "max_word_len": 8},
        settings={**TEXT_SETTINGS, **TINY},
        text={"max_completion_length": 32, **TINY_TEXT},
    ),
    TEXT + "reasoning_gym:basic_arithmetic": Task(
        episodes_per_update=128,
        total_episodes=4_800,
        env_kwargs={
            **PLAIN,
            "max_terms": 4,
            "max_digits": 1,
            "operators": ["+", "-"],
            "allow_parentheses": False,
            "allow_negation": False,
        },
        settings={**TEXT_SETTINGS, **TINY},
        text={"max_completion_length": 28, **TINY_TEXT},
    ),
    # Few updates of a large model: an evaluation costs as much as four of them.
    TEXT + "addition": Task(
        total_episodes=960,
        n_evals=5,
        start="smollm2",
        settings={
            **TEXT_SETTINGS,
            "learning_rate": 3e-5,
            "critic_learning_rate": 5e-4,
            "n_minibatches": 2,
            "microbatch_size": 32,
        },
        text={"max_completion_length": 32, "critic_layers": 4, "dtype": "bfloat16"},
    ),
}
TEXT_DEFAULT = Task(settings={**TEXT_SETTINGS, "learning_rate": 1e-6, "critic_learning_rate": 1e-5})


def task(env_id: str) -> Task:
    """The settings of an id."""
    default = TEXT_DEFAULT if env_id.startswith(TEXT) else Task()
    return {**TASKS, **TEXT_TASKS}.get(env_id, default)


def short_name(env_id: str) -> str:
    """The folder name of an environment id: its last part."""
    return env_id.rsplit("/", 1)[-1]
