"""`sppo why`: a small measurement drawn from its file, and the committed one redrawn as docs/WHY.md has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppo.experiments import compact
from sppo.experiments.evidence import gradients, positions, why, why_figures, why_tables
from sppo.experiments.evidence.studies import CARTPOLE, CHAIN


def test_what_is_written_is_read_to_four_digits(tmp_path: Path) -> None:
    file = tmp_path / "new" / "why.json.gz"
    raw = {"a": [{"x": np.array([[0.123456, 2.0]]), "n": 12345, "none": None, "text": "b"}]}
    compact.write(compact.short(raw), file)
    assert why.read(file) == {"a": [{"x": [[0.1235, 2.0]], "n": 12345, "none": None, "text": "b"}]}
    before = file.read_bytes()
    compact.write(compact.short(why.read(file)), file)
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match="measure first"):
        why.read(tmp_path / "other.json.gz")


def test_a_small_measurement_is_made_once_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {
        "CARTPOLE_HORIZONS": (10,),
        "CHAIN_HORIZONS": (6,),
        "BATCHES": 4,
        "FITS": (64, 128),
        "OTHERS": ("drgrpo", "gspo", "remax"),
        "REFERENCE": 1024,
        "ALONG": {CHAIN: 64},
        "FOLLOWED": 64,
    }
    for name, value in small.items():
        monkeypatch.setattr(why, name, value)
    for module in (gradients, positions):
        monkeypatch.setattr(module, "RESAMPLES", 20)
    monkeypatch.setitem(why.ONE_HORIZON, CHAIN, 6)
    monkeypatch.setitem(why.ONE_HORIZON, CARTPOLE, 10)
    raw, images = tmp_path / "why.json.gz", tmp_path / "images"
    why.Why(measure=True, raw=raw, images=images)()
    told = capsys.readouterr().out
    assert f"gradients/{CHAIN}/6/1" in told
    assert sorted(path.name for path in images.iterdir()) == sorted(
        f"why-{name}{ending}" for name in why_figures.FIGURES for ending in (".png", ".svg")
    )
    before = raw.read_bytes()
    why.Why(measure=True, raw=raw, images=images)()
    assert raw.read_bytes() == before and "gradients/" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def committed(request: pytest.FixtureRequest) -> dict[str, Any]:
    return why.read(Path(request.config.rootpath) / "docs" / "results" / "why.json.gz")


def test_everything_was_measured(committed: dict[str, Any]) -> None:
    assert set(committed) == {"versions", *why.pieces()}


def test_the_documents_tables_are_those_of_the_committed_measurements(committed: dict[str, Any], root: Path) -> None:
    text = (root / "docs" / "WHY.md").read_text()
    for table in why_tables.tables(committed).split("\n\n"):
        assert table in text, table.splitlines()[0]


def test_the_committed_measurements_are_drawn(committed: dict[str, Any], root: Path, tmp_path: Path) -> None:
    drawn = {path.name: path for path in why_figures.draw(committed, tmp_path)}
    text = (root / "docs" / "WHY.md").read_text()
    assert {Path(link).name for link in re.findall(r"\((images/why-[^)]+)\)", text)} <= drawn.keys()
    for name, path in drawn.items():
        assert path.stat().st_size > 10_000, name
        assert (root / "docs" / "images" / name).exists() or name.endswith(".svg")
