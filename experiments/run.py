"""Runs: one folder each, several seeds side by side, stopped and resumed at any moment."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from sppo.agents import Agent
from sppo.agents.callbacks import Callback, CallbackList, EvalCallback, StopTrainingOnSuccess
from sppo.agents.stack import can_stack, learn
from sppo.agents.storage import read_agent, restore_agent
from sppo.experiments.checkpoints import (
    Checkpoint,
    good_checkpoints,
    remove_later,
    save_checkpoint,
    shared_checkpoints,
)
from sppo.experiments.config import RunConfig, read_config
from sppo.experiments.domains import domain, make_agents, resolve
from sppo.experiments.folders import is_finished, prepare, write_whole
from sppo.experiments.process import locked
from sppo.experiments.runlog import EVALS, RunLog

Report = Callable[[Path, float, float], None]
"""Told a run's folder, the share of its budget that is done, and its latest success rate."""


class Interrupted(Exception):
    """Ctrl-C was pressed; every run has its checkpoint."""


class _Interrupt(Callback):
    """Turns Ctrl-C into an end of learning after the present update, the same one for all that learn side by side."""

    def __init__(self, ranks: Any = None) -> None:
        self.ranks = ranks
        self.asked, self.heeded, self.update = False, False, -1

    def __enter__(self) -> _Interrupt:
        self.previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_update(self, agent: Agent, metrics: dict[str, float]) -> bool:
        if agent.n_updates != self.update:
            self.update, self.heeded = agent.n_updates, self.told
        return not self.heeded

    @property
    def told(self) -> bool:
        """The same on all ranks, which must all ask."""
        return self.asked if self.ranks is None else self.ranks.any(self.asked)


class _OneClock(Callback):
    """All ranks go by the first's, so that a budget in seconds ends on all with the same update."""

    def __init__(self, ranks: Any) -> None:
        self.ranks = ranks

    def on_update(self, agent: Agent, metrics: dict[str, float]) -> None:
        agent.seconds = self.ranks.gather(agent.seconds)[0]


class _NoLog:
    """Of a rank that writes none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None

    def __enter__(self) -> _NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Record(Callback):
    """Logs every update, reports it, and saves the agent every so often, when it is done and when learning ends."""

    def __init__(self, config: RunConfig, log: RunLog, evaluation: EvalCallback, report: Report | None) -> None:
        self.config, self.log, self.evaluation, self.report = config, log, evaluation, report
        self.saved = -1

    def share_done(self, agent: Agent) -> float:
        """Of the budget, or of the success at which to stop; 1 when there is nothing more to learn."""
        c = self.config
        if c.stop_at_success is not None and self.success >= c.stop_at_success:
            return 1.0
        spent = (
            agent.num_episodes / (c.total_episodes or np.inf),
            agent.num_steps / (c.total_steps or np.inf),
            agent.seconds / (c.total_seconds or np.inf),
        )
        return float(min(1.0, max(spent)))

    @property
    def success(self) -> float:
        return float(self.evaluation.last.get("success_rate", 0.0))

    def on_update(self, agent: Agent, metrics: dict[str, float]) -> None:
        self.log.update(metrics)
        if self.report is not None:
            self.report(self.log.folder, self.share_done(agent), self.success)
        if agent.n_updates % self.config.checkpoint_freq == 0 or self.share_done(agent) == 1:
            self._save(agent)

    def on_training_end(self, agent: Agent) -> None:
        if self.saved != agent.n_updates:
            self._save(agent)

    def _save(self, agent: Agent) -> None:
        self.log.flush()
        save_checkpoint(agent, self.log.folder, done=self.share_done(agent) == 1)
        self.saved = agent.n_updates


def run(
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    *,
    resume: bool = False,
    report: Report | None = None,
    warn: Callable[[str], None] = lambda message: print(message, file=sys.stderr),
) -> None:
    """Train every config in its folder, side by side where they differ by seed alone, else one after the other.

    Raises:
        ValueError: for a config that cannot be run, or a folder that holds another run.
        Interrupted: after Ctrl-C.
    """
    configs = [resolve(config) for config in configs]
    prepare(configs, folders, resume)
    todo = [(c, f) for c, f in zip(configs, folders, strict=True) if not is_finished(f)]
    if not todo:
        return
    with locked([folder for _, folder in todo]):
        agents = make_agents([config for config, _ in todo])
        if can_stack(agents):
            train_side_by_side(agents, todo, report, warn)
        else:
            for agent, one in zip(agents, todo, strict=True):
                train_side_by_side([agent], [one], report, warn)


def train_side_by_side(
    agents: list[Agent],
    todo: Sequence[tuple[RunConfig, Path]],
    report: Report | None,
    warn: Callable[[str], None],
    ranks: Any = None,
) -> None:
    """Train agents of resolved configs in their folders to the end; with ranks, each calls this."""
    folders = [folder for _, folder in todo]
    checkpoints = shared_checkpoints(folders, warn) if ranks is None else _shared_by(ranks, folders[0], warn)
    for agent, found in zip(agents, checkpoints, strict=False):
        restore_agent(agent, *read_agent(found.folder))
    records: list[_Record] = []
    callbacks: list[Callback] = []
    writes = ranks is None or ranks.first
    with _Interrupt(ranks) as interrupt, contextlib.ExitStack() as logs:
        for agent, (config, folder) in zip(agents, todo, strict=True):
            remove_later(folder, agent.n_updates)
            log: Any = logs.enter_context(RunLog(folder, agent.n_updates) if writes else _NoLog(folder))
            evaluation = _evaluation(agent, config, log)
            evaluation.last = _last_evaluation(folder) if writes else {}
            if ranks is not None:
                evaluation.last = ranks.gather(evaluation.last)[0]
            record = _Record(config, log, evaluation, report)
            own = domain(config).callbacks(agent, config, log, evaluation.sampler)
            clock = [] if ranks is None else [_OneClock(ranks)]
            parts: list[Callback] = [*clock, *own, evaluation, record, interrupt]
            if config.stop_at_success is not None:
                parts.append(StopTrainingOnSuccess(evaluation, config.stop_at_success))
            records.append(record)
            callbacks.append(CallbackList(parts))
        first = todo[0][0]
        going_on = [i for i, agent in enumerate(agents) if records[i].share_done(agent) < 1]
        if going_on:
            learn(
                [agents[i] for i in going_on],
                first.total_episodes,
                first.total_steps,
                [callbacks[i] for i in going_on],
                total_seconds=first.total_seconds,
            )
        if interrupt.told:
            raise Interrupted
        for agent, record in zip(agents, records, strict=True):
            _finish(agent, record, warn, writes)


def _shared_by(ranks: Any, own: Path, warn: Callable[[str], None]) -> list[Checkpoint]:
    """This rank's checkpoint of the newest update that all ranks have whole; empty where they share none."""
    found = {checkpoint.update: checkpoint for checkpoint in good_checkpoints(own, warn)}
    shared = set(found).intersection(*ranks.gather(set(found)))
    return [found[max(shared)]] if shared else []


