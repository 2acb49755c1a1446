"""`sppo train` and `sppo compare`: what they share, and what they do."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from sppo.agents import AGENTS
from sppo.experiments.compare import Job, JobFailed, check, execute, plan
from sppo.experiments.config import RunConfig, read_config, to_json
from sppo.experiments.domains import resolve
from sppo.experiments.ranks import is_first, started
from sppo.experiments.settings import json_values
from sppo.experiments.shared_run import train_shared
from sppo.experiments.tasks import TASKS, TEXT, short_name

Options = Annotated[dict[str, str], tyro.conf.arg(metavar="NAME VALUE ...")]
ENV_IDS = Annotated[
    tuple[str, ...], tyro.conf.arg(metavar="ID ...", help=f"Registered environment ids; all: {', '.join(TASKS)}.")
]
EVERY_ENV = ("all",)
DEFAULT_ENV = "sppo/PrecisionCartPole-v0"
TASK_HELP = (
    "in place of an environment, a text task: arithmetic, addition, reasoning_gym:NAME, gsm8k, dapo-math-17k, ... "
    "or a data file (docs/TASKS.md)."
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What train and compare share."""

    env_options: Annotated[Options, tyro.conf.arg(aliases=("--task-options",))] = field(default_factory=dict)
    """Options of the environment (its dials, see docs/ENVIRONMENTS.md), such as: horizon 100 tolerance 1.0; or of the
    text task (docs/TASKS.md), such as: terms [2,7] operands [1,20]"""
    settings: Options = field(default_factory=dict)
    """Settings of the agent that differ from its defaults (--dry-run prints them all), such as: learning_rate 1e-3
    n_epochs 2; preset NAME takes published ones (docs/ALGORITHMS.md)."""
    start: Annotated[str, tyro.conf.arg(aliases=("--model",))] = "auto"
    """The start policy: auto (the one that ships for the task and seed, if any), none (random weights), a file, or a
    folder of files named by seed. On text a model: arithmetic, smollm2, a folder, a .gguf file or a hub name."""
    text: Options = field(default_factory=dict)
    """Settings of the language side that differ from the task's (docs/TEXT.md), such as: temperature 0.6
    max_completion_length 1024 critic_layers 4"""
    episodes: int | None = None
    """Budget in episodes (responses); by default the paper's for the task, 10 000 for others."""
    steps: int | None = None
    """Budget in environment steps (tokens), beside the one in episodes: the run ends with whichever is spent first."""
    seconds: float | None = None
    """Budget in seconds of sampling and updates, evaluations aside, for comparisons at equal time; without --episodes
    it is the only one."""
    evals: int | None = None
    """Evaluations during a run, evenly spaced, beside the one before it; by default 20, fewer for large models."""
    eval_episodes: int = 256
    """Held-out start states of each evaluation, with sampled actions, outside the budget."""
    stop_at_success: float | None = None
    """End a run once an evaluation reaches this success rate."""
    checkpoint_freq: int = 20
    """Updates between checkpoints."""
    resume: bool = False
    """Go on with runs that were stopped; those that are finished stay as they are."""
    dry_run: bool = False
    """Check everything and print the resolved configs; run and write nothing."""

    def base(self) -> RunConfig:
        return RunConfig(
            env_kwargs=json_values(self.env_options),
            settings=json_values(self.settings),
            start=self.start,
            text=json_values(self.text),
            total_episodes=self.episodes,
            total_steps=self.steps,
            total_seconds=self.seconds,
            n_evals=self.evals,
            n_eval_episodes=self.eval_episodes,
            stop_at_success=self.stop_at_success,
            checkpoint_freq=self.checkpoint_freq,
        )


