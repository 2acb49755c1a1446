"""Control tasks: environments by id, start policies by task and seed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sppo.agents import AGENTS, Agent
from sppo.agents.callbacks import Callback
from sppo.agents.control import ControlSampler
from sppo.agents.networks import ControlPolicy, make_policy
from sppo.agents.storage import load_policy
from sppo.envs import Episodes, episodes
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import agent_settings
from sppo.experiments.runlog import RunLog
from sppo.experiments.settings import make
from sppo.experiments.sft import network_of
from sppo.experiments.tasks import STARTS, TASKS, short_name

SIDE_BY_SIDE = 5


def resolve(config: RunConfig) -> RunConfig:
    """See `domains.resolve`."""
    if config.text:
        raise ValueError(f"settings of a language model, {', '.join(config.text)}, do not fit {config.env_id}")
    start = find_start(config)
    network = {} if start is None else network_of(start)
    return dataclasses.replace(
        config,
        settings=agent_settings(config),
        start="none" if start is None else _portable(start),
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


check: Callable[[Sequence[RunConfig]], Any] = make_agents
"""Agents are small: making them finds what does not fit."""


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


def held_out(agent: Agent, config: RunConfig) -> tuple[Any, Any]:
    """In an environment of its own, on the same start states for every agent and seed."""
    return ControlSampler(make_episodes(config), policy=agent.policy), np.arange(config.n_eval_episodes)


def trained_on(agent: Agent, config: RunConfig) -> tuple[Any, Any]:
    """None is kept."""
    raise ValueError(f"{config.env_id} draws a fresh start for every episode: only prompts come twice in training")


def callbacks(agent: Agent, config: RunConfig, log: RunLog, held_out: Any) -> list[Callback]:
    """None: a control run is its numbers."""
    return []


def finish(agent: Agent, config: RunConfig, folder: Path, warn: Callable[[str], None]) -> None:
    """Say so where the success rate means nothing."""
    if not getattr(agent.sampler.env, "judged", True):
        warn(
            f"{config.env_id} does not report info['is_success'] when an episode ends, so its success rate says "
            "nothing: wrap it in sppo.envs.SparseOutcome, or look at mean_return in evals.csv"
        )


def threads(config: RunConfig) -> int:
    """The networks are too small for more."""
    return 1
