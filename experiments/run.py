"""Runs: one folder each, several seeds side by side, stopped and resumed at any moment."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from sppo.agents import Agent
from sppo.agents.callbacks import Callback, CallbackList, CheckpointCallback, EvalCallback, StopTrainingOnSuccess
from sppo.agents.control import ControlSampler
from sppo.agents.stack import can_stack, learn
from sppo.agents.storage import read_agent, restore_agent
from sppo.envs import episodes
from sppo.experiments.checkpoints import checkpoint, good_updates, save_checkpoint
from sppo.experiments.config import RunConfig, make_agents, read_config, resolve, to_json
from sppo.experiments.runlog import EVALS, RunLog

Report = Callable[[Path, float, float], None]
"""Told a run's folder, the share of its budget that is done, and its latest success rate."""


class Interrupted(Exception):
    """Ctrl-C was pressed; every run has its checkpoint."""


class _Interrupt(Callback):
    """Turns Ctrl-C into an end of learning after the present update."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupt:
        self.previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_update(self, agent: Agent, metrics: dict[str, float]) -> bool:
        return not self.asked


class _Log(Callback):
    def __init__(self, log: RunLog, report: Report | None, config: RunConfig, evaluation: EvalCallback) -> None:
        self.log, self.report, self.config, self.evaluation = log, report, config, evaluation

    def on_update(self, agent: Agent, metrics: dict[str, float]) -> None:
        self.log.update(metrics)
        if self.report is not None:
            share = agent.num_episodes / (self.config.total_episodes or 1)
            if self.config.total_steps:
                share = max(share, agent.num_steps / self.config.total_steps)
            self.report(self.log.folder, min(share, 1.0), float(self.evaluation.last.get("success_rate", 0.0)))


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
    agents = make_agents([config for config, _ in todo])
    if can_stack(agents):
        _train(agents, todo, report, warn)
    else:
        for agent, one in zip(agents, todo, strict=True):
            _train([agent], [one], report, warn)


def prepare(configs: Sequence[RunConfig], folders: Sequence[Path], resume: bool) -> None:
    """Make the runs' folders with their configs; those that exist must hold the same run. All are checked first.

    Raises:
        ValueError: if one holds another run, or the same without `resume`; nothing has been written then.
    """
    for config, folder in zip(configs, folders, strict=True):
        if (folder / "config.json").exists():
            old = read_config(folder)
            for field in dataclasses.fields(config):
                was, now = getattr(old, field.name), getattr(config, field.name)
                if was != now:
                    raise ValueError(f"{folder} holds another run: its {field.name} is {was!r}, not {now!r}")
            if not resume:
                raise ValueError(
                    f"{folder} already holds this run; --resume goes on with it, --out names another folder"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run; --out names another folder")
    for config, folder in zip(configs, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            write_whole(folder / "config.json", to_json(config))


def write_whole(path: Path, content: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def is_finished(folder: Path) -> bool:
    """True where the run has its result."""
    return (folder / "result.json").exists()


def _train(
    agents: list[Agent],
    todo: Sequence[tuple[RunConfig, Path]],
    report: Report | None,
    warn: Callable[[str], None],
) -> None:
    update = _go_on(agents, [folder for _, folder in todo], warn)
    logs: list[RunLog] = []
    evaluations: list[EvalCallback] = []
    callbacks: list[Callback] = []
    stopped: list[Agent] = []
    with _Interrupt() as interrupt:
        for agent, (config, folder) in zip(agents, todo, strict=True):
            log = RunLog(folder, update)
            evaluation = _evaluation(agent, config, log)
            evaluation.last = _last_evaluation(folder)
            save = CheckpointCallback(_saver(folder, log), save_freq=config.checkpoint_freq)
            parts: list[Callback] = [evaluation, _Log(log, report, config, evaluation), save, interrupt]
            if config.stop_at_success is not None:
                parts.append(StopTrainingOnSuccess(evaluation, config.stop_at_success))
                if evaluation.last.get("success_rate", 0.0) >= config.stop_at_success:
                    stopped.append(agent)
            logs.append(log)
            evaluations.append(evaluation)
            callbacks.append(CallbackList(parts))
        first = todo[0][0]
        going_on = [(agent, c) for agent, c in zip(agents, callbacks, strict=True) if agent not in stopped]
        if going_on:
            learn([a for a, _ in going_on], first.total_episodes, first.total_steps, [c for _, c in going_on])
        for agent, (config, folder), log, evaluation in zip(agents, todo, logs, evaluations, strict=True):
            if interrupt.asked:
                log.close()
            else:
                _finish(agent, config, folder, log, evaluation)
    if interrupt.asked:
        raise Interrupted


def _go_on(agents: list[Agent], folders: list[Path], warn: Callable[[str], None]) -> int:
    """Put every agent where its newest checkpoint that all share left it; the update, 0 for a fresh start."""
    shared = set.intersection(*(set(good_updates(folder, warn)) for folder in folders))
    if not shared:
        return 0
    update = max(shared)
    for agent, folder in zip(agents, folders, strict=True):
        restore_agent(agent, *read_agent(checkpoint(folder, update)))
    return update


def _evaluation(agent: Agent, config: RunConfig, log: RunLog) -> EvalCallback:
    """On the same held-out starts for every agent and seed, in an environment of its own."""
    sampler = ControlSampler(episodes(config.env_id, **config.env_kwargs), policy=agent.policy)
    assert config.total_episodes is not None
    return EvalCallback(
        sampler,
        np.arange(config.n_eval_episodes),
        eval_freq=max(1, config.total_episodes // config.n_evals),
        on_eval=log.evaluation,
    )


def _last_evaluation(folder: Path) -> Mapping[str, float]:
    lines = (folder / EVALS).read_text().splitlines()
    return json.loads(lines[-1]) if lines else {}


def _saver(folder: Path, log: RunLog) -> Callable[[Agent], None]:
    def save(agent: Agent) -> None:
        log.flush()
        save_checkpoint(agent, folder)

    return save


def _finish(agent: Agent, config: RunConfig, folder: Path, log: RunLog, evaluation: EvalCallback) -> None:
    """Evaluate once more if the last update was not, and write the result."""
    if evaluation.last.get("episodes") != agent.num_episodes:
        evaluation.evaluate(agent)
    last = dict(evaluation.last)
    result: dict[str, Any] = {
        name: last[name] for name in ("success_rate", "mean_return", "episodes", "env_steps", "seconds")
    }
    log.close({"agent": config.agent, "env_id": config.env_id, **config.settings}, result)
    write_whole(folder / "result.json", {"finished": True, **result})
