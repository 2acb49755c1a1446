"""Where control and text part: what a run needs from its domain. Everything else in this folder serves both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from sppo.agents import AGENTS, Agent
from sppo.agents.callbacks import Callback
from sppo.agents.presets import PRESETS
from sppo.experiments.config import RunConfig
from sppo.experiments.runlog import RunLog
from sppo.experiments.settings import make
from sppo.experiments.tasks import TEXT, task
from sppo.llm.tasks.names import unknown


class Domain(Protocol):
    """A module that offers these."""

    SIDE_BY_SIDE: int
    """Seeds trained in one process: fixed, so that results do not depend on the number of processes."""

    def resolve(self, config: RunConfig) -> RunConfig:
        """Fill in what the task decides; ValueError for what can be seen to be wrong without making an agent."""

    def make_agents(self, configs: Sequence[RunConfig]) -> list[Agent]:
        """The agents of resolved configs, with their start policies."""

    def check(self, configs: Sequence[RunConfig]) -> None:
        """Everything that can be checked of resolved configs without training."""

    def held_out(self, agent: Agent, config: RunConfig) -> tuple[Any, Any]:
        """A sampler of its own with the agent's policy, and the starts to evaluate on: the same for every run."""

    def trained_on(self, agent: Agent, config: RunConfig) -> tuple[Any, Any]:
        """The same of starts that the agent was trained on; ValueError where none comes twice."""

    def callbacks(self, agent: Agent, config: RunConfig, log: RunLog, held_out: Any) -> list[Callback]:
        """What else a run does, before each update is logged."""

    def finish(self, agent: Agent, config: RunConfig, folder: Path, warn: Callable[[str], None]) -> None:
        """What a finished run leaves besides its log."""

    def threads(self, config: RunConfig) -> int:
        """Of the process that trains a resolved config."""


def domain(config: RunConfig) -> Domain:
    """The domain of a config's task; text is imported when it is first asked for, since that takes seconds."""
    if config.env_id.startswith(TEXT):
        from sppo.experiments import text

        return text
    from sppo.experiments import control

    return control


def resolve(config: RunConfig) -> RunConfig:
    """Fill in what the task and the agent decide, and check everything that can be checked before the run.

    Raises:
        ValueError: naming what is wrong.
    """
    if config.agent not in AGENTS:
        raise ValueError(unknown("agent", config.agent, AGENTS))
    for name in ("total_episodes", "total_steps", "total_seconds", "n_evals", "n_eval_episodes", "checkpoint_freq"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if config.stop_at_success is not None and not 0 < config.stop_at_success <= 1:
        raise ValueError(f"stop_at_success must be in (0, 1], got {config.stop_at_success}")
    if config.seed < 0:
        raise ValueError(f"seed must not be negative, got {config.seed}")
    about = task(config.env_id)
    episodes = config.total_episodes or (about.total_episodes if config.total_seconds is None else None)
    return domain(config).resolve(
        dataclasses.replace(config, total_episodes=episodes, n_evals=config.n_evals or about.n_evals)
    )


def agent_settings(config: RunConfig) -> dict[str, Any]:
    """All settings of the config's agent: its defaults, then the task's, a preset's (`preset NAME`), the config's."""
    about, given = task(config.env_id), dict(config.settings)
    preset, known = given.pop("preset", None), PRESETS.get(config.agent, {})
    if preset is not None and preset not in known:
        raise ValueError(f"{config.agent} has no presets" if not known else unknown("preset", str(preset), known))
    chosen = known[preset] if preset is not None else {}
    settings = {"episodes_per_update": about.episodes_per_update, **about.settings, **chosen, **given}
    return dataclasses.asdict(make(AGENTS[config.agent].Config, {**settings, "seed": config.seed}))


def make_agents(configs: Sequence[RunConfig]) -> list[Agent]:
    """The agents of resolved configs of one domain, with their start policies."""
    return domain(configs[0]).make_agents(configs)
