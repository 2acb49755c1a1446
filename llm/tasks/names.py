"""What to say of a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """`no task 'gms8k': did you mean gsm8k? There are: ...`"""
    there = sorted(names)
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]}?" if near else "."
    shown = ", ".join(there) if len(there) <= 40 else f"{len(there)}, {', '.join(there[:20])}, ..."
    return f"no {kind} {name!r}{hint} There are: {shown}"
