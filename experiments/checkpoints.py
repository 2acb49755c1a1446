"""Checkpoints that survive a kill at any moment: written beside, verified by hash, renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sppo.agents import Agent

MANIFEST = "manifest.json"
KEEP = 2


def save_checkpoint(agent: Agent, run: Path) -> None:
    """Write the agent's state at its present update; the one before it is kept too."""
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover)
    final, temporary = folder / f"{agent.n_updates:08d}", folder / f".writing-{agent.n_updates:08d}"
    try:
        agent.save(temporary)
        hashes = {path.name: _hash(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            error.errno, f"the checkpoint could not be written, the one before it holds: {error.strerror}", str(final)
        ) from error
    for old in saved_updates(run)[KEEP:]:
        shutil.rmtree(folder / f"{old:08d}")


def saved_updates(run: Path) -> list[int]:
    """Updates with a checkpoint, newest first."""
    return sorted((int(path.name) for path in (run / "checkpoints").glob("[0-9]*")), reverse=True)


def good_updates(run: Path, warn: Callable[[str], None]) -> Iterator[int]:
    """Updates whose checkpoint is whole, newest first; a damaged one is named and passed over."""
    for update in saved_updates(run):
        folder = checkpoint(run, update)
        problem = _damage(folder)
        if problem is None:
            yield update
        else:
            warn(f"the checkpoint {folder} is damaged ({problem}); using the one before it")


def checkpoint(run: Path, update: int) -> Path:
    """The folder of an update's checkpoint."""
    return run / "checkpoints" / f"{update:08d}"


def _damage(folder: Path) -> str | None:
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        for name, want in hashes.items():
            if _hash(folder / name) != want:
                return f"{name} has changed"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