Shared = Annotated[RunOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one agent on one task."""

    env: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """A registered environment id; by default Precision CartPole's."""
    task: Annotated[str | None, tyro.conf.arg(metavar="NAME", help=f"Or, {TASK_HELP}")] = None
    agent: Annotated[str, tyro.conf.arg(metavar="AGENT", help=f"One of: {', '.join(AGENTS)}.")] = "sppo"
    seed: int = 0
    """Of start states, actions, minibatches and initial weights; and which start policy."""
    config: Path | None = None
    """Run this config.json (or the run folder that holds it) again; of the other options only --out, --resume and
    --dry-run count then."""
    out: Path | None = None
    """The run's folder; by default runs/TASK/AGENT/seedK."""
    run: Shared = field(default_factory=RunOptions)

    def chosen(self) -> RunConfig:
        """The config that was asked for."""
        (env_id,) = _chosen((self.env,) if self.env else (), (self.task,) if self.task else ())
        config = replace(self.run.base(), agent=self.agent, env_id=env_id, seed=self.seed)
        return read_config(self.config) if self.config else config

    def __call__(self) -> None:
        config = self.chosen()
        out = self.out or Path("runs") / short_name(config.env_id) / config.agent / f"seed{config.seed}"
        if self.run.dry_run:
            _show([([resolve(config)], [out])], self.run.resume)
            return
        if started() is not None:
            first = train_shared(config, out, self.run.resume)
        else:
            execute([([resolve(config)], [out])], resume=self.run.resume)
            first = True
        if first:
            print(f"{out}: success {json.loads((out / 'result.json').read_text())['success_rate']:.3f}")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several agents from the same start policies with the same seeds, and report who is ahead."""

    env: ENV_IDS = ()
    task: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help=f"Or, {TASK_HELP}")] = ()
    agents: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="AGENT ...", help=f"Any of, or all: {', '.join(AGENTS)}.")
    ] = ("ppo", "sppo")
    seeds: int = 5
    """How many seeds, from 0."""
    processes: int | None = None
    """How many at a time; by default one per processor. No effect on results."""
    out: Path = Path("runs/compare")
    """Where the run folders, the table, the curves and the report go."""
    run: Shared = field(default_factory=RunOptions)

    def __call__(self) -> None:
        if started() is not None:
            raise ValueError("compare starts processes of its own: torchrun is for train")
        agents = tuple(AGENTS) if self.agents == ("all",) else self.agents
        jobs = plan(self.run.base(), agents, _chosen(env_ids_of(self.env), self.task), self.seeds, self.out)
        if self.run.dry_run:
            _show(jobs, self.run.resume)
            return
        try:
            execute(jobs, processes=self.processes, resume=self.run.resume)
        except JobFailed:
            with contextlib.suppress(ValueError):  # where no run is finished there is nothing to report
                print_report(self.out, None)
            raise
        print_report(self.out, agents)


def _chosen(env_ids: tuple[str, ...], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Environments and text tasks as ids; options fit one domain alone, so only one may be asked for."""
    if env_ids and tasks:
        raise ValueError("--env and --task exclude each other: their options differ")
    return tuple(TEXT + name for name in tasks) or env_ids or (DEFAULT_ENV,)


def env_ids_of(chosen: tuple[str, ...]) -> tuple[str, ...]:
    """All of them for EVERY_ENV."""
    return tuple(TASKS) if chosen == EVERY_ENV else chosen


def print_report(source: Path, agents: tuple[str, ...] | None, out: Path | None = None) -> None:
    """The table of a folder of runs, with curves, report and the packed runs beside it; or of a packed file."""
    from sppo.experiments.compact import ENDING
    from sppo.experiments.packed import pack
    from sppo.experiments.report import folder_of, format_table, plot_curves, summarize, write_report

    out = out or folder_of(source)
    table = summarize(source, agents)
    out.mkdir(parents=True, exist_ok=True)
    print(format_table(table))
    command = "sppo " + shlex.join(sys.argv[1:])
    for path in (*plot_curves(table, out / "curves"), write_report(source, command, agents, out)):
        print(path)
    if source.is_dir():
        print(pack(table.runs, out / f"results{ENDING}"))


def _show(jobs: list[Job], resume: bool) -> None:
    """What a dry run does; of ranks, the first."""
    if not is_first():
        return
    check(jobs, resume)
    for configs, folders in jobs:
        for config, folder in zip(configs, folders, strict=True):
            print(json.dumps({"folder": str(folder), **to_json(config)}))
            if config.env_id.startswith(TEXT):
                from sppo.experiments.text_memory import UnknownShape, fits

                with contextlib.suppress(UnknownShape):  # of which the check has warned
                    print(fits(config), file=sys.stderr)
