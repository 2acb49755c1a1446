"""One killable process that compares answers: run as a script, so that it imports neither sppo nor torch.

Jobs arrive on stdin as length-prefixed pickles of (kind, arguments, seconds), written by the parent alone; verdicts
leave as JSON lines. An answer may hang in C code that no Python signal handler interrupts: the parent then kills this
process, and should the parent be gone, SIGALRM's default action does.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MEMORY = 4 << 30  # bytes of address space: a tower of powers ends in MemoryError and not in swap


@lru_cache(maxsize=4096)
def parse(text: str) -> list[Any]:
    """What math-verify reads in the inside of a box; [] where it reads nothing."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as parse_math
    from math_verify.parser import NormalizationConfig

    # Units are stripped by the parent, which knows "5t" from "5 tonnes"; math-verify takes both for 5.
    reading = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last", equations=False
    )
    target = LatexExtractionConfig(boxed_match_priority=0, normalization_config=reading)
    return list(parse_math(f"\\boxed{{{text}}}", [target], fallback_mode="no_fallback", parsing_timeout=None))


def far(gold: Any, answer: Any) -> bool:
    """True where both are numbers that differ by more than 1e-12 of the greater: small ones are 0 to math-verify."""
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    a, b = gold.doit().evalf(30), answer.doit().evalf(30)
    return bool(abs(a - b) > max(abs(a), abs(b)) * 10**-12)


def compare(gold: str, answer: str) -> str:
    """The reason for the verdict: ok, wrong, unparsable or bad_gold."""
    from math_verify import verify

    expected = parse(gold)
    if not expected:
        return "bad_gold"
    read = parse(answer)
    if not read:
        return "unparsable"
    # Ten decimals: the six of the default take 1.414214 for the root of 2.
    if not verify(expected, read, float_rounding=10, allow_set_relation_comp=True, timeout_seconds=None):
        return "wrong"
    # A percentage may stand for its number of per cent, which is a hundred times its value.
    if "%" not in gold + answer and far(expected[0], read[0]):
        return "wrong"
    return "ok"


@lru_cache(maxsize=16)
def scorer(name: str, options: bytes) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(name, seed=0, size=1, **pickle.loads(options))


def draw_reasoning(name: str, options: bytes, seeds: dict[str, int], sizes: dict[str, int]) -> dict[str, list[Any]]:
    """Split -> entries. Some datasets walk through sets, so they are the same in every run only under one hash seed."""
    from reasoning_gym import create_dataset

    drawn = {}
    for split, seed in seeds.items():
        # codeio runs code that draws from the global generators; this process is for nothing else.
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed % 2**32)
        data = create_dataset(name, seed=seed, size=sizes[split], **pickle.loads(options))
        drawn[split] = [data[i] for i in range(len(data))]
    return drawn


def score_reasoning(name: str, options: bytes, entry: dict[str, Any], answer: str) -> float:
    """reasoning-gym's own score of an answer to an entry."""
    return float(scorer(name, options).score_answer(answer, entry))


def import_reasoning() -> str:
    """For new workers: the import alone takes seconds."""
    import reasoning_gym

    return str(reasoning_gym.__version__)


def sleep(seconds: float) -> str:
    """For tests: a job that takes its time."""
    import time

    time.sleep(seconds)
    return "ok"


def modules() -> list[str]:
    """For tests: what this process has imported."""
    return sorted(sys.modules)


def die() -> None:
    """For tests: what a crash in C code does."""
    os._exit(1)


JOBS: dict[str, Callable[..., Any]] = {
    "compare": compare,
    "reasoning": score_reasoning,
    "import_reasoning": import_reasoning,
    "sleep": sleep,
    "modules": modules,
    "die": die,
}


def once() -> None:
    """Draw the questions that stdin describes, as a pickle on stdout."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    pickle.dump(draw_reasoning(*pickle.load(sys.stdin.buffer)), output)
    output.close()


def main() -> None:
    """Answer jobs until stdin ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError):
        pass  # not every system limits address space; the wall clock still does
    # Whatever libraries print must not mix with the verdicts.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(3000)
    jobs = sys.stdin.buffer
    while header := jobs.read(4):
        kind, arguments, seconds = pickle.loads(jobs.read(struct.unpack("<I", header)[0]))
        signal.alarm(int(seconds) + 5)
        try:
            reply = {"result": JOBS[kind](*arguments)}
        except (Exception, RecursionError, MemoryError) as error:
            reply = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        signal.alarm(0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    once() if sys.argv[1:] == ["draw"] else main()
