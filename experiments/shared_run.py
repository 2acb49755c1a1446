"""Runs that ranks share: each trains in its own process, and they leave one run's folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sppo.experiments.compare import BAR, INTERRUPTED
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import domain, make_agents, resolve
from sppo.experiments.folders import is_finished, prepare
from sppo.experiments.process import locked, tune_process
from sppo.experiments.ranks import ranks as met
from sppo.experiments.run import Interrupted, Report, train_side_by_side
from sppo.experiments.tasks import TEXT


def train_shared(config: RunConfig, out: Path, resume: bool) -> bool:
    """Train in this process, with the other ranks, under a progress bar; True on the first."""
    if not config.env_id.startswith(TEXT):
        raise ValueError(f"{config.env_id} trains in one process: torchrun is for text tasks")
    tune_process()
    ranks = met()
    with tqdm(total=100.0, bar_format=BAR, mininterval=0.5, disable=None if ranks.first else True) as bar:

        def report(folder: Path, share: float, success: float) -> None:
            bar.set_postfix_str(f"{config.agent} {success:.2f}", refresh=False)
            bar.update(100 * share - bar.n)

        try:
            run_shared(config, out, ranks, resume=resume, report=report)
        except Interrupted:
            if ranks.first:
                raise
            sys.exit(INTERRUPTED)
    ranks.leave()
    return bool(ranks.first)


def run_shared(
    config: RunConfig,
    folder: Path,
    ranks: Any,
    *,
    resume: bool = False,
    report: Report | None = None,
    warn: Callable[[str], None] = lambda message: print(message, file=sys.stderr),
) -> None:
    """Train a config on all ranks, each of which calls this: the first writes into the folder as `run` does, the
    others keep the checkpoints of their slices in its `ranks/R`.

    Raises:
        ValueError: as `run`, on one rank; it ends the others' processes.
        Interrupted: after Ctrl-C.
    """
    trouble: Exception | None = None
    try:
        config = resolve(config)
        domain(config).check([config])
        if ranks.first:
            prepare([config], [folder], resume)
    except (ValueError, OSError, ImportError) as error:
        trouble = error
    troubled = [rank for rank, has in enumerate(ranks.gather(trouble is not None)) if has]
    if troubled:
        if trouble is not None and ranks.rank == troubled[0]:
            raise trouble
        with contextlib.suppress(RuntimeError):
            ranks.gather(None)  # in vain: the one that says what is wrong leaves, and torchrun ends the others
        raise SystemExit(1)
    if ranks.gather(is_finished(folder))[0]:
        return
    own = folder if ranks.first else folder / "ranks" / str(ranks.rank)
    own.mkdir(parents=True, exist_ok=True)
    with locked([own]):
        train_side_by_side(make_agents([config]), [(config, own)], report, warn, ranks)
