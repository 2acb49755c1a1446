"""What a process owes to the torchrun that started it."""

from __future__ import annotations

import os
import sys
import threading
import time

import torch


def check_gpus() -> None:
    """Raise ValueError where torchrun started more processes here than there are GPUs, if there are any."""
    n, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if torch.cuda.is_available() and n > there:
        raise ValueError(
            f"torchrun started {n} processes and there are {there} GPUs: --nproc-per-node must be at most {there}"
        )


def end_with_launcher() -> None:
    """Without the launcher nobody would end this process when another rank fails: it would wait forever."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        print(f"rank {os.environ['RANK']}: the launcher is gone, stopping", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
