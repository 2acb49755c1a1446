"""Set-up of a process that trains tiny networks."""

from __future__ import annotations

import ctypes
import sys

import torch


def tune_process() -> None:
    """One thread, and freed memory kept instead of returned to the system.

    Arrays of a megabyte come and go at every minibatch; with glibc's defaults each costs hundreds of page faults, a
    fifth of the update. No effect on results, and none at all where the C library is another.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mmap_threshold, trim_threshold, top_pad = -3, -1, -2
            mallopt(mmap_threshold, 1 << 30)
            mallopt(trim_threshold, 2**31 - 1)
            mallopt(top_pad, 1 << 26)
