"""What a run is: everything needed to make it again."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from sppo.experiments.settings import make

PACKAGES = ("sppo", "torch", "numpy", "gymnasium", "stable-baselines3", "transformers")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One agent, one task, one seed."""

    agent: str = "sppo"
    env_id: str = "sppo/PrecisionCartPole-v0"
    """A registered environment id, or text/NAME for a task of `sppo.llm.tasks`."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    start: str = "auto"
    """The start policy: "auto" (the one that ships for the task and seed, if any), "none", or a path; on text a
    model's name or path."""
    total_episodes: int | None = None
    """None: as many as the paper's figure has, or without limit where there is a budget in seconds."""
    total_steps: int | None = None
    """A budget in environment steps beside the one in episodes."""
    total_seconds: float | None = None
    """A budget in seconds of sampling and updates, for comparisons at equal time."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the agent that differ from its defaults and the task's."""
    text: dict[str, Any] = field(default_factory=dict)
    """On text, settings of `text.TextConfig` that differ from its defaults and the task's."""
    net_arch: tuple[int, ...] = (64, 64)
    activation: Literal["relu", "tanh"] = "relu"
    n_evals: int | None = None
    """Evaluations during the run, evenly spaced, beside the one before it. None: the task's number."""
    n_eval_episodes: int = 256
    """Held-out start states of each evaluation, with sampled actions, outside the budget."""
    stop_at_success: float | None = None
    """End the run once an evaluation reaches this success rate."""
    checkpoint_freq: int = 20
    """Updates between checkpoints."""


def to_json(config: RunConfig) -> dict[str, Any]:
    """The config, with the versions and the commit that made the run."""
    return {**dataclasses.asdict(config), "versions": versions()}


def from_json(content: dict[str, Any], source: str = "the config") -> RunConfig:
    """The config that `to_json` wrote.

    Raises:
        ValueError: for an unknown field, naming the nearest.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{source} must hold a JSON object, got {type(content).__name__}")
    try:
        return make(RunConfig, {name: value for name, value in content.items() if name != "versions"}, "field")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def read_config(path: Path) -> RunConfig:
    """A run's config from its config.json, or from the folder that holds one."""
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the run's config {file}: {error}") from error
    return from_json(content, str(file))


def versions() -> dict[str, str]:
    """Of Python, the packages that decide a result, and the commit of the tree, if it is one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return found | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})
