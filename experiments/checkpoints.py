"""Checkpoints that survive a kill at any moment: written beside, verified by hash, renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sppo.agents import Agent

MANIFEST = "manifest.json"
KEEP = 2
PARTIAL = ".partial-"
"""Begins the names of folders that are being written or removed."""

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """An agent's state after so many updates."""

    folder: Path
    done: bool
    """True where the agent has nothing more to learn."""

    @property
    def update(self) -> int:
        return int(self.folder.name)


def save_checkpoint(agent: Agent, run: Path, done: bool = False) -> None:
    """Write the agent's state at its present update; the one before it is kept too."""
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)
    final = folder / f"{agent.n_updates:08d}"
    temporary = final.with_name(PARTIAL + final.name)
    try:
        agent.save(temporary)
        hashes = {path.name: _hash(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"done": done, "sha256": hashes}, indent=1) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if final.exists():
            _remove(final)
        os.replace(temporary, final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            error.errno, f"the checkpoint could not be written, the one before it holds: {error.strerror}", str(final)
        ) from error
    for old in _folders(run)[KEEP:]:
        _remove(old)


def good_checkpoints(run: Path, warn: Warn) -> Iterator[Checkpoint]:
    """Checkpoints that are whole, newest first; a damaged one is named and passed over."""
    folders = _folders(run)
    for folder in folders:
        try:
            yield _verified(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            older = "using the one before it" if folder != folders[-1] else "there is none before it"
            warn(f"the checkpoint {folder} is damaged ({error}); {older}")


def shared_checkpoints(runs: Sequence[Path], warn: Warn) -> list[Checkpoint]:
    """Where runs that learn side by side go on: one checkpoint each, all of the same update, the newest there is.

    A run that had nothing more to learn by then stays at its last. Empty where they share none.
    """
    own = [list(good_checkpoints(run, warn)) for run in runs]
    for update in sorted({c.update for some in own for c in some}, reverse=True):
        chosen = [[c for c in some if c.update == update or (c.done and c.update < update)] for some in own]
        if all(chosen):
            return [some[0] for some in chosen]
    return []


def remove_later(run: Path, update: int) -> None:
    """Remove the checkpoints beyond an update that a run goes back to: they would count as the newest."""
    for folder in _folders(run):
        if int(folder.name) > update:
            _remove(folder)


def saved_updates(run: Path) -> list[int]:
    """Updates with a checkpoint, whole or not, newest first."""
    return [int(folder.name) for folder in _folders(run)]


def _folders(run: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in (run / "checkpoints").glob("*") if path.name.isdigit()), reverse=True)


def _verified(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, want in manifest["sha256"].items():
        if _hash(folder / name) != want:
            raise ValueError(f"{name} has changed")
    return Checkpoint(folder, bool(manifest["done"]))


def _remove(folder: Path) -> None:
    """Renamed first, so that a kill leaves no half of it under its name."""
    doomed = folder.with_name(f"{PARTIAL}old-{folder.name}")
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
