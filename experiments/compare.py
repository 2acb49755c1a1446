"""Comparisons: several agents, several seeds, the same everything else; on all cores, resumable, with a report."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sppo.experiments.config import RunConfig, resolve
from sppo.experiments.process import tune_process
from sppo.experiments.run import Interrupted, is_finished, prepare, run
from sppo.experiments.tasks import short_name

STACK = 5
"""Seeds trained side by side in one process: fixed, so that results do not depend on the number of processes."""

Job = tuple[list[RunConfig], list[Path]]


class JobFailed(Exception):
    """A run ended in an error; the others went on."""


def plan(base: RunConfig, agents: Sequence[str], env_ids: Sequence[str], seeds: int, out: Path) -> list[Job]:
    """Jobs of up to `STACK` seeds each, with the run folders OUT[/TASK]/AGENT/seedK.

    Raises:
        ValueError: for no agents, tasks or seeds, or any config that cannot be run.
    """
    for name, count in (("agents", len(agents)), ("env", len(env_ids)), ("seeds", seeds)):
        if count < 1:
            raise ValueError(f"{name}: at least one is needed, got {count}")
    jobs: list[Job] = []
    for env_id in env_ids:
        folder = out / short_name(env_id) if len(env_ids) > 1 else out
        for agent in agents:
            for first in range(0, seeds, STACK):
                chunk = range(first, min(first + STACK, seeds))
                configs = [resolve(replace(base, agent=agent, env_id=env_id, seed=seed)) for seed in chunk]
                jobs.append((configs, [folder / agent / f"seed{seed}" for seed in chunk]))
    return jobs


def execute(jobs: Sequence[Job], *, processes: int | None = None, resume: bool = False) -> None:
    """Run all jobs, a few at a time, with one progress bar.

    Raises:
        ValueError: if a folder holds another run; nothing has been started then.
        Interrupted: after Ctrl-C, when every run has its checkpoint.
        JobFailed: if runs failed; the message says which and why.
    """
    prepare([c for configs, _ in jobs for c in configs], [f for _, folders in jobs for f in folders], resume)
    todo = [job for job in jobs if not all(map(is_finished, job[1]))]
    shares = {folder: float(is_finished(folder)) for _, folders in jobs for folder in folders}
    successes: dict[Path, float] = {}
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    waiting, interrupted = list(todo), False
    working: list[tuple[Any, Job]] = []
    failures: list[str] = []
    processes = min(processes or os.cpu_count() or 1, max(len(todo), 1))
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        waiting.clear()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        every = 0.5 if sys.stderr.isatty() else 30.0
        layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        with tqdm(total=100.0, bar_format=layout, mininterval=every, maxinterval=every) as bar:
            while waiting or working:
                while waiting and len(working) < processes:
                    job = waiting.pop(0)
                    process = context.Process(target=_work, args=(job, messages))
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the worker has a handler of its own
                    process.start()
                    signal.signal(signal.SIGINT, on_interrupt)
                    working.append((process, job))
                while True:
                    try:
                        folder, share, success = messages.get(timeout=0.2)
                    except queue.Empty:
                        break
                    if isinstance(share, str):
                        failures.append(f"{folder}: {share}")
                    else:
                        shares[folder], successes[folder] = share, success
                bar.set_postfix_str(_latest(successes), refresh=False)
                bar.update(100 * sum(shares.values()) / len(shares) - bar.n)
                if interrupted:
                    for process, _ in working:
                        if process.is_alive() and process.pid is not None:
                            os.kill(process.pid, signal.SIGINT)
                for process, job in [one for one in working if not one[0].is_alive()]:
                    process.join()
                    working.remove((process, job))
                    if process.exitcode not in (0, 130, 1):
                        failures.append(f"{job[1][0].parent}: the process died with exit code {process.exitcode}")
    finally:
        signal.signal(signal.SIGINT, previous)
    if failures:
        raise JobFailed("; ".join(failures) + " (--resume goes on with the runs that are not finished)")
    if interrupted:
        raise Interrupted


def _work(job: Job, messages: Any) -> None:
    """A worker process: one job."""
    tune_process()
    configs, folders = job
    try:
        run(
            configs,
            folders,
            resume=True,
            report=lambda folder, share, success: messages.put((folder, share, success)),
            warn=lambda message: print(message, file=sys.stderr),
        )
    except Interrupted:
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        messages.put((folders[0].parent, str(error), 0.0))
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        messages.put((folders[0].parent, f"{type(error).__name__}: {error}", 0.0))
        sys.exit(1)


def _latest(successes: dict[Path, float]) -> str:
    """Mean success of each agent at its latest evaluations."""
    by_agent: dict[str, list[float]] = {}
    for folder, success in successes.items():
        by_agent.setdefault(folder.parent.name, []).append(success)
    return " ".join(f"{agent} {sum(values) / len(values):.2f}" for agent, values in sorted(by_agent.items()))
