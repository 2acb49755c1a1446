"""The command line in real processes, under torchrun or alone, and what becomes of them when one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from small_runs import assert_looks_whole, assert_same_run, newest_checkpoint

CLI = ("-m", "sppo.experiments.cli")
TRAIN = (
    "train --task arithmetic --task-options terms [2,4] operands [1,20] train_size 40 test_size 12 "
    "--episodes 56 --evals 2 --eval-episodes 8 "
    "--settings episodes_per_update 8 n_minibatches 2 learning_rate 1e-4 critic_learning_rate 1e-4 "
    "--checkpoint-freq 1 --text max_completion_length 12 critic_layers 1 n_completions 3"
).split()
"""Six updates, each with a checkpoint."""
PATIENCE = 60.0
"""Seconds within which a run must have ended, once one of its processes is gone."""


def torchrun(n: int, *program: object) -> tuple[object, ...]:
    """Python's arguments for a program on n ranks."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", n, *program)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Python with these arguments; whatever it started is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()  # the others end with it
        process.wait()


def done(*arguments: object) -> str:
    """What it says until it has ended well."""
    with started(*arguments) as process:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    return said


def reach(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until it has written this."""
    deadline = time.monotonic() + 600
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"{path} was not reached:\n{process.communicate()[0]}")
        time.sleep(0.05)


def family(pid: int) -> dict[int, str]:
    """Command lines, by process, of those that a process has started, and they in turn."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [
        (int(own), int(parent), args) for own, parent, args in (line.split(None, 2) for line in listed.splitlines())
    ]
    found: dict[int, str] = {}
    parents = {pid}
    while parents:
        born = {own: args for own, parent, args in rows if parent in parents and own not in found}
        found |= born
        parents = set(born)
    return found


def rank(launcher: subprocess.Popen[str], n: int = 1) -> int:
    """The process of a rank of torchrun: the first that it started with this number."""
    wanted = f"RANK={n}".encode()
    return min(p for p in family(launcher.pid) if wanted in Path(f"/proc/{p}/environ").read_bytes().split(b"\0"))


def worker(launcher: subprocess.Popen[str]) -> int:
    """The process that trains, where there are no ranks."""
    return min(p for p, args in family(launcher.pid).items() if "resource_tracker" not in args)


def server(launcher: subprocess.Popen[str]) -> int:
    """The server of an engine; of several, the last."""
    return max(p for p, args in family(launcher.pid).items() if "sppo.llm.remote" in args)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(process: subprocess.Popen[str], victim: int, number: int = signal.SIGKILL) -> str:
    """What is said until nobody is left, after a signal to one of them; in time."""
    everyone = [process.pid, *family(process.pid)]
    began = time.monotonic()
    os.kill(victim, number)
    said, _ = process.communicate(timeout=PATIENCE)
    while any(map(alive, everyone)):
        assert time.monotonic() - began < PATIENCE, f"left behind: {family(process.pid)}"
        time.sleep(0.05)
    print(f"all ended in {time.monotonic() - began:.1f} s")
    assert process.returncode != 0, said
    return said


def assert_same_shared_run(a: Path, b: Path) -> None:
    """Of two ranks: what `assert_same_run` compares, the second's slices, and the model."""
    assert_looks_whole(a)
    assert_same_run(a, b)
    for files in (
        [newest_checkpoint(run / "ranks" / "1") / "agent.safetensors" for run in (a, b)],
        [run / "model" / "model.safetensors" for run in (a, b)],
    ):
        assert files[0].read_bytes() == files[1].read_bytes(), files
