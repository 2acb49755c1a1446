"""What a run leaves to look at: JSON lines, CSV and TensorBoard events, all of the same numbers, and texts.

The JSON lines are the record; CSV and events are made from them, so a run that goes on after a kill rewinds its record
to the checkpoint and writes the others anew: no step appears twice.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import indent
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from sppo.experiments import files
from sppo.experiments.board import LAYOUT, session

Record = dict[str, Any]
PROGRESS, EVALS, COMPLETIONS = "progress.jsonl", "evals.jsonl", "completions.jsonl"
UPDATE = {PROGRESS: "time/n_updates", EVALS: "n_updates", COMPLETIONS: "n_updates"}
TABLES = (PROGRESS, EVALS)


class RunLog:
    """The log of one run.

    Args:
        folder: the run's.
        keep_updates: rewind the record to this update; 0 for a fresh run.
    """

    def __init__(self, folder: Path, keep_updates: int = 0) -> None:
        self.folder = folder
        kept = {name: _rewind(folder / name, UPDATE[name], keep_updates) for name in UPDATE}
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        self.writer = SummaryWriter(str(folder))
        self.writer.add_custom_scalars(LAYOUT)
        self.files = {name: self._open(name) for name in TABLES}
        self.tables = {name: _Table(folder / name.replace(".jsonl", ".csv"), kept[name]) for name in TABLES}
        for record in kept[PROGRESS]:
            self._scalars(record)
        for _, records in groupby(kept[COMPLETIONS], key=lambda record: (record["n_updates"], record["split"])):
            self._texts(list(records))

    def _open(self, name: str) -> TextIO:
        return (self.folder / name).open("a", encoding="utf-8")

    def update(self, metrics: Mapping[str, float]) -> None:
        """One update's metrics."""
        self._append(PROGRESS, metrics)
        self._scalars(metrics)

    def evaluation(self, record: Mapping[str, float]) -> None:
        """One evaluation on held-out starts."""
        self._append(EVALS, record)
        for file in (*self.files.values(), *(table.file for table in self.tables.values())):
            file.flush()  # for whoever watches a long run

    def completions(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Responses of one update or evaluation: n_updates, env_steps, split, prompt, response, reward, reason, ..."""
        if COMPLETIONS not in self.files:  # control runs have none
            self.files[COMPLETIONS] = self._open(COMPLETIONS)
        for record in records:
            self.files[COMPLETIONS].write(json.dumps(record) + "\n")
        self._texts(records)

    def _texts(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Only evaluations: they answer the same prompts every time."""
        if records and records[0]["split"] == "test":
            shown = "\n\n---\n\n".join(_markdown(record) for record in records)
            self.writer.add_text("completions/test", shown, int(records[0]["env_steps"]))

    def flush(self) -> None:
        """Bring everything to the disk, so that no checkpoint knows more than the record."""
        try:
            for file in (*self.files.values(), *(table.file for table in self.tables.values())):
                file.flush()
            for record in self.files.values():
                os.fsync(record.fileno())
            self.writer.flush()
        except OSError as error:
            raise _unwritable(error, self.folder) from error

    def results(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Settings and final results, for TensorBoard's HPARAMS tab."""
        final = {f"final/{name}": value for name, value in results.items()}
        for summary in session(settings, final):
            self.writer._get_file_writer().add_summary(summary)
        for name, value in final.items():
            self.writer.add_scalar(name, value, 0)

    def close(self) -> None:
        self.flush()
        self._release()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What cannot be written any more, on a full disk, must not hide the error that ended the run."""
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(OSError):
                self.flush()
            self._release()

    def _release(self) -> None:
        for file in (*self.files.values(), *(table.file for table in self.tables.values())):
            with contextlib.suppress(OSError):
                file.close()
        with contextlib.suppress(OSError):
            self.writer.close()

    def _append(self, name: str, record: Mapping[str, float]) -> None:
        # JSON has no nan: what cannot be said is left out.
        finite = {k: v for k, v in record.items() if math.isfinite(v)}
        self.files[name].write(json.dumps(finite) + "\n")
        self.tables[name].append(finite)

    def _scalars(self, record: Mapping[str, float]) -> None:
        step = int(record["time/total_timesteps"])
        for tag, value in record.items():
            if math.isfinite(value):
                self.writer.add_scalar(tag, value, step)


def _markdown(record: Mapping[str, Any]) -> str:
    verdict = f"reward {record['reward']:g} ({record['reason']}), {record['length']} tokens"
    texts = (indent(record[name] or " ", " " * 4, lambda line: True) for name in ("prompt", "response"))
    return "\n\n".join([*texts, verdict + ("" if record["stopped"] else ", cut off")])


class _Table:
    """A CSV whose header grows: a new column writes the file anew."""

    def __init__(self, path: Path, records: Iterable[Record]) -> None:
        self.path, self.records = path, list(records)
        self.columns: list[str] = []
        self.file = path.open("w", newline="", encoding="utf-8")
        self._rewrite({})

    def append(self, record: Record) -> None:
        self.records.append(record)
        if record.keys() - set(self.columns):
            self._rewrite(record)
        else:
            self.writer.writerow(record)

    def _rewrite(self, record: Record) -> None:
        self.file.close()
        for known in (*self.records, record):
            self.columns += [name for name in known if name not in self.columns]
        self.file = self.path.open("w", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.file, self.columns, restval="")
        self.writer.writeheader()
        self.writer.writerows(self.records)


def _rewind(path: Path, update: str, keep_updates: int) -> list[Record]:
    """Cut a record back to what a checkpoint knows; a line that a kill cut short goes too."""
    kept: list[Record] = []
    if not path.exists():
        return kept
    if keep_updates > 0:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record[update] > keep_updates:
                break
            kept.append(record)
    try:
        files.replace(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    except OSError as error:
        raise _unwritable(error, path.parent) from error
    return kept


def _unwritable(error: OSError, folder: Path) -> OSError:
    return OSError(error.errno, f"the log could not be written: {error.strerror}", str(folder))
