"""The command line: `sppo train | compare | experts | sft | report | watch`."""

# ruff: noqa: E402 - the thread counts are set before NumPy is imported
from __future__ import annotations

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

import tyro

from sppo.agents import AGENTS
from sppo.envs import episodes
from sppo.experiments.compare import JobFailed, execute, plan
from sppo.experiments.config import RunConfig, read_config, resolve, to_json
from sppo.experiments.experts import expert_config, train_expert
from sppo.experiments.process import tune_process
from sppo.experiments.report import format_table, plot_curves, summarize, write_report
from sppo.experiments.run import Interrupted
from sppo.experiments.sft import fits, sft_config, summary
from sppo.experiments.tasks import TASKS, short_name
from sppo.experiments.watch import watch

Options = Annotated[dict[str, str], tyro.conf.arg(metavar="NAME VALUE [NAME VALUE ...]")]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What `train` and `compare` share."""

    env_options: Options = field(default_factory=dict)
    """Options of the environment (its dials), such as: horizon 100 tolerance 1.0"""
    settings: Options = field(default_factory=dict)
    """Settings of the agents that differ from the defaults, such as: learning_rate 1e-3 n_epochs 2"""
    start: str = "auto"
    """The start policy: auto (the one that ships for the task and seed, if any), none, a file, or a folder of files
    named by seed."""
    episodes: int | None = None
    """Budget in episodes; by default the paper's for the task, 10 000 for others."""
    steps: int | None = None
    """Budget in environment steps, beside the one in episodes."""
    evals: int = 20
    """Evaluations during a run, evenly spaced."""
    eval_episodes: int = 256
    """Held-out start states of each evaluation, with sampled actions, outside the budget."""
    stop_at_success: float | None = None
    """End a run once an evaluation reaches this success rate."""
    checkpoint_freq: int = 20
    """Updates between checkpoints."""
    resume: bool = False
    """Go on with runs that were stopped."""
    dry_run: bool = False
    """Check everything and print the resolved configs; run nothing."""

    def base(self) -> RunConfig:
        return RunConfig(
            env_kwargs=_values(self.env_options),
            settings=_values(self.settings),
            start=self.start,
            total_episodes=self.episodes,
            total_steps=self.steps,
            n_evals=self.evals,
            n_eval_episodes=self.eval_episodes,
            stop_at_success=self.stop_at_success,
            checkpoint_freq=self.checkpoint_freq,
        )


@dataclass(frozen=True, kw_only=True)
class Train(_Run):
    """Train one agent on one task."""

    env: str = "sppo/PrecisionCartPole-v0"
    """A registered environment id."""
    agent: str = "sppo"
    """One of: ppo, ppo-bce, sppo, tracker, reinforce."""
    seed: int = 0
    """Of start states, actions, minibatches and initial weights; and which start policy."""
    config: Path | None = None
    """Run this config.json (or the run folder that holds it) again; the other options but --out, --resume and
    --dry-run are ignored."""
    out: Path | None = None
    """The run's folder; by default runs/TASK/AGENT/seedK."""

    def __call__(self) -> None:
        config = replace(self.base(), agent=self.agent, env_id=self.env, seed=self.seed)
        config = resolve(read_config(self.config) if self.config else config)
        out = self.out or Path("runs") / short_name(config.env_id) / config.agent / f"seed{config.seed}"
        jobs = [([config], [out])]
        if not _dry(jobs, self.dry_run):
            execute(jobs, resume=self.resume)
            print(f"{out}: success {json.loads((out / 'result.json').read_text())['success_rate']:.3f}")


