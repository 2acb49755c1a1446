"""Reads finished runs off the disk: settings, evaluations on held-out start states, training metrics."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sppo.experiments.curves import area_under_curve
from sppo.experiments.stats import Floats
from sppo.experiments.tasks import TEXT

EVAL_COLUMNS = ("episodes", "env_steps", "seconds", "success_rate")
RUN_KEYS = ("agent", "env_id", "seed")


def units(env_id: str) -> tuple[str, str]:
    """What a task counts its episodes and steps in."""
    return ("responses", "tokens") if env_id.startswith(TEXT) else ("episodes", "env steps")


class Split(NamedTuple):
    """Starts that `sppo calibrate` measures at."""

    starts: str
    field: str  # of a `Run`

    @property
    def stem(self) -> str:
        """Of its files."""
        return self.field.replace("_", "-")


SPLITS = {
    "test": Split("held-out starts", "calibration"),
    "train": Split("training prompts", "calibration_train"),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run: its settings, its evaluations on held-out start states, its training metrics."""

    name: str  # its folder below the one that was read
    label: str  # the agent's folder name, so two settings of one agent can stand side by side
    env_id: str
    seed: int
    config: dict[str, Any]
    evals: dict[str, Floats]  # column -> (N,), episodes strictly increasing
    progress: dict[str, Floats]  # tag -> (U,), one entry per update, NaN where nothing was recorded
    success_rate: float
    seconds: float
    calibration: dict[str, Floats] = field(default_factory=dict)
    """Of `sppo calibrate`, where it was called: values (P,) and outcomes (P, n) at held-out starts."""
    calibration_train: dict[str, Floats] = field(default_factory=dict)
    """The same at prompts that it was trained on."""


def area(run: Run) -> float:
    """Under the run's learning curve, over its own budget in episodes."""
    return area_under_curve(run.evals["episodes"], run.evals["success_rate"], float(run.evals["episodes"][-1]))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _read_columns(path: Path) -> dict[str, Floats]:
    """Columns of a CSV of numbers; empty cells and words that are not numbers become NaN."""

    def number(cell: str | None) -> float:
        try:
            return float(cell) if cell else float("nan")
        except ValueError:
            return float("nan")

    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} must be a readable CSV: {error}") from error
    return {name: np.array([number(row[name]) for row in rows], dtype=np.float64) for name in names}


def _read_evals(path: Path) -> dict[str, Floats]:
    columns = _read_columns(path)
    for name in EVAL_COLUMNS:
        if name not in columns:
            raise ValueError(f"{path} must have the column {name}, got {', '.join(columns) or 'an empty file'}")
        if len(columns[name]) == 0:
            raise ValueError(f"{path} must have at least one row below its header")
        bad = np.flatnonzero(~np.isfinite(columns[name]))
        if len(bad):
            raise ValueError(f"{path} must hold finite numbers, column {name} does not in line {bad[0] + 2}")
        if name != "success_rate" and (np.diff(columns[name]) < 0).any():
            line = int(np.argmax(np.diff(columns[name]) < 0)) + 3
            raise ValueError(f"{path} must not go back, column {name} falls in line {line}")
    # The last evaluation of a run may stand at the same count as the one before: the later one holds.
    keep = np.append(np.diff(columns["episodes"]) > 0, True)
    kept = {name: values[keep] for name, values in columns.items()}
    if (np.diff(kept["env_steps"]) <= 0).any():
        raise ValueError(f"{path} must count more env_steps at every row with more episodes")
    return kept


def _calibrated(path: Path) -> dict[str, Floats]:
    content = _read_json(path) if path.is_file() else {}
    return {name: np.array(content[name]) for name in ("values", "outcomes") if name in content}


def _folders(out_dir: Path) -> Iterator[Path]:
    """Run folders under out_dir, in the order of their paths; what lies inside a run folder is the run's own."""
    config = out_dir / "config.json"
    if config.is_file():
        missing = [key for key in RUN_KEYS if key not in _read_json(config)]
        if not missing:
            yield out_dir
            return
        if (out_dir / "evals.csv").exists() or (out_dir / "result.json").exists():
            raise ValueError(f"{config} must have the keys {', '.join(RUN_KEYS)}, it lacks {', '.join(missing)}")
    for child in sorted(p for p in out_dir.iterdir() if p.is_dir() and not p.is_symlink()):
        yield from _folders(child)


def _load(path: Path, name: str) -> Run | str:
    """The run, or why it counts as unfinished."""
    if not (path / "result.json").is_file():
        return "no result.json"
    result = _read_json(path / "result.json")
    if result.get("finished") is not True:
        return "result.json does not say finished"
    config = _read_json(path / "config.json")
    for key in ("success_rate", "seconds"):
        value = result.get(key)
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise ValueError(f"{path / 'result.json'} must give {key} as a finite number, got {value!r}")
    if not isinstance(config["seed"], int):
        raise ValueError(f"{path / 'config.json'} must give seed as an integer, got {config['seed']!r}")
    progress = path / "progress.csv"
    return Run(
        name=name,
        label=path.parent.name if re.fullmatch(r"seed[-_]?\d+", path.name) else str(config["agent"]),
        env_id=str(config["env_id"]),
        seed=config["seed"],
        config=config,
        evals=_read_evals(path / "evals.csv"),
        progress=_read_columns(progress) if progress.is_file() else {},
        success_rate=float(result["success_rate"]),
        seconds=float(result["seconds"]),
        **{split.field: _calibrated(path / f"{split.stem}.json") for split in SPLITS.values()},
    )


def load_runs(out_dir: Path | str) -> tuple[list[Run], list[tuple[Path, str]]]:
    """All finished runs under a folder, and the unfinished ones with what they lack.

    Raises:
        ValueError: no such folder, no finished run in it, or a file that is damaged; the message names it.
    """
    out = Path(out_dir)
    if not out.is_dir():
        raise ValueError(f"{out} must be a folder of runs, there is none")
    runs: list[Run] = []
    unfinished: list[tuple[Path, str]] = []
    for path in _folders(out):
        run = _load(path, str(path.relative_to(out)))
        if isinstance(run, str):
            unfinished.append((path, run))
        else:
            runs.append(run)
    if not runs:
        told = "; ".join(f"{path}: {why}" for path, why in unfinished) or "no folder with a config.json"
        raise ValueError(f"{out} must hold at least one finished run, found {told}")
    return runs, unfinished