def _evaluation(agent: Agent, config: RunConfig, log: RunLog) -> EvalCallback:
    """On the same held-out starts for every agent and seed, evenly spaced over the budget in episodes or seconds."""
    sampler, starts = domain(config).held_out(agent, config)
    assert config.n_evals is not None
    if config.total_episodes is not None:
        clock, every = (lambda agent: agent.num_episodes), max(1.0, config.total_episodes // config.n_evals)
    else:
        assert config.total_seconds is not None
        clock, every = (lambda agent: agent.seconds), config.total_seconds / config.n_evals
    return EvalCallback(sampler, starts, eval_freq=every, on_eval=log.evaluation, clock=clock)


def _last_evaluation(folder: Path) -> Mapping[str, float]:
    lines = (folder / EVALS).read_text().splitlines()
    return json.loads(lines[-1]) if lines else {}


def _finish(agent: Agent, record: _Record, warn: Callable[[str], None], writes: bool = True) -> None:
    """Evaluate once more if the last update was not, and write what a finished run leaves."""
    config, log, evaluation = record.config, record.log, record.evaluation
    if evaluation.last.get("episodes") != agent.num_episodes:
        evaluation.evaluate(agent)
    last = dict(evaluation.last)
    result: dict[str, Any] = {
        name: last[name] for name in ("success_rate", "mean_return", "episodes", "env_steps", "seconds")
    }
    of_env = {f"env_kwargs.{name}": value for name, value in config.env_kwargs.items()}
    about = {"agent": config.agent, "env_id": config.env_id, "start": config.start, **of_env}
    log.results({**about, **config.settings}, result)
    log.flush()
    domain(config).finish(agent, config, log.folder, warn)
    if writes:
        write_whole(log.folder / "result.json", {"finished": True, **result})


def load_run(folder: Path, warn: Callable[[str], None] = lambda message: print(message, file=sys.stderr)) -> Agent:
    """The agent of a run as of its newest checkpoint.

    Raises:
        ValueError: if the folder holds no run, or no checkpoint.
    """
    config = read_config(folder)
    newest = next(good_checkpoints(folder, warn), None)
    if newest is None:
        raise ValueError(f"{folder} has no checkpoint")
    (agent,) = make_agents([config])
    restore_agent(agent, *read_agent(newest.folder))
    return agent
