"""Real runs of a second or less, and what it means for two of them to be the same."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from sppo.experiments.config import RunConfig
from sppo.experiments.run import Interrupted, run

CHAIN = RunConfig(
    env_id="sppo/SparseChain-v0",
    start="none",
    total_episodes=56,
    settings={"episodes_per_update": 8, "n_epochs": 2},
    net_arch=(16,),
    n_evals=3,
    n_eval_episodes=16,
    checkpoint_freq=2,
)
"""Seven updates, with a checkpoint after every second and after the last."""

UNEVEN = replace(
    CHAIN,
    env_id="sppo/PrecisionCartPole-v0",
    env_kwargs={"horizon": 20, "tolerance": 8.0},
    total_episodes=200,
    total_steps=900,
)
"""Seeds spend their budget of steps after different numbers of updates."""

SUMS = RunConfig(
    env_id="text/arithmetic",
    env_kwargs={"train_size": 40, "test_size": 12},
    settings={"episodes_per_update": 8, "n_minibatches": 2, "learning_rate": 1e-3},
    text={"max_completion_length": 12, "critic_layers": 1, "n_completions": 3},
    total_episodes=40,
    n_evals=2,
    n_eval_episodes=16,
    checkpoint_freq=1,
)
"""Of a language model: four or five updates, with two evaluations and those at both ends."""


def seeds(config: RunConfig, n: int, folder: Path) -> tuple[list[RunConfig], list[Path]]:
    return [replace(config, seed=i) for i in range(n)], [folder / f"seed{i}" for i in range(n)]


def records(path: Path, timed: bool = False) -> list[dict[str, Any]]:
    """JSON lines, without what depends on the machine and its speed."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    own = ("seconds", "time/fps", "memory/")
    return found if timed else [{k: v for k, v in r.items() if not any(x in k for x in own)} for r in found]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All TensorBoard scalars of a run: tag -> (step, value), in the order of the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def newest_checkpoint(folder: Path) -> Path:
    return max(path for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimisers, generators, metrics, evaluations and texts bit for bit; everything but time."""
    names = ["progress.jsonl", "evals.jsonl", "result.json"]
    for name in names + ["completions.jsonl"] * (a / "completions.jsonl").exists():
        if name.endswith("l"):
            assert records(a / name) == records(b / name), name
        else:
            one, other = (json.loads((folder / name).read_text()) | {"seconds": 0} for folder in (a, b))
            assert one == other
    last, other_last = newest_checkpoint(a), newest_checkpoint(b)
    assert last.name == other_last.name
    tensors, others = load_file(last / "agent.safetensors"), load_file(other_last / "agent.safetensors")
    assert tensors.keys() == others.keys()
    for name, array in tensors.items():
        assert array.tobytes() == others[name].tobytes(), name
    values, other_values = (json.loads((c / "agent.json").read_text()) for c in (last, other_last))
    for v in (values, other_values):
        for name in ("seconds", "cpu_seconds"):
            v["counters"].pop(name)
    assert values == other_values


def assert_looks_whole(folder: Path) -> None:
    """Every update once, in order, in the record, the table and TensorBoard alike."""
    progress = records(folder / "progress.jsonl", timed=True)
    assert [r["time/n_updates"] for r in progress] == list(range(1, len(progress) + 1))
    assert [float(r["time/total_timesteps"]) for r in table(folder / "progress.csv")] == [
        r["time/total_timesteps"] for r in progress
    ]
    found = scalars(folder)
    steps = [int(r["time/total_timesteps"]) for r in progress]
    assert [step for step, _ in found["rollout/success_rate"]] == steps
    for tag, points in found.items():
        at = [step for step, _ in points]
        assert at == sorted(set(at)), f"{tag} has a step twice"


def in_child(work: Callable[[], None], *, kill_after: float | None = None) -> int:
    """Do this in a process of its own, killed after so many seconds; its exit code, negative for a signal.

    Forked, so that it starts at once: a run that is killed twenty times would else spend its time on imports.
    """
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            work()
            os._exit(0)
        except Interrupted:
            os._exit(130)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        import time

        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def quiet_run(configs: Sequence[RunConfig], folders: Sequence[Path], warnings: list[str] | None = None) -> None:
    """`run`, going on where it can."""
    run(configs, folders, resume=True, warn=([] if warnings is None else warnings).append)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sppo.experiments.cli", *map(str, arguments)]


def sppo(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a real process."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=300, **options)
