"""Shared by all tests: one torch thread, seeded generators, no display."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_run

# Before anything draws: the machines that run the tests have no display.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: `make test-vllm` has it"))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Networks this small run slower on several threads, and sums in one order are reproducible.

    For each test anew: a run sets the number it was given, and a process forked after that could hang in a team of
    threads that it does not have.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the source tree."""
    return ROOT


@pytest.fixture
def two_agents(tmp_path: Path) -> Path:
    """Episodes 0, 500, 1000. PPO: 0, 0, 1 on three seeds; SPPO: 0, 1, 1 on three seeds."""
    for seed in range(3):
        write_run(tmp_path, "ppo", seed, episodes=1000, success=[0.0, 0.0, 1.0])
        write_run(tmp_path, "sppo", seed, episodes=1000, success=[0.0, 1.0, 1.0])
    return tmp_path
