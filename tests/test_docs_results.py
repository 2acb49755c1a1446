"""Every table and figure in docs/RESULTS.md is what one command makes from the committed raw results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from sppo.experiments.compact import ENDING, read
from sppo.experiments.evidence.commands import Redraw
from sppo.experiments.evidence.studies import RESULTS, STUDIES
from sppo.experiments.packed import unpack
from sppo.experiments.summary import bounds, format_table, signed, summarize

PAGE = Path("docs/RESULTS.md")
TABLES = Path("docs/results/tables.txt")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], Path]:
    out = tmp_path_factory.mktemp("redrawn")
    Redraw(out=out, tables=out / TABLES.name)()
    return {line.strip() for line in (out / TABLES.name).read_text("utf-8").splitlines()}, out


def test_the_committed_tables_are_what_the_command_prints(drawn: tuple[set[str], Path]) -> None:
    assert (drawn[1] / TABLES.name).read_text("utf-8") == TABLES.read_text("utf-8")


def test_tables_are_of_those(drawn: tuple[set[str], Path]) -> None:
    lines = re.findall(r"^    (.*\S)", PAGE.read_text("utf-8"), re.M)
    tables = [line.strip() for line in lines if not line.strip().startswith("sppo ")]
    assert tables and [line for line in tables if line not in drawn[0]] == []


Triple = tuple[float, float, float]


def triples(text: str) -> set[Triple]:
    """Each `x [low, high]` on one line, of however many digits."""
    number = r"([+-]?\d+\.\d+)"
    found = re.findall(rf"(?<![\d.]){number} \[{number}, {number}\]", text)
    return {(float(x), float(low), float(high)) for x, low, high in found}


def not_told(sentences: str, tables: str) -> set[Triple]:
    """Triples of sentences that no table has, nor its opposite: A's lead over B is B's over A, ends swapped."""
    told = triples(tables)
    return triples(" ".join(sentences.split())) - told - {(-x, -high, -low) for x, low, high in told}


@pytest.mark.parametrize(
    ("sentence", "missing"),
    [
        ("ahead by 0.029 [0.018, 0.039] in area", set()),
        ("behind by -0.029 [-0.039,\n-0.018] in area", set()),
        ("takes 2.19 [2.01, 2.35] times", set()),
        ("ahead by 0.029 [-0.039, -0.018]", {(0.029, -0.039, -0.018)}),
        ("ahead by 0.029 [0.018, 0.036]", {(0.029, 0.018, 0.036)}),
        ("ahead by 0.036 [0.018, 0.039]", {(0.036, 0.018, 0.039)}),
    ],
)
def test_a_triple_is_told_as_one(sentence: str, missing: set[Triple]) -> None:
    assert not_told(sentence, "  sppo  +0.029 [+0.018, +0.039]  n = 20\n  +0.036  x 2.19 [2.01, 2.35]") == missing


def blocks(tables: str) -> dict[str, str]:
    """What the command prints, by the command that made the runs."""
    parts = re.split(r"^(sppo (?:study|calibrate) .+)$", tables, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def of_section(section: str, tables: str) -> str:
    """The tables of the studies that a section names; all of them where it names none."""
    named = re.findall(r"sppo (?:study|calibrate) [\w-]+", section)
    chosen = [told for made, told in blocks(tables).items() if {*made.split("; ")} & {*named}]
    return "\n".join(chosen) if named else tables


def test_a_section_s_tables_are_those_of_the_studies_that_it_names() -> None:
    made_by = {
        "sppo study figure": "sppo  0.111",
        "sppo study a-map; sppo study b-map": "0.222",
        "sppo study c": "0.333",
    }
    tables = "\n\n".join(f"{made}\n\n{told}" for made, told in made_by.items())
    assert of_section("no study", tables) == tables
    assert of_section("`sppo study b-map` told", tables).split() == ["0.222"]
    assert of_section("    sppo study figure\n\nand text", tables).split() == ["sppo", "0.111"]


@pytest.mark.parametrize("page", ["docs/RESULTS.md", "README.md"])
def test_figures_in_sentences_are_of_the_tables_of_their_section(page: str) -> None:
    tables, told = TABLES.read_text("utf-8"), 0
    for section in re.split(r"^(?=## )", Path(page).read_text("utf-8"), flags=re.M):
        known = of_section(section, tables)
        sentences = "\n".join(re.findall(r"^(?!    ).+", section, re.M))
        figures = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", sentences))
        assert figures - set(re.findall(r"\d\.\d{3}", known)) == set(), section.splitlines()[0]
        assert not_told(sentences, known) == set(), section.splitlines()[0]
        told += len(figures)
    assert told > 2


def strings(content: Any) -> Iterator[str]:
    """All of a JSON value, its keys among them."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for each in (*content, *content.values()) if isinstance(content, dict) else content:
            yield from strings(each)


def test_strings_are_found_however_deep() -> None:
    assert [*strings({"a": [1, {"b": "/c"}], "d": None})] == ["a", "d", "b", "/c"]


@pytest.mark.parametrize("file", sorted(RESULTS.glob(f"*{ENDING}")), ids=lambda file: file.name)
def test_raw_results_hold_no_path_of_a_machine(file: Path) -> None:
    assert [text for text in strings(read(file)) if text.startswith("/")] == []


def test_the_readme_s_table_is_of_its_packed_runs() -> None:
    table = format_table(summarize(unpack(RESULTS / "compare.json.gz"), ["ppo", "sppo"]))
    printed = re.findall(r"^    (agent  seeds.*?)\n\n", Path("README.md").read_text("utf-8"), re.M | re.S)
    assert len(printed) == 1
    assert dedent(f"    {printed[0]}") in table


def test_a_page_sums_settings_up_as_the_map_does() -> None:
    row = summarize(RESULTS / "chain-map.json.gz", ["ppo", "sppo"]).of("all settings")[1]
    assert row.auc_gain is not None
    told = f"all settings  {signed(row.auc_gain.estimate)} {bounds(row.auc_gain, signed)}  n = {row.seeds}\n"
    assert told in TABLES.read_text("utf-8")


def test_figures_are_drawn_by_the_command(drawn: tuple[set[str], Path]) -> None:
    """And are not older than what they show; rounding may differ."""
    shown = set(re.findall(r"images/([\w-]+\.png)", PAGE.read_text("utf-8")))
    made = {path.name for path in drawn[1].glob("*.png")}
    assert shown and shown <= made
    for name in made:
        old, new = (imread(folder / name) for folder in (Path("docs/images"), drawn[1]))
        assert old.shape == new.shape and np.abs(old - new).mean() < 1e-4, name


def test_commands_name_studies_that_exist() -> None:
    assert set(re.findall(r"sppo study ([\w-]+)", PAGE.read_text("utf-8"))) <= set(STUDIES)
