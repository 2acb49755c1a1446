"""Figures of a comparison: curves on one grid, files, panels of training metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sppo.experiments.diagnostics import diagnostic_tags, unit_of
from sppo.experiments.plots import align, common_grid, plot_curves
from sppo.experiments.report import write_report
from sppo.experiments.results import load_runs
from sppo.experiments.summary import summarize


def test_curves_are_written_as_png_and_svg(two_agents: Path) -> None:
    png, svg = plot_curves(summarize(two_agents), two_agents / "curves.v1")
    assert png.name == "curves.v1.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text("utf-8")
    for label in ("training episodes", "environment steps", "wall-clock time [s]", "ppo (n = 3)", "sppo (n = 3)"):
        assert label in text


def test_aligned_curves_keep_their_kinks_and_their_ends() -> None:
    # grid 0 5 10 20; the second curve ends at 10 and stays at its last value
    x, y = align(
        [np.array([0.0, 5.0, 20.0]), np.array([0.0, 10.0])],
        [np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.5])],
    )
    assert x.tolist() == [0, 5, 10, 20]
    assert y.tolist() == [[0, 1, 1, 1], [0, 0.25, 0.5, 0.5]]
    assert len(common_grid([np.arange(1000.0)], points=100)) == 100


def test_diagnostics_skip_counters_and_what_was_not_recorded(two_agents: Path) -> None:
    runs = load_runs(two_agents)[0]
    assert diagnostic_tags(runs) == ["rollout/success_rate", "train/approx_kl", "critic/auc"]
    for path in two_agents.rglob("progress.csv"):
        path.unlink()
    assert "Training diagnostics" not in write_report(two_agents, "sppo report").read_text("utf-8")


def test_units_of_metrics() -> None:
    assert [unit_of(tag) for tag in ("train/approx_kl", "rollout/ep_len_mean", "reward/ok", "train/grad_norm")] == [
        " [nat]",
        " [steps]",
        " [share]",
        "",
    ]
