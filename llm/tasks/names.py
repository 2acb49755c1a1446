"""What to say of a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 40


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """`unknown task 'gms8k'; did you mean 'gsm8k'?`, or where nothing is near, what there is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"unknown {kind} {name!r}; did you mean {near[0]!r}?"
    shown = names if len(names) <= SHOWN else [*names[: SHOWN // 2], f"and {len(names) - SHOWN // 2} more"]
    return f"unknown {kind} {name!r}; known: {', '.join(shown)}"
