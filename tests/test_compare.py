"""Comparisons in real processes: shared out, stopped, killed, and reported again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import CHAIN, assert_looks_whole, assert_same_run, command, newest_checkpoint, sppo

from sppo.agents import AGENTS as EVERY_AGENT
from sppo.experiments import compare, control
from sppo.experiments.cli import Report
from sppo.experiments.compare import JobFailed, execute, plan
from sppo.experiments.run import run

AGENTS = ("ppo", "sppo")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def folders(out: Path, seeds: int = 2) -> list[Path]:
    return [out / agent / f"seed{seed}" for agent in AGENTS for seed in range(seeds)]


def test_plans_do_not_depend_on_how_many_run_at_once(tmp_path: Path) -> None:
    jobs = plan(CHAIN, AGENTS, ["sppo/SparseChain-v0"], 7, tmp_path)
    assert [[f.name for f in where] for _, where in jobs[:2]] == [[f"seed{i}" for i in range(5)], ["seed5", "seed6"]]
    assert all(
        c.agent == where.parent.name for configs, folders in jobs for c, where in zip(configs, folders, strict=True)
    )
    two = plan(CHAIN, AGENTS, ["sppo/SparseChain-v0", "sppo/PrecisionCartPole-v0"], 1, tmp_path)
    assert [where[0].relative_to(tmp_path).parts[0] for _, where in two] == ["SparseChain-v0"] * 2 + [
        "PrecisionCartPole-v0"
    ] * 2


def test_runs_in_processes_are_the_runs_and_the_bar_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = plan(CHAIN, AGENTS, [CHAIN.env_id], 2, tmp_path / "processes")
    monkeypatch.setattr(sys, "stderr", Terminal())
    execute(jobs, processes=2)
    shown = sys.stderr.getvalue()
    percents = [int(p) for p in re.findall(r"(\d+)%\|", shown)]
    assert percents[0] == 0 and percents[-1] == 100 and percents == sorted(percents)
    assert re.search(r"100%\|.*\| \d\d:\d\d<00:00, ppo \d\.\d\d sppo \d\.\d\d", shown)
    for agent in AGENTS:
        configs = [replace(CHAIN, agent=agent, seed=seed) for seed in range(2)]
        run(configs, [tmp_path / "here" / agent / f"seed{seed}" for seed in range(2)])
    for a, b in zip(folders(tmp_path / "processes"), folders(tmp_path / "here"), strict=True):
        assert_same_run(a, b)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control, "SIDE_BY_SIDE", 1)
    for n in (1, 3):
        execute(plan(CHAIN, AGENTS, [CHAIN.env_id], 2, tmp_path / str(n)), processes=n)
    for a, b in zip(folders(tmp_path / "1"), folders(tmp_path / "3"), strict=True):
        assert_same_run(a, b)
    assert capfd.readouterr().err == "", "no bar where nobody watches"


def test_a_failing_run_is_named_and_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CartPole's own reward is no outcome for SPPO; PPO learns, and is reported."""
    out = tmp_path / "out"
    few = ("--episodes", 128, "--evals", 2, "--eval-episodes", 8)
    done = sppo("compare", "--env", "CartPole-v1", "--seeds", 2, *few, "--out", out)
    assert done.returncode == 1
    *warnings, error = done.stderr.splitlines()
    assert re.fullmatch(rf"sppo: {out}/sppo/seed0 to seed1: .*\[0, 1\].*--resume goes on.*", error), done.stderr
    assert len(warnings) == 1 and "does not report info['is_success']" in warnings[0]
    assert all((out / "ppo" / f"seed{i}" / "result.json").exists() for i in range(2))
    assert not list(out.glob("sppo/*/result.json"))
    assert re.search(r"^ppo +2 ", done.stdout, re.M), done.stderr
    assert (out / "report.html").exists()
    (out / "report.html").unlink()
    Report(source=out)()
    assert (out / "report.html").exists() and re.search(r"^ppo +2 ", capsys.readouterr().out, re.M)


