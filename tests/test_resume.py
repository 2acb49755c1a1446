"""Runs killed at any moment go on and end as if nothing had happened; damage is named and survived."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import (
    CHAIN,
    UNEVEN,
    assert_looks_whole,
    assert_same_run,
    in_child,
    newest_checkpoint,
    quiet_run,
    records,
    seeds,
)

from sppo.experiments.checkpoints import KEEP, save_checkpoint, shared_checkpoints
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.run import Interrupted, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is forked")

STREAM = replace(CHAIN, agent="ppo", settings={"episodes_per_update": 4, "n_steps": 13, "n_epochs": 2})
CASES: dict[str, tuple[RunConfig, int]] = {
    "ppo": (replace(CHAIN, agent="ppo"), 1),
    "sppo": (replace(CHAIN, agent="sppo"), 1),
    "tracker": (replace(CHAIN, agent="tracker"), 1),
    "three ppo side by side": (replace(CHAIN, agent="ppo"), 3),
    "two sppo side by side": (replace(CHAIN, agent="sppo"), 2),
    "side by side, ending apart": (replace(UNEVEN, agent="sppo"), 3),
    "side by side, stopping at success": (replace(CHAIN, agent="ppo", n_evals=7, stop_at_success=0.5), 3),
    "streams": (STREAM, 2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """The uninterrupted runs of a case."""
    done: dict[str, list[Path]] = {}

    def runs(case: str) -> list[Path]:
        if case not in done:
            configs, folders = seeds(*CASES[case], tmp_path_factory.mktemp("whole"))
            run(configs, folders)
            done[case] = folders
        return done[case]

    return runs


def kill_at_file_operation(n: int, folder: Path) -> None:
    """SIGKILL this process at its n-th opening, renaming or removal of a file under `folder`."""
    left = n

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def go_on_to_the_end(configs: list[RunConfig], folders: list[Path], whole: list[Path]) -> None:
    quiet_run(configs, folders)
    for ours, other in zip(folders, whole, strict=True):
        assert_same_run(ours, other)
        assert_looks_whole(ours)
        assert not list((ours / "checkpoints").glob(".*"))
        assert len(list((ours / "checkpoints").iterdir())) <= KEEP


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_file_operations(case: str, whole: Any, tmp_path: Path) -> None:
    """While logs are opened, checkpoints written, renamed or removed: wherever a process touches its folder."""
    expected, (configs, folders) = whole(case), seeds(*CASES[case], tmp_path)
    rng = np.random.default_rng(len(case))
    codes = []
    for n in rng.integers(1, 60 * len(folders), 5):

        def work(n: int = int(n)) -> None:
            kill_at_file_operation(n, tmp_path)
            quiet_run(configs, folders)

        codes.append(in_child(work))
    assert set(codes) <= {0, -signal.SIGKILL} and -signal.SIGKILL in codes
    go_on_to_the_end(configs, folders, expected)


@pytest.mark.parametrize("case", ["two sppo side by side", "streams"])
def test_killed_at_random_moments(case: str, whole: Any, tmp_path: Path) -> None:
    expected, (configs, folders) = whole(case), seeds(*CASES[case], tmp_path)
    rng = np.random.default_rng(5)
    codes = [in_child(lambda: quiet_run(configs, folders), kill_after=t) for t in rng.uniform(0.05, 0.6, 5)]
    assert set(codes) <= {0, -signal.SIGKILL}
    go_on_to_the_end(configs, folders, expected)


@pytest.mark.slow
@pytest.mark.parametrize("n", range(1, 130, 2))
def test_killed_at_every_other_file_operation(n: int, whole: Any, tmp_path: Path) -> None:
    expected, (configs, folders) = whole("two sppo side by side"), seeds(*CASES["two sppo side by side"], tmp_path)

    def work() -> None:
        kill_at_file_operation(n, tmp_path)
        quiet_run(configs, folders)

    in_child(work)
    go_on_to_the_end(configs, folders, expected)


# Ctrl-C, inside one process.


class InterruptAt:
    """Presses Ctrl-C while the n-th report of a run is made."""

    def __init__(self, *at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count in self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("case", ["ppo", "two sppo side by side", "side by side, ending apart", "streams"])
def test_interrupted_again_and_again(case: str, whole: Any, tmp_path: Path) -> None:
    """Every stop leaves runs that learn side by side at the same update, and nothing is ever done twice."""
    expected, (configs, folders) = whole(case), seeds(*CASES[case], tmp_path)
    before, updates = signal.getsignal(signal.SIGINT), -1
    for press in range(1, 40):
        try:
            run(configs, folders, resume=True, report=InterruptAt(1 + press % len(folders)))
        except Interrupted:
            assert not all((folder / "result.json").exists() for folder in folders)
            reached = sum(len(records(f / "progress.jsonl")) for f in folders if (f / "progress.jsonl").exists())
            assert reached > updates, "it got further"
            updates = reached
        else:
            break
    else:
        pytest.fail("the runs came to no end")
    for ours, other in zip(folders, expected, strict=True):
        assert_same_run(ours, other)
        assert_looks_whole(ours)
    assert signal.getsignal(signal.SIGINT) is before, "Ctrl-C is whose it was"


# Damage.


def interrupted(tmp_path: Path, n: int = 1, at: int = 5) -> tuple[list[RunConfig], list[Path]]:
    """Runs that stopped after update `at`, with checkpoints of that update and of update 4."""
    configs, folders = seeds(replace(CHAIN, agent="sppo"), n, tmp_path)
    with pytest.raises(Interrupted):
        run(configs, folders, report=InterruptAt((at - 1) * n + 1))
    assert sorted(path.name for path in (folders[0] / "checkpoints").iterdir()) == ["00000004", f"{at:08d}"]
    return configs, folders


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte in the tensors": lambda c: flip(c / "agent.safetensors"),
    "flipped byte in the values": lambda c: flip(c / "agent.json"),
    "flipped byte in the manifest": lambda c: flip(c / "manifest.json"),
    "truncated": lambda c: os.truncate(c / "agent.safetensors", 100),
    "missing file": lambda c: (c / "agent.json").unlink(),
    "missing manifest": lambda c: (c / "manifest.json").unlink(),
    "manifest of another kind": lambda c: (c / "manifest.json").write_text("[]"),
    "empty manifest": lambda c: (c / "manifest.json").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage: str, whole: Any, tmp_path: Path) -> None:
    configs, folders = interrupted(tmp_path)
    newest = newest_checkpoint(folders[0])
    DAMAGE[damage](newest)
    warnings: list[str] = []
    quiet_run(configs, folders, warnings)
    assert len(warnings) == 1 and str(newest) in warnings[0] and "using the one before it" in warnings[0]
    assert_same_run(folders[0], whole("sppo")[0])
    assert_looks_whole(folders[0])


def test_with_every_checkpoint_damaged_the_run_begins_again(whole: Any, tmp_path: Path) -> None:
    """And checkpoints of higher updates that lie about do not push out the new ones."""
    configs, folders = interrupted(tmp_path)
    for checkpoint in (folders[0] / "checkpoints").iterdir():
        flip(checkpoint / "agent.safetensors")
    warnings: list[str] = []
    with pytest.raises(Interrupted):
        run(configs, folders, resume=True, report=InterruptAt(3), warn=warnings.append)
    assert len(warnings) == 2 and "there is none before it" in warnings[1]
    assert newest_checkpoint(folders[0]).name == "00000003"
    quiet_run(configs, folders, warnings)
    assert len(warnings) == 2
    assert_same_run(folders[0], whole("sppo")[0])


def test_runs_side_by_side_go_on_from_a_checkpoint_that_all_have(whole: Any, tmp_path: Path) -> None:
    configs, folders = interrupted(tmp_path, 2)
    flip(newest_checkpoint(folders[1]) / "agent.json")
    assert [c.update for c in shared_checkpoints(folders, lambda _: None)] == [4, 4]
    quiet_run(configs, folders)
    for ours, other in zip(folders, whole("two sppo side by side"), strict=True):
        assert_same_run(ours, other)


def test_a_run_that_was_done_earlier_stays_at_its_last_checkpoint(tmp_path: Path) -> None:
    agents = make_agents([resolve(replace(CHAIN, seed=i)) for i in range(2)])
    early, late = tmp_path / "early", tmp_path / "late"
    for folder in (early, late):
        folder.mkdir()
    for n in range(1, 5):
        for agent in agents:
            agent.n_updates = n
        if n <= 2:
            save_checkpoint(agents[0], early, done=n == 2)
        save_checkpoint(agents[1], late)
    assert [c.update for c in shared_checkpoints([early, late], pytest.fail)] == [2, 4]
    # Where the other one has nothing of that time or later, both go back to where they were together.
    shutil.rmtree(late / "checkpoints")
    agents[1].n_updates = 1
    save_checkpoint(agents[1], late)
    assert [c.update for c in shared_checkpoints([early, late], pytest.fail)] == [1, 1]


def test_a_line_cut_short_by_the_kill_is_dropped(whole: Any, tmp_path: Path) -> None:
    configs, folders = interrupted(tmp_path)
    for name in ("progress.jsonl", "evals.jsonl"):
        with (folders[0] / name).open("a") as file:
            file.write('{"time/n_updates": 6, "rollout/succ')
    quiet_run(configs, folders)
    assert_same_run(folders[0], whole("sppo")[0])


# Full disk.


def limit_file_size(n_bytes: int) -> None:
    """As on a full disk, writing beyond fails."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize(("n_bytes", "what"), [(1500, "the log"), (25_000, "the checkpoint")])
def test_a_full_disk_ends_in_one_error_and_what_was_written_holds(
    n_bytes: int, what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = replace(CHAIN, agent="sppo", net_arch=(64, 64))
    run([config], [tmp_path / "whole"])
    with pytest.raises(Interrupted):
        run([config], [tmp_path / "run"], report=InterruptAt(3))
    before = {path: path.read_bytes() for path in newest_checkpoint(tmp_path / "run").iterdir()}

    def work() -> None:
        limit_file_size(n_bytes)
        with pytest.raises(OSError, match=rf"{what} could not be written.*: File too large: '{tmp_path}"):
            quiet_run([config], [tmp_path / "run"])

    assert in_child(work) == 0
    assert capfd.readouterr().err == ""
    assert {path: path.read_bytes() for path in newest_checkpoint(tmp_path / "run").iterdir()} == before
    quiet_run([config], [tmp_path / "run"])
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert_looks_whole(tmp_path / "run")


def test_the_interrupted_run_has_no_result(tmp_path: Path) -> None:
    _, folders = interrupted(tmp_path)
    assert not (folders[0] / "result.json").exists()
    assert json.loads((newest_checkpoint(folders[0]) / "manifest.json").read_text())["done"] is False
