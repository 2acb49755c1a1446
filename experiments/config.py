"""What a run is: everything needed to make it again."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

from sppo.agents import AGENTS, Agent
from sppo.agents.networks import ControlPolicy, make_policy
from sppo.agents.storage import load_policy
from sppo.envs import Episodes, episodes
from sppo.experiments.settings import make, unknown
from sppo.experiments.sft import network_of
from sppo.experiments.tasks import STARTS, TASKS, short_name, task

PACKAGES = ("sppo", "torch", "numpy", "gymnasium", "stable-baselines3")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One agent, one task, one seed."""

    agent: str = "sppo"
    env_id: str = "sppo/PrecisionCartPole-v0"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    start: str = "auto"
    """The start policy: "auto" (the one that ships for the task and seed, if any), "none", or a path."""
    total_episodes: int | None = None
    """None: as many as the paper's figure has."""
    total_steps: int | None = None
    """A budget in environment steps beside the one in episodes."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the agent that differ from its defaults and the task's."""
    net_arch: tuple[int, ...] = (64, 64)
    activation: Literal["relu", "tanh"] = "relu"
    n_evals: int = 20
    """Evaluations during the run, evenly spaced, beside the one before it."""
    n_eval_episodes: int = 256
    """Held-out start states of each evaluation, with sampled actions, outside the budget."""
    stop_at_success: float | None = None
    """End the run once an evaluation reaches this success rate."""
    checkpoint_freq: int = 20
    """Updates between checkpoints."""


def resolve(config: RunConfig) -> RunConfig:
    """Fill in what the task and the agent decide, and check everything that can be checked before the run.

    Raises:
        ValueError: naming what is wrong.
    """
    if config.agent not in AGENTS:
        raise ValueError(unknown("agent", config.agent, AGENTS))
    for name in ("total_episodes", "total_steps", "n_evals", "n_eval_episodes", "checkpoint_freq"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if config.stop_at_success is not None and not 0 < config.stop_at_success <= 1:
        raise ValueError(f"stop_at_success must be in (0, 1], got {config.stop_at_success}")
    if config.seed < 0:
        raise ValueError(f"seed must not be negative, got {config.seed}")
    about = task(config.env_id)
    settings = {"episodes_per_update": about.episodes_per_update, **config.settings, "seed": config.seed}
    full = make(AGENTS[config.agent].Config, settings)
    start = find_start(config)
    network = {} if start is None else network_of(start)
    return dataclasses.replace(
        config,
        settings=dataclasses.asdict(full),
        start="none" if start is None else _portable(start),
        total_episodes=config.total_episodes or about.total_episodes,
        **network,
    )


def find_start(config: RunConfig) -> Path | None:
    """The start policy's file, or None."""
    if config.start == "none":
        return None
    if config.start == "auto":
        if config.env_id not in TASKS:  # an id of the same last part may be another task
            return None
        shipped = sorted((STARTS / short_name(config.env_id)).glob("*.safetensors"), key=lambda path: int(path.stem))
        return shipped[config.seed % len(shipped)] if shipped else None
    given = path = Path(config.start)
    if not path.is_absolute() and not path.exists():
        path = STARTS / config.start
    if path.is_dir():
        path = path / f"{config.seed}.safetensors"
    if not path.exists():
        missing = given / path.name if path.parent.name == given.name else given
        raise ValueError(f"there is no start policy at {missing}; `sppo sft` makes them, or say `--start none`")
    return path


def _portable(path: Path) -> str:
    """Relative to the shipped start policies where it is one of them, so that a config can be re-run elsewhere."""
    return str(path.relative_to(STARTS)) if path.is_relative_to(STARTS) else str(path.resolve())


def make_agents(configs: Sequence[RunConfig]) -> list[Agent]:
    """The agents of resolved configs, with their start policies; those of one task share its environment."""
    envs: dict[str, Episodes] = {}
    agents = []
    for config in configs:
        key = json.dumps([config.env_id, config.env_kwargs], sort_keys=True)
        if key not in envs:
            envs[key] = make_episodes(config)
        agents.append(_make_agent(config, envs[key]))
    return agents


def make_episodes(config: RunConfig) -> Episodes:
    """A config's environment.

    Raises:
        ValueError: if it cannot be made, whatever the environment itself raises then.
    """
    try:
        return episodes(config.env_id, **config.env_kwargs)
    except (TypeError, gym.error.Error) as error:
        options = "".join(f", {name}={value!r}" for name, value in config.env_kwargs.items())
        raise ValueError(f"{config.env_id}{options} cannot be made: {error}") from error


def start_policy(env_id: str, seed: int = 0) -> ControlPolicy:
    """The start policy that ships for a task; there are ten, one per seed.

    Raises:
        ValueError: if none ships for this id.
    """
    config = RunConfig(env_id=env_id, seed=seed)
    start = find_start(config)
    if start is None:
        raise ValueError(f"no start policy ships for {env_id}; `sppo sft` makes them")
    env = make_episodes(config)
    policy = make_policy(env.single_observation_space, env.single_action_space, **network_of(start))
    load_policy(policy, start)
    return policy


def _make_agent(config: RunConfig, env: Episodes) -> Agent:
    kind = AGENTS[config.agent]
    agent = kind(
        env,
        config=make(kind.Config, config.settings),
        net_arch=config.net_arch,
        activation=config.activation,
    )
    start = find_start(config)
    if start is not None:
        load_policy(agent.policy, start)
        if hasattr(agent.critic, "standardise_as"):
            agent.critic.standardise_as(agent.policy)
    return agent


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
