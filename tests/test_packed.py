"""Runs in one file, and the table and page drawn from it."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppo.experiments.packed import pack, unpack
from sppo.experiments.report import write_report
from sppo.experiments.results import load_runs
from sppo.experiments.summary import format_table, summarize
from tests.fake_runs import write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for agent in ("ppo", "sppo"):
        for seed in range(3):
            write_run(tmp_path / "runs", agent, seed)
    return tmp_path / "runs"


def test_a_packed_file_has_the_table_of_the_folder(folder: Path, tmp_path: Path) -> None:
    file = pack(load_runs(folder)[0], tmp_path / "all.json.gz")
    assert format_table(summarize(file)) == format_table(summarize(folder))
    assert file.stat().st_size < 20_000
    page = write_report(file, "sppo report", out=tmp_path)
    assert page.parent == tmp_path and "ppo/seed0" in page.read_text("utf-8")


def test_the_same_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first, second = (pack(load_runs(folder)[0], tmp_path / name).read_bytes() for name in ("a.json.gz", "b.json.gz"))
    assert first == second


def test_metrics_are_means_and_gaps_stay_gaps(folder: Path, tmp_path: Path) -> None:
    (run, *_) = load_runs(folder)[0]
    (packed, *_) = unpack(pack([run], tmp_path / "one.json.gz"))
    assert packed.evals.keys() == run.evals.keys() and packed.config == run.config and packed.name == "ppo/seed0"
    # 60 updates in 25 bins: the first 10 hold three each
    metric = run.progress["train/approx_kl"]
    np.testing.assert_allclose(packed.progress["train/approx_kl"][:2], [metric[:3].mean(), metric[3:6].mean()], 1e-3)
    # recorded at updates 0, 3, 6, ...: empty are 5 of the 15 bins of two (34 and 35, 40 and 41, ...)
    assert np.isnan(packed.progress["critic/auc"]).sum() == 5


@pytest.mark.parametrize(
    ("start", "packed"),
    [
        ("{here}/starts/a", "starts/a"),
        ("/elsewhere/runs/older/runs/starts/a", "runs/starts/a"),
        ("runs/starts/a", "runs/starts/a"),
        ("/elsewhere/starts/a", "/elsewhere/starts/a"),
        ('said "/elsewhere/runs/a', 'said "/elsewhere/runs/a'),
    ],
)
def test_paths_of_a_machine_are_cut_to_what_a_checkout_has(folder: Path, start: str, packed: str) -> None:
    """Below the current folder, or from the last folder `runs` on: runs may have been made in another checkout."""
    (run, *_) = load_runs(folder)[0]
    file = pack([replace(run, config={"start": start.format(here=Path.cwd())})], folder / "one.json.gz")
    assert unpack(file)[0].config == {"start": packed}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.json.gz"
    whole = gzip.compress(b'{"runs": []}')
    flipped = whole[:10] + bytes([whole[10] ^ 0xFF]) + whole[11:]  # the first byte behind gzip's header
    with pytest.raises(zlib.error):
        gzip.decompress(flipped)
    with pytest.raises(ValueError, match=r"bad\.json\.gz must be a file of compressed JSON \(\.json\.gz\): .*No such"):
        unpack(file)
    for content in (b"", b"no gzip", flipped, whole[:-1], gzip.compress(b"{"), gzip.compress(b"[1]")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.json\.gz must be a file of compressed JSON"):
            unpack(file)
    for content in (b"{}", b'{"runs": [{}]}', b'{"runs": [{"evals": 1}]}'):
        file.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=r"bad\.json\.gz must be a file of packed runs"):
            unpack(file)
