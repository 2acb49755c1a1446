"""`sppo study` and `sppo redraw`: run what docs/RESULTS.md rests on, and draw it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tqdm.auto import tqdm

from sppo.experiments.compact import ENDING
from sppo.experiments.compare import execute
from sppo.experiments.evidence.studies import (
    CARTPOLE,
    CARTPOLE_HORIZONS,
    CARTPOLE_SEEDS,
    RESULTS,
    STARTS_MADE,
    STUDIES,
    WINDOWS,
    study,
)
from sppo.experiments.evidence.text_starts import FOLDER, make_text_starts
from sppo.experiments.packed import pack
from sppo.experiments.results import load_runs
from sppo.experiments.settings import check_made
from sppo.experiments.tasks import short_name

if TYPE_CHECKING:
    from sppo.experiments.sft import SFTConfig

EXPERTS = Path("runs/experts")


def make_starts(wanted: Collection[Path]) -> None:
    """The clones of these folders, of the map over CartPole, and an expert for each horizon, where they are missing.

    Raises:
        ValueError: if some that are there were cloned, or the expert that is there trained, with other settings.
    """
    from sppo.experiments.sft import sft_config

    for horizon in CARTPOLE_HORIZONS:
        env_kwargs = {"horizon": horizon}
        expert = EXPERTS / f"h{horizon}" / short_name(CARTPOLE)
        for low, high in WINDOWS.items():
            config = sft_config(CARTPOLE, env_kwargs=env_kwargs, low=low, high=high)
            folder = STARTS_MADE / f"{horizon}" / f"{low:g}" / short_name(CARTPOLE)
            files = [folder / f"{seed}.safetensors" for seed in CARTPOLE_SEEDS] if folder in wanted else []
            missing = [file for file in files if not file.exists()]
            for file in set(files) - set(missing):
                check_made(file.with_suffix(".json"), config, free=("seed",))
            if missing:
                _have_expert(env_kwargs, expert)
            for file in tqdm(missing, desc=str(folder), disable=None):
                _make_start(config, expert, file)


def _have_expert(env_kwargs: dict[str, Any], folder: Path) -> None:
    """The expert of these options, trained where it is missing."""
    from sppo.experiments.experts import expert_config, train_expert

    config = expert_config(CARTPOLE, env_kwargs=env_kwargs)
    if (folder / "episodes.safetensors").exists():
        check_made(folder / "expert.json", config)
    else:
        train_expert(CARTPOLE, folder, config=config)


def _make_start(config: SFTConfig, expert: Path, file: Path) -> None:
    """The clone of a seed; where that jumps over the window, of the seed a hundred later, and so on."""
    from sppo.experiments.sft import WindowMissed, clone, read_demonstrations

    for seed in range(int(file.stem), 1000, 100):
        try:
            clone(replace(config, seed=seed), read_demonstrations(expert), file)
            return
        except WindowMissed as error:
            missed = error
    raise missed


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """Run one of the studies behind docs/RESULTS.md, or go on with it: its finished runs stay as they are."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help=f"One of: {', '.join(STUDIES)}.")]
    only: str = ""
    """Runs whose name begins so, such as: Pendulum-v0/ppo; one of several names lies under the first of them."""
    out: Path | None = None
    """The folder of its runs; by default runs/NAME."""
    processes: int | None = None
    """How many at a time; by default one per processor. No effect on results."""

    def __call__(self) -> None:
        chosen, out = study(self.name), self.out or Path("runs") / self.name
        runs = chosen.named(self.only)
        if not runs:
            names = [name for name, _ in chosen.runs()]
            raise ValueError(f"no run of {self.name} begins with {self.only!r}; the first is {[*names, 'none'][0]}")
        starts = {start for _, config in runs if (start := Path(config.start)).is_relative_to(STARTS_MADE)}
        if of_text := {start for start in starts if start.is_relative_to(FOLDER)}:
            make_text_starts(of_text)
        if of_control := starts - of_text:
            make_starts(of_control)
        jobs = chosen.jobs(out, self.only)
        print(f"{chosen.question}: {sum(len(configs) for configs, _ in jobs)} runs, to {out}")
        execute(jobs, processes=self.processes, resume=True)
        print(pack(chosen.under_all_names(load_runs(out)[0]), out / f"{self.name}{ENDING}"))


@dataclass(frozen=True, kw_only=True)
class Redraw:
    """Print the tables behind docs/RESULTS.md and draw its figures, from the packed runs of the studies."""

    results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")] = RESULTS
    """The folder of packed runs: NAME.json.gz for each study."""
    out: Path = Path("docs/images")
    """Where the figures go."""
    tables: Path = Path("docs/results/tables.txt")
    """Where the tables go, which are printed too."""

    def __call__(self) -> None:
        from sppo.experiments import files
        from sppo.experiments.evidence.findings import redraw

        told = redraw(self.results, self.out) + "\n"
        self.tables.parent.mkdir(parents=True, exist_ok=True)
        files.replace(self.tables, told.encode())
        print(told, end="")