@dataclass(frozen=True, kw_only=True)
class Compare(_Run):
    """Train several agents from the same start policies with the same seeds, and report who is ahead."""

    env: tuple[str, ...] = ("sppo/PrecisionCartPole-v0",)
    """Registered environment ids; "all" for the five tasks of the paper."""
    agents: tuple[str, ...] = ("ppo", "sppo")
    """Any of: ppo, ppo-bce, sppo, tracker, reinforce; "all" for every one."""
    seeds: int = 5
    """How many seeds, from 0."""
    processes: int | None = None
    """How many at a time; by default one per processor."""
    out: Path = Path("runs/compare")
    """Where the run folders, the table, the curves and the report go."""

    def __call__(self) -> None:
        agents = tuple(AGENTS) if self.agents == ("all",) else self.agents
        env_ids = tuple(TASKS) if self.env == ("all",) else self.env
        jobs = plan(self.base(), agents, env_ids, self.seeds, self.out)
        if not _dry(jobs, self.dry_run):
            execute(jobs, processes=self.processes, resume=self.resume)
            _report(self.out, agents)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Stage 1: train an expert with stable-baselines3 on each task's dense variant, and record its successes."""

    env: tuple[str, ...] = ("all",)
    """Registered environment ids; "all" for the five tasks of the paper."""
    settings: Options = field(default_factory=dict)
    """Settings that differ from the task's, such as: total_timesteps 100000"""
    out: Path = Path("runs/experts")
    """Episodes go to OUT/TASK."""
    dry_run: bool = False
    """Print the settings; train nothing."""

    def __call__(self) -> None:
        for env_id in tuple(TASKS) if self.env == ("all",) else self.env:
            episodes(env_id)
            config = expert_config(env_id, **_values(self.settings))
            if self.dry_run:
                print(config)
                continue
            report = train_expert(env_id, self.out / short_name(env_id), config=config)
            print(f"{env_id}: success {report['success_rate']:.3f}, {report['episodes']} episodes recorded")


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Stage 2: clone an expert's successful episodes into start policies that succeed sometimes."""

    env: tuple[str, ...] = ("all",)
    """Registered environment ids; "all" for the five tasks of the paper."""
    fits: int = 10
    """Independent fits, with seeds from 0."""
    settings: Options = field(default_factory=dict)
    """Settings that differ from the task's, such as: low 0.01 high 0.05"""
    experts: Path = Path("runs/experts")
    """Where `sppo experts` left its episodes."""
    out: Path = Path("runs/starts")
    """Policies go to OUT/TASK/SEED.safetensors; use them with --start OUT/TASK."""
    dry_run: bool = False
    """Print the settings; fit nothing."""

    def __call__(self) -> None:
        tune_process()
        for env_id in tuple(TASKS) if self.env == ("all",) else self.env:
            episodes(env_id)
            config = sft_config(env_id, **_values(self.settings))
            if self.dry_run:
                print(config)
                continue
            print(f"{env_id}\n{summary(fits(config, self.experts / short_name(env_id), self.out, self.fits))}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print the table, and draw curves and report, of a folder of finished runs."""

    out: Annotated[Path, tyro.conf.Positional] = Path("runs/compare")
    """The folder that `sppo compare` wrote."""

    def __call__(self) -> None:
        _report(self.out, None)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Record an animated picture of a trained policy."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder."""
    out: Path | None = None
    """The GIF to write; by default video.gif in the run folder."""
    episodes: int = 3
    """Episodes to show."""

    def __call__(self) -> None:
        print(watch(self.run, self.out, n_episodes=self.episodes))


Command = Train | Compare | Experts | SFT | Report | Watch


def main() -> None:
    """Parse the command line and do it; user errors end in one line."""
    try:
        tyro.cli(Command, prog="sppo", description=__doc__)()
    except Interrupted:
        sys.exit("stopped; every run has its checkpoint: the same command with --resume goes on")
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (ValueError, OSError, ImportError, FloatingPointError, JobFailed) as error:
        sys.exit(f"sppo: {error}")


def _report(out: Path, agents: tuple[str, ...] | None) -> None:
    table = summarize(out, agents)
    print(format_table(table))
    command = "sppo " + shlex.join(sys.argv[1:])
    for path in (*plot_curves(table, out / "curves"), write_report(out, command, agents)):
        print(path)


def _dry(jobs: Any, dry_run: bool) -> bool:
    if dry_run:
        for configs, folders in jobs:
            for config, folder in zip(configs, folders, strict=True):
                episodes(config.env_id, **config.env_kwargs)
                print(json.dumps({"folder": str(folder), **to_json(config)}))
    return dry_run


def _values(options: dict[str, str]) -> dict[str, Any]:
    """JSON values where they are such (numbers, true, null, [64,64]), else words."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {name.replace("-", "_"): value(text) for name, text in options.items()}


if __name__ == "__main__":
    main()