def test_all_algorithms_in_one_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the table and the page."""
    few = replace(CHAIN, settings={"episodes_per_update": 8}, total_episodes=16, n_evals=1, n_eval_episodes=8)
    for configs, where in plan(few, tuple(EVERY_AGENT), [CHAIN.env_id], 2, tmp_path):
        run(configs, where)
    Report(source=tmp_path)()
    table, page = capsys.readouterr().out, (tmp_path / "report.html").read_text("utf-8")
    for name in EVERY_AGENT:
        assert re.search(rf"^{name} +2 ", table, re.M), table
        assert name in page
    Report(source=tmp_path, agents=("sppo", "grpo"))()
    told = capsys.readouterr().out
    assert "P(AUC > sppo)" in told and re.findall(r"^(\S+) +2 ", told, re.M) == ["sppo", "grpo"]


def test_a_worker_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the system is out of memory."""
    jobs = plan(CHAIN, ("ppo",), [CHAIN.env_id], 1, tmp_path)
    started = compare._Worker.__init__

    def start(self: Any, job: Any) -> None:
        started(self, job)
        os.kill(self.process.pid, signal.SIGKILL)

    monkeypatch.setattr(compare._Worker, "__init__", start)
    with pytest.raises(JobFailed, match=rf"{tmp_path}/ppo/seed0: the process died with exit code -9"):
        execute(jobs)


# Stopped and killed from outside.

LONG = ("--env", "sppo/SparseChain-v0", "--seeds", 2, "--start", "none", "--episodes", 1600, "--evals", 4)
LONG = (*LONG, "--eval-episodes", 16, "--checkpoint-freq", 3, "--settings", "episodes_per_update", 20)


@contextlib.contextmanager
def under_way(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A comparison that runs and has checkpoints."""
    arguments = command("compare", *LONG, "--out", out)
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("*/*/checkpoints/0*")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        time.sleep(0.3)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    done = sppo("compare", *LONG, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def finish(out: Path, uninterrupted: Path) -> None:
    done = sppo("compare", *LONG, "--out", out, "--resume")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for a, b in zip(folders(out), folders(uninterrupted), strict=True):
        assert_same_run(a, b)
        assert_looks_whole(a)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the parent alone", "the group", "the parent, to terminate"])
def test_ctrl_c_stops_with_checkpoints(whom: str, tmp_path: Path, uninterrupted: Path) -> None:
    with under_way(tmp_path) as process:
        if whom == "the group":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.SIGTERM if "terminate" in whom else signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert err == "stopped; every run has its checkpoint: the same command with --resume goes on\n"
    assert not list(tmp_path.glob("*/*/result.json"))
    began = [folder for folder in folders(tmp_path) if (folder / "checkpoints").exists()]
    assert began
    for folder in began:
        last = json.loads((folder / "progress.jsonl").read_text().splitlines()[-1])
        assert newest_checkpoint(folder).name == f"{int(last['time/n_updates']):08d}", "nothing is lost"
    finish(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_outright_leaves_no_orphan_and_goes_on(tmp_path: Path, uninterrupted: Path) -> None:
    with under_way(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        finish(tmp_path, uninterrupted)


# A disk that is full.


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tiny disk cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_full_disk(tiny_disk: Path, uninterrupted: Path) -> None:
    with tempfile.TemporaryDirectory() as elsewhere, open(tiny_disk / "ballast", "wb") as ballast:
        ballast.write(bytes(800_000))
        ballast.flush()
        done = sppo("compare", *LONG, "--out", tiny_disk / "out", env={**os.environ, "TMPDIR": elsewhere})
        assert done.returncode == 1, done.stdout
        *noise, told = done.stderr.splitlines()  # of TensorBoard's own thread, where that is the first to find it full
        assert re.fullmatch(r"sppo: .*could not be written.*No space left on device.*", told), done.stderr
        assert not noise or noise[0].startswith("Exception in thread"), done.stderr
    (tiny_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=50m", tiny_disk], check=True)
    finish(tiny_disk / "out", uninterrupted)
