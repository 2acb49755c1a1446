"""Start models of the studies on text that do not ship: new ones of 0.8 million parameters, taught on demand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sppo.experiments.settings import check_made
from sppo.experiments.tasks import TEXT, task

FOLDER = Path("runs/starts/text")
TERMS = {24: 3, 64: 6, 128: 12}
"""Of the map over chains: the horizon in tokens, and the number of terms whose worked steps fit into it."""
SUCCESSES = (0.05, 0.5)
OPERANDS = [1, 20]
UPWARDS = [1, 2, 3, 10]
"""What a wrong step is off by, so that no error makes up for another."""
SKILLED = FOLDER / "chains" / "skilled"
"""Knows chains of up to twelve terms, and seldom misses."""
LOOKS = ("check_every", "check_demonstrations", "check_prompts")
"""Settings that change what is told of a model, and nothing of what it learns."""

PASS: dict[str, Any] = {"batch_size": 32, "microbatch_steps": None, "check_demonstrations": 64, "threads": 1}


def start_of(env_id: str) -> Path:
    """The start model of a task."""
    return FOLDER / env_id.removeprefix(TEXT).removeprefix("reasoning_gym:")


def chains_start(horizon: int, success: float) -> Path:
    """The start model of a cell of the map."""
    return FOLDER / "chains" / f"{horizon}" / f"{success:g}"


def step_miss(terms: int, success: float) -> float:
    """The chance of each step of a chain to go wrong with which this share of chains comes out right.

    (1 - p)^(terms - 1) = success
    """
    return float(1 - success ** (1 / (terms - 1)))


def recipes() -> dict[Path, dict[str, Any]]:
    """Settings of `llm.sft.TextSFTConfig` by the folder of the model, those that others start from first."""
    made: dict[Path, dict[str, Any]] = {}
    # Demonstrations are right until the last steps; then so many characters slip that a model of the skill often fails.
    for name, steps, last, slips in (("spell_backward", 900, 150, 0.25), ("basic_arithmetic", 700, 120, 0.4)):
        about = task(f"{TEXT}reasoning_gym:{name}")
        made[start_of(name)] = {
            **PASS,
            "task": f"reasoning_gym:{name}",
            "task_options": about.env_kwargs,
            "max_completion_length": about.text["max_completion_length"],
            "gradient_steps": steps,
            "learning_rate": 1e-3,
            "warmup": 50,
            "last_steps": last,
            "last_options": {"p_slip": slips},
            "check_every": 150,
            "check_prompts": 512,
        }
    chains: dict[str, Any] = {**PASS, "task": "arithmetic", "learning_rate": 7e-4, "warmup": 30, "check_every": 100}
    made[SKILLED] = {
        **chains,
        "model": "arithmetic",
        "task_options": {"terms": [2, max(TERMS.values())], "operands": OPERANDS},
        "max_completion_length": max(TERMS),
        "gradient_steps": 1000,
        "check_prompts": 256,
    }
    for horizon, terms in TERMS.items():
        for success in SUCCESSES:
            missed = step_miss(terms, success)
            made[chains_start(horizon, success)] = {
                **chains,
                "model": str(SKILLED),
                "task_options": {"terms": [terms, terms], "operands": OPERANDS},
                "max_completion_length": horizon,
                "gradient_steps": 200,
                "last_steps": 200,
                "last_options": {"p_wrong": {"+": missed, "-": missed}, "slips": UPWARDS},
                "check_prompts": 512,
            }
    return made


def make_text_starts(wanted: Iterable[Path]) -> None:
    """Teach the models that are missing, and what they start from, if that is missing.

    Raises:
        ValueError: if one that is there was taught by another recipe; nothing is made then.
    """
    from sppo.llm.sft import TextSFTConfig, fine_tune

    made = {folder: TextSFTConfig(**settings) for folder, settings in recipes().items()}
    sources = {folder: Path(c.model) for folder, c in made.items() if c.model and Path(c.model) in made}
    asked = set(wanted)
    needed = asked | {sources[folder] for folder in asked & sources.keys()}
    there = {folder for folder in needed if (folder / "sft.json").exists()}
    for folder in sorted(there):
        check_made(folder / "sft.json", made[folder], free=LOOKS)
    missing = asked - there
    missing |= {sources[folder] for folder in missing & sources.keys()} - there
    for folder, config in made.items():
        if folder in missing:
            print(folder)
            fine_tune(config, folder, progress_bar=True)
