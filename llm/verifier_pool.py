"""Killable worker processes with a hard wall-clock limit for each job."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import queue
import select
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# -P: the script's folder is no place to import from.
COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("verifier_worker.py"))]
START_SECONDS = 120.0  # for the imports and grammars of a new worker, on a busy machine


class Reply(NamedTuple):
    """What became of a job: status ok, timeout, died (twice: a job gets a second worker) or error."""

    status: str
    result: Any = None


class Died(Exception):
    """The worker's process ended before it replied."""


class NotStarted(Died):
    """The worker's process ended before it was ready."""


class Worker:
    """A process that answers one job at a time; started at its first job, and anew after it died or was killed."""

    def __init__(self, warm_up: tuple[str, tuple[Any, ...]] | None) -> None:
        self.warm_up = warm_up
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.buffer = b""

    def ask(self, kind: str, arguments: tuple[Any, ...], seconds: float) -> Reply:
        """Run a job; a worker that is past `seconds` is killed.

        Raises:
            Died: if the process ended without a reply.
            RuntimeError: if a new worker cannot do its first job.
        """
        self._start()
        return self._exchange(kind, arguments, seconds)

    def close(self) -> None:
        """Kill the process, if this process started it."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # a job that was not read is still in its buffer

    def _start(self) -> None:
        # After a fork the pipes belong to the parent: the child starts workers of its own.
        alive = self.process is not None and self.owner == os.getpid() and self.process.poll() is None
        if alive:
            return
        self.close()
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # an interrupt from the keyboard is for the parent alone
            env=_environment(),
        )
        self.owner, self.buffer = os.getpid(), b""
        if self.warm_up is None:
            return
        try:
            reply = self._exchange(*self.warm_up, START_SECONDS)
        except Died as error:
            raise NotStarted from error
        if reply.status != "ok":
            self.close()
            raise RuntimeError(f"a verifier's worker could not start: {reply.status}, {reply.result}")

    def _exchange(self, kind: str, arguments: tuple[Any, ...], seconds: float) -> Reply:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        job = pickle.dumps((kind, arguments, seconds))
        try:
            self.process.stdin.write(struct.pack("<I", len(job)) + job)
            self.process.stdin.flush()
        except OSError as error:
            self.close()
            raise Died from error
        deadline = time.monotonic() + seconds
        descriptor = self.process.stdout.fileno()
        poller = select.poll()  # unlike select, not limited to the first 1024 descriptors
        poller.register(descriptor, select.POLLIN)
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                self.close()
                return Reply("timeout")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                self.close()
                raise Died
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        reply = json.loads(line)
        return Reply("error", reply["error"]) if "error" in reply else Reply("ok", reply["result"])


class Pool:
    """A few workers for any number of threads.

    Args:
        workers: processes at most; by default one per core, four at most. None is started before there is work for it.
        seconds: wall-clock limit of a job, the start of a worker not counted.
        warm_up: a job (kind, arguments) that a new worker does before its clock runs.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        seconds: float = 5.0,
        warm_up: tuple[str, tuple[Any, ...]] | None = None,
    ) -> None:
        count = workers if workers is not None else min(4, os.cpu_count() or 1)
        if count < 1 or seconds <= 0:
            raise ValueError(f"workers and seconds must be positive, got {count} and {seconds}")
        self.seconds = seconds
        self.workers = [Worker(warm_up) for _ in range(count)]
        # Last in, first out: little work keeps few processes busy, and starts no more.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self.workers:
            self._idle.put(worker)
        atexit.register(_close, weakref.ref(self))

    def ask(self, kind: str, *arguments: Any) -> Reply:
        """Do one job, on whichever worker is free."""
        worker = self._idle.get()
        try:
            # The second try is for a worker killed from outside, which is not the job's fault.
            for attempt in range(2):
                try:
                    return worker.ask(kind, arguments, self.seconds)
                except NotStarted as error:
                    if attempt:
                        raise RuntimeError("a verifier's worker ended twice before it was ready") from error
                except Died:
                    pass
            return Reply("died")
        finally:
            self._idle.put(worker)

    def ask_all(self, kind: str, jobs: Sequence[tuple[Any, ...]]) -> list[Reply]:
        """Do many jobs in parallel; replies in order, each with a limit of its own."""
        if len(jobs) < 2:
            return [self.ask(kind, *job) for job in jobs]
        with ThreadPoolExecutor(min(len(self.workers), len(jobs))) as threads:
            return list(threads.map(lambda job: self.ask(kind, *job), jobs))

    def close(self) -> None:
        """Kill all workers; a later job starts them anew."""
        for worker in self.workers:
            worker.close()


def draw(*arguments: Any) -> Any:
    """What `draw_reasoning` of the worker's script makes of these arguments, in a process of its own.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    done = subprocess.run([*COMMAND, "draw"], input=pickle.dumps(arguments), capture_output=True, env=_environment())
    if done.returncode:
        raise RuntimeError(f"drawing questions of {arguments[0]} failed: {done.stderr.decode()[-2000:]}")
    return pickle.loads(done.stdout)


def _environment() -> dict[str, str]:
    # Hash seed 0: sets are walked in the same order in every run.
    return {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


def _close(pool: weakref.ref[Pool]) -> None:
    if (here := pool()) is not None:
        here.close()
