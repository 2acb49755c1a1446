"""The command line: `sppo train | compare | experts | sft | eval | calibrate | plan | recipe | study |
redraw | why | report | watch`."""

# ruff: noqa: E402 - the thread counts are set before NumPy is imported
from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

# Before NumPy is imported: the arrays are small, and whole runs go to separate processes.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import gymnasium as gym
import tyro

from sppo.envs import episodes
from sppo.experiments.calibration import Calibrate
from sppo.experiments.compare import JobFailed
from sppo.experiments.evaluate import Eval
from sppo.experiments.evidence.commands import Redraw, StudyCommand
from sppo.experiments.evidence.why import Why
from sppo.experiments.plan_command import PlanCommand
from sppo.experiments.process import tune_process
from sppo.experiments.recipes import ShowRecipe
from sppo.experiments.run import Interrupted
from sppo.experiments.run_commands import ENV_IDS, EVERY_ENV, Compare, Options, Train, env_ids_of, print_report
from sppo.experiments.settings import json_values
from sppo.experiments.sft import check_fits, fits, sft_config, summary
from sppo.experiments.tasks import short_name

# What draws, or trains experts, is imported by the commands that do so: it takes a second to load, and every worker
# process loads this file.


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

        configs = {env_id: expert_config(env_id, **json_values(self.settings)) for env_id in env_ids_of(self.env)}
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
        configs = [sft_config(env_id, **json_values(self.settings)) for env_id in env_ids_of(self.env)]
        for config in configs:
            check_fits(config, self.experts / short_name(config.env_id), self.out, self.fits)
            if self.dry_run:
                print(config)
        for config in configs if not self.dry_run else ():
            made = fits(config, self.experts / short_name(config.env_id), self.out, self.fits)
            print(f"{config.env_id}\n{summary(made)}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Print the table, and draw curves and report, of finished runs."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = Path("runs/compare")
    """The folder that `sppo compare` wrote, or a file of packed runs, such as docs/results/figure.json.gz."""
    agents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AGENT ...")] = ()
    """Which of its agents; the others are measured against the first. By default all, against PPO."""
    out: Path | None = None
    """Where curves, report and the packed runs go; by default SOURCE; for a file, runs/reports/NAME."""

    def __call__(self) -> None:
        print_report(self.source, self.agents or None, self.out)


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
    | Annotated[ShowRecipe, tyro.conf.subcommand("recipe")]
    | Report
    | Annotated[StudyCommand, tyro.conf.subcommand("study")]
    | Redraw
    | Why
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


if __name__ == "__main__":
    main()
