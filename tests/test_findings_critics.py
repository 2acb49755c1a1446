"""What critics and tables know of starts, told from runs of known predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from level_runs import level

from sppo.experiments.evidence.findings import redraw
from sppo.experiments.packed import pack


def test_calibrated_runs_are_told_over_their_seeds(tmp_path: Path) -> None:
    """Seed 0 knows the rates 0, 1/2 and 1 of its three starts; seed 1 has them the wrong way round."""
    outcomes = np.array([[0, 0], [0, 1], [1, 1]])
    values = (np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0]))
    runs = [
        level(f"Chain/sppo/seed{seed}", 0.5, calibration={"values": v, "outcomes": outcomes})
        for seed, v in enumerate(values)
    ]
    pack([*runs, level("Chain/tracker/seed0", 0.5)], tmp_path / "figure.json.gz")
    told = redraw(tmp_path, tmp_path / "images")
    (line,) = [line for line in told.splitlines() if "(-1.000 to 1.000)" in line]
    # brier: (0 + 2 / 4 + 0) / 6 = 1 / 12, and (2 + 2 / 4 + 2) / 6 = 3 / 4
    assert line.split()[:2] == ["figure/Chain", "sppo"] and line.count("0.000 (-1.000 to 1.000)") == 2
    assert "0.417 (0.083 to 0.750)" in line and line.endswith("2 x 3 x 2")
    assert (tmp_path / "images" / "calibration.png").exists()
    assert not (tmp_path / "images" / "calibration-train.png").exists(), "nothing was measured there"


def test_a_table_and_a_critic_are_told_at_training_prompts(tmp_path: Path) -> None:
    """The tracker counts one success of two everywhere, and then nothing correlates; its brier is 1/4."""
    outcomes = np.array([[0, 0], [0, 1], [1, 1]])
    runs = [
        level(f"Chain/{agent}/seed0", 0.5, calibration_train={"values": np.array(v), "outcomes": outcomes})
        for agent, v in (("sppo", [0.0, 0.5, 1.0]), ("tracker", [0.5] * 3))
    ]
    pack(runs, tmp_path / "text-pool.json.gz")
    told = redraw(tmp_path, tmp_path / "images").split("against the success rate at training prompts")[1]
    sppo, tracker = (line.split() for line in told.splitlines()[2:])
    assert sppo[2] == "1.000" and tracker[:4] == ["text-pool/Chain", "tracker", "-", "-"]
    assert tracker[8:] == "0.250 (0.250 to 0.250) 0.500 (0.500 to 0.500) 1 x 3 x 2".split()
    assert (tmp_path / "images" / "calibration-train.png").exists()
    assert not (tmp_path / "images" / "calibration.png").exists()


def test_critics_are_told_by_size(tmp_path: Path) -> None:
    """Areas .5 and .5 + .02 s of seeds s = 0, 1, 2 with 1 layer, .1 above it with 4: by number, 16 comes after 4.

    Student, two degrees of freedom: 4.303 x sd / sqrt(3) = 4.303 x .02 / 1.732 = .0497.
    """
    outcomes = np.array([[0, 0], [0, 1], [1, 1]])
    runs = [
        level(
            f"Chain/critic layers/{size}/sppo/seed{seed}",
            0.5 + 0.02 * seed + gap,
            calibration={"values": np.array([0.0, 0.5, 1.0]), "outcomes": outcomes},
        )
        for size, gap in ((16, 0.2), (1, 0.0), (4, 0.1))
        for seed in range(3)
    ]
    pack(runs, tmp_path / "critics.json.gz")
    _, areas, calibrations = redraw(tmp_path, tmp_path / "images").split("\n\n")
    assert [line.split("layers")[1].split() for line in areas.splitlines()[1:]] == [
        ["1", "0.520", "[0.470,", "0.570]", "n", "=", "3"],
        ["4", "0.620", "[0.570,", "0.670]", "+0.100", "[+0.100,", "+0.100]", "n", "=", "3"],
        ["16", "0.720", "[0.670,", "0.770]", "+0.200", "[+0.200,", "+0.200]", "n", "=", "3"],
    ]
    assert [line.split()[:3] for line in calibrations.splitlines()[2:]] == [
        ["Chain/critic", "layers", size] for size in ("1", "4", "16")
    ]
    assert {"critics.png", "critics-calibration.png"} <= {file.name for file in (tmp_path / "images").iterdir()}
