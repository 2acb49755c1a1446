"""Data files as rows: where they are, how they are read, and what is said when they cannot be."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def data_folder() -> Path:
    """`$SPPO_DATA`, or ../shared/data from the working directory."""
    return Path(os.environ.get("SPPO_DATA") or Path("..") / "shared" / "data")


def find_data(names: Sequence[str]) -> Path:
    """The first of these files that lies in the data folder.

    Raises:
        FileNotFoundError: naming what was looked for, where, and the variable that says where.
    """
    folder = data_folder()
    for name in names:
        if (folder / name).is_file():
            return folder / name
    says = f"$SPPO_DATA = {folder}" if os.environ.get("SPPO_DATA") else f"{folder}, the default of $SPPO_DATA"
    raise FileNotFoundError(f"no {' or '.join(names)} in {folder.resolve()} ({says})")


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a .jsonl, .json (a list, or columns), .parquet or .csv file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or has no rows.
        ImportError: for parquet without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path.resolve()}")
    reader = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}.get(
        path.suffix.lower()
    )
    if reader is None:
        raise ValueError(f"data file {path} must end in {', '.join(SUFFIXES)}")
    rows = reader(path)
    if not rows:
        raise ValueError(f"data file {path} is empty: it has no rows")
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    # Split at newlines only: a JSON string may hold U+2028, which splitlines cuts at.
    for i, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1):
        if line.strip():
            rows.append(_object(_load_json(line, f"{path}, line {i}"), f"{path}, line {i}"))
    return rows


def _read_json(path: Path) -> list[Row]:
    data = _load_json(path.read_text("utf-8-sig") or "[]", str(path))
    if isinstance(data, dict):
        columns = {name: column for name, column in data.items() if isinstance(column, list)}
        if not columns or len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"data file {path} must hold a list of rows, or columns of equal length")
        data = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [_object(row, f"{path}, row {i}") for i, row in enumerate(data)]


def _read_csv(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except csv.Error as error:
        raise ValueError(f"data file {path} cannot be read as CSV: {error}") from error
    for i, row in enumerate(rows):
        if None in row:
            raise ValueError(f"{path}, row {i} has more fields than the header")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install sppo[data]") from error
    try:
        return list(parquet.read_table(path).to_pylist())
    except Exception as error:  # pyarrow's errors have many types, OSError among them
        raise ValueError(f"data file {path} cannot be read as parquet: {error}") from error


def _load_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be an object with named columns, got {type(row).__name__}")
    return row


def schema_of(row: Mapping[str, Any]) -> str:
    """verl, gsm8k or columns, by the columns of a row."""
    if "reward_model" in row and "prompt" in row:
        return "verl"
    if "question" in row and re.search(r"####[^\n]*$", str(row.get("answer", ""))):
        return "gsm8k"
    return "columns"
