"""Random numbers as a function of a seed: no generator, hence no state to save, and one call serves a whole batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0xD1342543DE82EF95)  # odd, so that distinct steps give distinct offsets


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: a bijection of 64-bit words in which each input bit flips half the output bits."""
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def uniform(seeds: ArrayLike, k: int, step: ArrayLike = 0) -> NDArray[np.float64]:
    """(n, k) numbers in [0, 1) from int64 seeds (n,) and steps >= 0, (n,) or one for all.

    Step 0 is the start state's; an environment's own noise begins at step 1.
    """
    seed = np.atleast_1d(np.asarray(seeds, np.int64)).view(np.uint64)
    at = np.atleast_1d(np.asarray(step, np.int64)).view(np.uint64)
    key = _mix(_mix(seed + _GOLDEN) + at * _STEP)
    z = _mix(key[:, None] + np.arange(1, k + 1, dtype=np.uint64) * _GOLDEN)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53, np.float64)
