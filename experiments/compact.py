"""JSON with few digits, compressed: small enough to commit, and the same bytes for the same content."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from sppo.experiments import files

ENDING = ".json.gz"
DIGITS = 4
MADE = re.compile(r'(?<=[^\\]")/[^"]*/(?=runs/)')
"""Where the folder `runs` lies, before a path in it: a study reads what another folder's runs began with."""


def short(content: Any) -> Any:
    """Numbers to four digits, arrays as lists; what is not finite becomes None."""
    if isinstance(content, dict):
        return {name: short(value) for name, value in content.items()}
    if isinstance(content, np.ndarray):
        return short(content.tolist())
    if isinstance(content, list | tuple):
        return [short(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.{DIGITS}g}") if math.isfinite(content) else None
    return content


def write(content: Any, file: Path) -> Path:
    """The whole file or nothing of it; paths below the current folder, or a folder of `runs`, become relative to it."""
    text = json.dumps(content, separators=(",", ":")).replace(f'"{Path.cwd()}/', '"')
    text = MADE.sub("", text)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.replace(file, gzip.compress(text.encode(), mtime=0))
    return file


def read(file: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        ValueError: if it is missing, damaged, or holds something else.
    """
    try:
        return dict(json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise ValueError(f"{file} must be a file of compressed JSON ({ENDING}): {error}") from error
