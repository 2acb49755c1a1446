"""The folders of runs: whose each is, and what is written into it whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppo.agents import AGENTS
from sppo.experiments import files
from sppo.experiments.checkpoints import saved_updates
from sppo.experiments.config import RunConfig, read_config, to_json
from sppo.experiments.domains import agent_settings
from sppo.experiments.process import locked


def check_folders(configs: Sequence[RunConfig], folders: Sequence[Path], resume: bool) -> None:
    """A run's folder must be new or empty, or hold the same run, to be resumed.

    Raises:
        ValueError: if one holds another run, or the same without `resume`, or something else.
    """
    for config, folder in zip(configs, folders, strict=True):
        if (folder / "config.json").exists():
            difference = _difference(_as_now(read_config(folder)), config)
            if difference and not saved_updates(folder) and not is_finished(folder):
                continue  # it failed before its first checkpoint: nothing is lost by starting anew
            if difference:
                raise ValueError(f"{folder} holds another run: {difference}; --out names another folder")
            if not resume:
                raise ValueError(
                    f"{folder} already holds this run; --resume goes on with it, --out names another folder"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run; --out names another folder")


def _as_now(config: RunConfig) -> RunConfig:
    """A run's config with the settings that its agent has got since, at their defaults."""
    return dataclasses.replace(config, settings=agent_settings(config)) if config.agent in AGENTS else config


def _difference(old: RunConfig, new: RunConfig) -> str:
    """The first field in which two configs differ, in words."""
    for field in dataclasses.fields(RunConfig):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if isinstance(was, dict):
            for name in sorted(was.keys() | now.keys()):
                if name == "ranks" and was.get(name) != now.get(name):
                    return f"it is shared by {was.get(name) or 'no'} ranks, not by {now.get(name) or 'no'}"
                if was.get(name) != now.get(name):
                    return f"its {name} is {was.get(name)!r}, not {now.get(name)!r}"
        elif was != now:
            return f"its {field.name} is {was!r}, not {now!r}"
    return ""


def prepare(configs: Sequence[RunConfig], folders: Sequence[Path], resume: bool) -> None:
    """Make the runs' folders with their configs, after all have been checked.

    Raises:
        ValueError: see `check_folders`; nothing has been written then.
    """
    check_folders(configs, folders, resume)
    for config, folder in zip(configs, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        with locked([folder], 0):
            if not (folder / "config.json").exists() or _difference(_as_now(read_config(folder)), config):
                write_whole(folder / "config.json", to_json(config))


def write_whole(path: Path, content: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part."""
    files.replace(path, (json.dumps(content, indent=1) + "\n").encode())


def is_finished(folder: Path) -> bool:
    """True where the run has its result."""
    return (folder / "result.json").exists()
