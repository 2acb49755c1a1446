"""An object that lives in a process of its own, and dies with the process that made it."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""What torchrun tells a rank: the new process is none."""


class ProcessDied(RuntimeError):
    """The process is gone."""


class Remote:
    """The other process's end: it makes `module.name(*args)` there, and `call` calls its methods.

    They talk over a pair of connected sockets that nobody else can open, so there is no port to be taken.

    Args:
        module: where the class is found.
        name: of the class.
        args: its arguments, picklable like all that is sent.
        env: added to the environment.
        start_seconds: how long making it may take.

    Raises:
        ProcessDied: if it dies or takes too long before the object is made; the end of what it printed is in the error.
        RuntimeError: with the traceback of what making it raised.
    """

    def __init__(
        self, module: str, name: str, *args: Any, env: Mapping[str, str] | None = None, start_seconds: float = 900
    ) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.NamedTemporaryFile(prefix="sppo-", suffix=".log")
        inherited = {k: v for k, v in os.environ.items() if k not in LAUNCHER and not k.startswith("TORCHELASTIC")}
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid()), module, name]
        self.process = subprocess.Popen(
            command,
            env={**inherited, **(env or {})},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is the trainer's to handle
        )
        theirs.close()  # so that reading ends when the process does
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self.process, self._connection)
        try:
            self._exchange(args, start_seconds)
        except BaseException:
            self.close()
            raise

    def call(self, name: str, *args: Any) -> Any:
        """A method's result.

        Raises:
            ProcessDied: if the process is gone, or goes.
            RuntimeError: with the traceback of what the method raised.
        """
        return self._exchange((name, args), None)

    def _exchange(self, message: Any, seconds: float | None) -> Any:
        try:
            self._connection.send(message)
            if not self._connection.poll(seconds):
                self.process.kill()
                self.close()
                raise ProcessDied(f"the process {self.process.pid} made no object in {seconds:.0f} s{self._said()}")
            good, result = self._connection.recv()
        except (EOFError, OSError) as error:  # a broken pipe, or a connection that was reset
            self.close()
            raise ProcessDied(f"the process {self.process.pid} {self._fate()}{self._said()}") from error
        if not good:
            raise RuntimeError(f"in the process {self.process.pid}:\n{result}")
        return result

    def _fate(self) -> str:
        code = self.process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _said(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").splitlines()[-15:]
        return "".join(["; it printed:", *(f"\n    {line}" for line in lines)]) if lines else ""

    def close(self) -> None:
        """End the process, if it still runs."""
        self._end()


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    try:
        process.wait(2)  # its reading has ended
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(descriptor: int, parent: int, module: str, name: str) -> None:
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    made: Any = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        try:
            if made is None:
                made, result = getattr(importlib.import_module(module), name)(*message), None
            else:
                result = getattr(made, message[0])(*message[1])
            answer = True, result
        except Exception:
            answer = False, traceback.format_exc()
        try:
            connection.send(answer)
        except OSError:
            return


def _watch(parent: int) -> None:
    """A parent that was killed leaves a busy child behind: whose parent changes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpid(), signal.SIGKILL)  # with the workers that it may have started


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
