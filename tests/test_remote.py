"""An object in a process of its own: calls, errors, and deaths on either side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sppo.llm.remote import ProcessDied, Remote


def gone(pid: int, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if state.stdout.strip()[:1] in ("", "Z"):
            return True
        time.sleep(0.1)
    return False


def test_methods_are_called_there_and_close_ends_it() -> None:
    third = Remote("fractions", "Fraction", 333, 1000)
    assert third.call("limit_denominator", 10) == third.call("__mul__", 1).limit_denominator(10)
    third.close()
    assert gone(third.process.pid)
    with pytest.raises(ProcessDied):
        third.call("limit_denominator", 10)


def test_what_a_method_raises_is_told_and_the_object_lives_on() -> None:
    third = Remote("fractions", "Fraction", 1, 3)
    with pytest.raises(RuntimeError, match="ValueError: max_denominator should be at least 1") as told:
        third.call("limit_denominator", 0)
    assert not isinstance(told.value, ProcessDied)
    assert third.call("limit_denominator", 10).denominator == 3
    third.close()


def test_an_object_that_cannot_be_made_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError: Fraction\(1, 0\)"):
        Remote("fractions", "Fraction", 1, 0)


def test_one_that_takes_too_long_is_told_and_ended() -> None:
    with pytest.raises(ProcessDied, match="made no object in 1 s"):
        Remote("time", "sleep", 60, start_seconds=1)


def test_a_killed_process_is_told_at_once_with_what_it_printed() -> None:
    printer = Remote("logging", "getLogger", "x")
    printer.call("warning", "close to the end")
    started = time.monotonic()
    os.kill(printer.process.pid, signal.SIGKILL)
    with pytest.raises(ProcessDied, match="(?s)was ended by SIGKILL; it printed:.*close to the end"):
        printer.call("warning", "more")
    assert time.monotonic() - started < 10


def test_a_busy_process_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import threading, time\n"
        "from sppo.llm.remote import Remote\n"
        "busy = Remote('threading', 'Event')\n"
        "threading.Thread(target=busy.call, args=('wait', 1000)).start()\n"
        "print(busy.process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child, 0.5)
    parent.kill()
    parent.wait()
    assert gone(child)


def test_a_rank_of_torchrun_starts_a_process_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    environment = Remote("subprocess", "getoutput", "env")
    said = environment.call("splitlines")
    assert not [line for line in said if line.startswith(("RANK=", "TORCHELASTIC"))]
    assert [line for line in said if line.startswith("PATH=")]
    environment.close()
