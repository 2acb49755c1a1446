"""Set-up of a process that trains tiny networks, and what keeps processes out of each other's way."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def end_with_parent() -> None:
    """Kill this process as soon as its parent is gone: nobody would hear of what it does, or stop it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        print(f"process {os.getpid()}: the one that started it is gone: stopping", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def locked(folders: Sequence[Path], patience: float = 5.0) -> Iterator[None]:
    """Keep every other process out of these run folders; the system lets go when this one ends, however it ends.

    Raises:
        ValueError: if another is at work in one of them, and still is after so many seconds.
    """
    with contextlib.ExitStack() as held:
        for folder in folders:
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            deadline = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ValueError(f"another process is at work in {folder}") from None
                    time.sleep(0.1)
                except OSError:
                    break  # a file system without locks
        yield
