"""The command line: `sppo train | compare | experts | sft | eval | calibrate | plan | report | watch`."""

# ruff: noqa: E402 - the thread counts are set before NumPy is imported
from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

# Before NumPy is imported: the arrays are small, and whole runs go to separate processes.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import gymnasium as gym
import tyro
from tqdm.auto import tqdm

from sppo.agents import AGENTS
from sppo.envs import episodes
from sppo.experiments.calibration import Calibrate
from sppo.experiments.compare import BAR, INTERRUPTED, Job, JobFailed, check, execute, plan
from sppo.experiments.config import RunConfig, read_config, to_json
from sppo.experiments.domains import TEXT, resolve
from sppo.experiments.evaluate import Eval
from sppo.experiments.memory import PlanCommand
from sppo.experiments.process import tune_process
from sppo.experiments.run import Interrupted, run_shared
from sppo.experiments.settings import json_values
from sppo.experiments.sft import check_fits, fits, sft_config, summary
from sppo.experiments.tasks import TASKS, short_name

# What draws, or trains experts, is imported by the commands that do so: it takes a second to load, and every worker
# process loads this file.

Options = Annotated[dict[str, str], tyro.conf.arg(metavar="NAME VALUE ...")]
SHARED = "RANK" in os.environ
"""True where torchrun started this process, and others that share its run."""

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

    def __call__(self) -> None:
        (env_id,) = _chosen((self.env,) if self.env else (), (self.task,) if self.task else ())
        config = replace(self.run.base(), agent=self.agent, env_id=env_id, seed=self.seed)
        config = read_config(self.config) if self.config else config
        out = self.out or Path("runs") / short_name(config.env_id) / config.agent / f"seed{config.seed}"
        if self.run.dry_run:
            _show([([resolve(config)], [out])], self.run.resume)
            return
        if SHARED:
            first = _train_shared(config, out, self.run.resume)
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
        if SHARED:
            raise ValueError("compare starts processes of its own: torchrun is for train")
        agents = tuple(AGENTS) if self.agents == ("all",) else self.agents
        jobs = plan(self.run.base(), agents, _chosen(_env_ids(self.env), self.task), self.seeds, self.out)
        if self.run.dry_run:
            _show(jobs, self.run.resume)
            return
        try:
            execute(jobs, processes=self.processes, resume=self.run.resume)
        except JobFailed:
            with contextlib.suppress(ValueError):  # where no run is finished there is nothing to report
                _report(self.out, None)
            raise
        _report(self.out, agents)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Stage 1: train an expert with stable-baselines3 on each task's dense variant, and record its successes."""

    env: ENV_IDS = EVERY_ENV
    settings: Options = field(default_factory=dict)
    """Settings that differ from the task's (--dry-run prints them all), such as: total_timesteps 100000"""
    out: Path = Path("runs/experts")
    """Episodes go to OUT/TASK."""
    dry_run: bool = False
    """Check and print the settings; train and write nothing."""

    def __call__(self) -> None:
        from sppo.experiments.experts import expert_config, train_expert

        configs = {env_id: expert_config(env_id, **json_values(self.settings)) for env_id in _env_ids(self.env)}
        for env_id, config in configs.items():
            episodes(env_id)
            if self.dry_run:
                print(config)
        for env_id, config in configs.items() if not self.dry_run else ():
            report = train_expert(env_id, self.out / short_name(env_id), config=config)
            print(f"{env_id}: success {report['success_rate']:.3f}, {report['episodes']} episodes recorded")


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Stage 2: clone an expert's successful episodes into start policies that succeed sometimes."""

    env: ENV_IDS = EVERY_ENV
    fits: int = 10
    """Independent fits, with seeds from 0."""
    settings: Options = field(default_factory=dict)
    """Settings that differ from the task's (--dry-run prints them all), such as: low 0.01 high 0.05"""
    experts: Path = Path("runs/experts")
    """Where `sppo experts` left its episodes."""
    out: Path = Path("runs/starts")
    """Policies go to OUT/TASK/SEED.safetensors; use them with --start OUT/TASK."""
    dry_run: bool = False
    """Check everything, the expert's episodes too, and print the settings; fit and write nothing."""

    def __call__(self) -> None:
        tune_process()
        configs = [sft_config(env_id, **json_values(self.settings)) for env_id in _env_ids(self.env)]
        for config in configs:
            check_fits(config, self.experts / short_name(config.env_id), self.out, self.fits)
            if self.dry_run:
                print(config)
        for config in configs if not self.dry_run else ():
            made = fits(config, self.experts / short_name(config.env_id), self.out, self.fits)
            print(f"{config.env_id}\n{summary(made)}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print the table, and draw curves and report, of a folder of finished runs."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = Path("runs/compare")
    """The folder that `sppo compare` wrote."""

    def __call__(self) -> None:
        _report(self.out, None)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Record an animated picture of a trained policy."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    out: Path | None = None
    """The GIF to write; by default video.gif in the run folder."""
    episodes: int = 3
    """Episodes to show."""

    def __call__(self) -> None:
        from sppo.experiments.watch import watch

        print(watch(self.run, self.out, n_episodes=self.episodes))


Command = (
    Train
    | Compare
    | Experts
    | SFT
    | Eval
    | Calibrate
    | Annotated[PlanCommand, tyro.conf.subcommand("plan")]
    | Report
    | Watch
)


def main() -> None:
    """Parse the command line and do it; user errors end in one line."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: an id may name a module in the current folder
    try:
        command: Any = tyro.cli(
            Command,
            prog="sppo",
            description="Sequence-level PPO against token-level PPO on tasks with a verifiable outcome.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        command()
    except Interrupted:
        sys.exit("stopped; every run has its checkpoint: the same command with --resume goes on")
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (ValueError, OSError, ImportError, FloatingPointError, JobFailed, gym.error.Error) as error:
        sys.exit("sppo: " + " ".join(str(error).split()))


def _chosen(env_ids: tuple[str, ...], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Environments and text tasks as ids; options fit one domain alone, so only one may be asked for."""
    if env_ids and tasks:
        raise ValueError("--env and --task exclude each other: their options differ")
    return tuple(TEXT + name for name in tasks) or env_ids or (DEFAULT_ENV,)


def _train_shared(config: RunConfig, out: Path, resume: bool) -> bool:
    """Train in this process, with the other ranks; True on the first."""
    if not config.env_id.startswith(TEXT):
        raise ValueError(f"{config.env_id} trains in one process: torchrun is for text tasks")
    from sppo.experiments import text

    tune_process()
    ranks = text.ranks()
    with tqdm(total=100.0, bar_format=BAR, mininterval=0.5, disable=None if ranks.first else True) as bar:

        def report(folder: Path, share: float, success: float) -> None:
            bar.set_postfix_str(f"{config.agent} {success:.2f}", refresh=False)
            bar.update(100 * share - bar.n)

        try:
            run_shared(config, out, ranks, resume=resume, report=report)
        except Interrupted:
            if ranks.first:
                raise
            sys.exit(INTERRUPTED)
    ranks.leave()
    return bool(ranks.first)


def _env_ids(chosen: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(TASKS) if chosen == EVERY_ENV else chosen


def _report(out: Path, agents: tuple[str, ...] | None) -> None:
    from sppo.experiments.report import format_table, plot_curves, summarize, write_report

    table = summarize(out, agents)
    print(format_table(table))
    command = "sppo " + shlex.join(sys.argv[1:])
    for path in (*plot_curves(table, out / "curves"), write_report(out, command, agents)):
        print(path)


def _show(jobs: list[Job], resume: bool) -> None:
    """What a dry run does; of ranks, the first."""
    if os.environ.get("RANK", "0") != "0":
        return
    check(jobs, resume)
    for configs, folders in jobs:
        for config, folder in zip(configs, folders, strict=True):
            print(json.dumps({"folder": str(folder), **to_json(config)}))
            if config.env_id.startswith(TEXT):
                from sppo.experiments.text import fits as fits_memory

                print(fits_memory(config), file=sys.stderr)


if __name__ == "__main__":
    main()
