"""Comparisons: several agents, several seeds, the same everything else; on all cores, resumable, with a report."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sppo.experiments.config import RunConfig
from sppo.experiments.domains import domain, resolve
from sppo.experiments.folders import check_folders, is_finished, prepare
from sppo.experiments.process import end_with_parent, tune_process
from sppo.experiments.run import Interrupted, run
from sppo.experiments.tasks import short_name

INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended, as shells have it."""

BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"

Job = tuple[list[RunConfig], list[Path]]


class JobFailed(Exception):
    """A run ended in an error; the others went on."""


def plan(base: RunConfig, agents: Sequence[str], env_ids: Sequence[str], seeds: int, out: Path) -> list[Job]:
    """Jobs of as many seeds as their domain trains side by side, with the run folders OUT[/TASK]/AGENT/seedK.

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
            configs = [resolve(replace(base, agent=agent, env_id=env_id, seed=seed)) for seed in range(seeds)]
            size = domain(configs[0]).SIDE_BY_SIDE
            for first in range(0, seeds, size):
                chunk = configs[first : first + size]
                jobs.append((chunk, [folder / agent / f"seed{config.seed}" for config in chunk]))
    folders = [folder for _, own in jobs for folder in own]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(f"two runs would go to {folder}: name each agent once, and tasks whose names differ")
    return jobs


def check(jobs: Sequence[Job], resume: bool = False) -> None:
    """Everything that can be checked without training: environments, start policies, folders. Writes nothing.

    Raises:
        ValueError: naming what is wrong.
    """
    configs = [config for configs, _ in jobs for config in configs]
    for one in dict.fromkeys(map(domain, configs)):
        one.check([config for config in configs if domain(config) is one])
    check_folders(configs, [folder for _, folders in jobs for folder in folders], resume)


def execute(jobs: Sequence[Job], *, processes: int | None = None, resume: bool = False) -> None:
    """Run all jobs, a few at a time, with one progress bar where stderr is a terminal.

    Raises:
        ValueError: as `check`; nothing has been started then.
        Interrupted: after Ctrl-C, when every run has its checkpoint.
        JobFailed: if runs failed; the message says which and why. The others went on to their end.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes: at least one is needed, got {processes}")
    check(jobs, resume)
    prepare([c for configs, _ in jobs for c in configs], [f for _, folders in jobs for f in folders], resume)
    waiting = [job for job in jobs if not all(map(is_finished, job[1]))]
    shares = {folder: float(is_finished(folder)) for _, folders in jobs for folder in folders}
    successes: dict[Path, float] = {}
    failures: list[str] = []
    warned: set[str] = set()
    if processes is None:
        processes = max(1, (os.cpu_count() or 1) // max(domain(c).threads(c) for configs, _ in jobs for c in configs))
    working: list[_Worker] = []
    with (
        _Interrupts() as interrupts,
        tqdm(total=100.0, initial=_percent(shares), bar_format=BAR, mininterval=0.5, disable=None) as bar,
    ):
        while waiting or working:
            while waiting and len(working) < processes:
                with interrupts.ignored():  # until the worker has a handler of its own
                    working.append(_Worker(waiting.pop(0)))
            multiprocessing.connection.wait([worker.inbox for worker in working], timeout=0.2)
            for worker in list(working):
                ended = not worker.process.is_alive()  # asked first, so that no last words are missed
                for kind, *content in worker.messages():
                    if kind == "progress":
                        folder, shares[folder], successes[folder] = content[0], *content[1:]
                    elif kind == "warning" and content[0] not in warned:
                        warned.add(content[0])
                        bar.write(content[0], file=sys.stderr)
                    elif kind == "failure":
                        worker.failed = True
                        failures.append(f"{worker.name}: {content[0]}")
                if ended:
                    worker.process.join()
                    working.remove(worker)
                    if worker.process.exitcode not in (0, INTERRUPTED) and not worker.failed:
                        failures.append(f"{worker.name}: the process died with exit code {worker.process.exitcode}")
                elif interrupts.asked and worker.process.pid is not None:
                    os.kill(worker.process.pid, signal.SIGINT)
            if interrupts.asked:
                waiting.clear()
            bar.set_postfix_str(_latest(successes), refresh=False)
            bar.update(_percent(shares) - bar.n)
    if failures:
        raise JobFailed("; ".join(failures) + " (--resume goes on with the runs that are not finished)")
    if interrupts.asked:
        raise Interrupted


class _Interrupts:
    """Ctrl-C, or a request to terminate, is noted and handed on to the workers instead of ending this process."""

    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupts:
        self.previous = [signal.signal(number, self._ask) for number in self.signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in zip(self.signals, self.previous, strict=True):
            signal.signal(number, previous)

    def _ask(self, *_: object) -> None:
        self.asked = True

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        """A process that is started in here ignores Ctrl-C."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield
        signal.signal(signal.SIGINT, self._ask)


class _Worker:
    """A process with one job, and the pipe that it reports through: one each, so that a death breaks no other's."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.inbox, outbox = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(job, outbox))
        self.process.start()
        outbox.close()
        folders = job[1]
        self.name = str(folders[0]) if len(folders) == 1 else f"{folders[0]} to {folders[-1].name}"
        self.failed = False

    def messages(self) -> Iterator[tuple[Any, ...]]:
        with contextlib.suppress(EOFError):
            while self.inbox.poll():
                yield self.inbox.recv()


def _work(job: Job, outbox: Any) -> None:
    """A worker process: one job."""
    end_with_parent()
    tune_process()
    configs, folders = job
    try:
        run(
            configs,
            folders,
            resume=True,
            report=lambda folder, share, success: outbox.send(("progress", folder, share, success)),
            warn=lambda message: outbox.send(("warning", message)),
        )
    except Interrupted:
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        outbox.send(("failure", str(error)))
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        outbox.send(("failure", f"{type(error).__name__}: {error}"))
        sys.exit(1)


def _percent(shares: dict[Path, float]) -> float:
    return 100 * sum(shares.values()) / len(shares)


def _latest(successes: dict[Path, float]) -> str:
    """Mean success of each agent at its latest evaluations."""
    by_agent: dict[str, list[float]] = {}
    for folder, success in successes.items():
        by_agent.setdefault(folder.parent.name, []).append(success)
    return " ".join(f"{agent} {sum(values) / len(values):.2f}" for agent, values in sorted(by_agent.items()))
