"""Files that a reader finds as they were or as they are, never a part of them."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Write beside the file, then rename: a kill or a full disk half way through costs nothing."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    temporary.replace(path)
