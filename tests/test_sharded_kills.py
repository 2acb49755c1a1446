"""Runs that ranks share, when a rank or the launcher is killed, or Ctrl-C is pressed: they end, and go on alike."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="needs the extra sppo[lora]")

from launched import CLI, PATIENCE, TRAIN, assert_same_shared_run, done, ends, rank, reach, started, torchrun
from small_runs import newest_checkpoint, records, sppo


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two ranks."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    done(*torchrun(2, *CLI), *TRAIN, "--out", folder)
    return folder


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        ("rank", "Signal 9 (SIGKILL) received"),
        pytest.param("launcher", "the launcher is gone, stopping", marks=pytest.mark.slow),
    ],
)
def test_a_kill_ends_the_run_which_goes_on_alike(victim: str, message: str, shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(*torchrun(2, *CLI), *TRAIN, "--out", folder) as launcher:
        reach(launcher, folder / "checkpoints" / "00000001")
        assert message in ends(launcher, rank(launcher, 1) if victim == "rank" else launcher.pid)
    assert not (folder / "result.json").exists()
    done(*torchrun(2, *CLI), *TRAIN, "--out", folder, "--resume")
    assert_same_shared_run(folder, shared)


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks_after_the_same_update(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(*torchrun(2, *CLI), *TRAIN, "--out", folder) as launcher:
        reach(launcher, folder / "checkpoints" / "00000001")
        said = ends(launcher, launcher.pid, signal.SIGINT)
    assert "stopped; every run has its checkpoint: the same command with --resume goes on" in said
    last = records(folder / "progress.jsonl")[-1]["time/n_updates"]
    assert last < 6 and not (folder / "result.json").exists()
    for part in ("", "ranks/1"):
        assert newest_checkpoint(folder / part).name == f"{int(last):08d}", "nothing is lost, and both are as far"
    done(*torchrun(2, *CLI), *TRAIN, "--out", folder, "--resume")
    assert_same_shared_run(folder, shared)


@pytest.mark.slow
def test_another_number_of_ranks_is_refused_in_one_line(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(shared, folder)
    (folder / "result.json").unlink()
    with started(*torchrun(1, *CLI), *TRAIN, "--out", folder, "--resume") as launcher:
        said, _ = launcher.communicate(timeout=200)
    assert launcher.returncode != 0
    (line,) = [line for line in said.splitlines() if "sppo: " in line]
    assert f"{folder} holds another run: it is shared by 2 ranks, not by 1" in line
    alone = sppo(*TRAIN, "--out", folder, "--resume")
    assert alone.returncode == 1 and "it is shared by 2 ranks, not by no" in alone.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """By torchrun, where one is asked for: with --standalone it takes a free one."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        launch = ("-m", "torch.distributed.run", "--nproc-per-node", 1, "--master-port", port)
        with started(*launch, *CLI, *TRAIN, "--out", tmp_path / "run") as launcher:
            said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0 and not (tmp_path / "run").exists()
    assert f"port: {port}" in said.splitlines()[-1] and "address already in use" in said.splitlines()[-1]
