"""Finished runs in one compressed file: small enough to commit, and all that tables and figures need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo.experiments import compact
from sppo.experiments.compact import ENDING, short
from sppo.experiments.results import SPLITS, Run
from sppo.experiments.stats import Floats

BINS = 25
"""Means that stand for a training metric, which has a value per update."""
CALIBRATIONS = tuple(split.field for split in SPLITS.values())
ARRAYS = ("evals", "progress", *CALIBRATIONS)
CLOCKS = ("time/total_episodes", "time/total_timesteps")
"""Metrics of time that are kept: against which others are drawn."""


def pack(runs: Sequence[Run], file: Path) -> Path:
    """Write runs: evaluations to six decimals, training metrics as at most 25 means each to four digits."""
    content = [
        {
            **{name: getattr(run, name) for name in ("name", "label", "env_id", "seed", "config")},
            "evals": {column: np.round(values, 6).tolist() for column, values in run.evals.items()},
            "progress": {
                tag: short(_means(values))
                for tag, values in run.progress.items()
                if not tag.startswith("time/") or tag in CLOCKS
            },
            "success_rate": run.success_rate,
            "seconds": run.seconds,
            **{of: short(found) for of in CALIBRATIONS if (found := getattr(run, of))},
        }
        for run in runs
    ]
    return compact.write({"runs": content}, file)


def unpack(file: Path) -> list[Run]:
    """The runs that `pack` wrote.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    content = compact.read(file)
    try:
        return [Run(**{**run, **{of: _arrays(run[of]) for of in ARRAYS if of in run}}) for run in content["runs"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} must be a file of packed runs ({ENDING}): {error}") from error


def _means(values: Floats) -> Floats:
    """Of consecutive updates, in at most as many bins; NaN where nothing was recorded."""
    if len(values) <= BINS:
        return values
    parts = np.array_split(values, BINS)
    return np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in parts])


def _arrays(columns: dict[str, Any]) -> dict[str, Floats]:
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
