"""Every table and figure in docs/RESULTS.md is what one command makes from the committed raw results."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

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


@pytest.mark.parametrize("page", ["docs/RESULTS.md", "README.md"])
def test_figures_in_sentences_are_of_the_tables(drawn: tuple[set[str], Path], page: str) -> None:
    sentences = "\n".join(re.findall(r"^(?!    ).+", Path(page).read_text("utf-8"), re.M))
    told = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", sentences))
    assert len(told) > 2 and told <= set(re.findall(r"\d\.\d{3}", " ".join(drawn[0])))


def test_the_readme_s_table_is_of_its_packed_runs() -> None:
    table = format_table(summarize(unpack(RESULTS / "compare.json.gz"), ["ppo", "sppo"]))
    printed = re.findall(r"^    (agent  seeds.*?)\n\n", Path("README.md").read_text("utf-8"), re.M | re.S)
    assert len(printed) == 1
    assert dedent(f"    {printed[0]}") in table


def test_a_page_sums_settings_up_as_the_map_does() -> None:
    row = summarize(RESULTS / "chain-map.json.gz", ["ppo", "sppo"]).of("all settings")[1]
    assert row.auc_gain is not None
    told = f"all settings  {signed(row.auc_gain.estimate)} {bounds(row.auc_gain, signed)}  n = {row.seeds}\n"
    assert told in PAGE.read_text("utf-8")


def test_figures_are_drawn_by_the_command(drawn: tuple[set[str], Path]) -> None:
    shown = set(re.findall(r"images/([\w-]+\.png)", PAGE.read_text("utf-8")))
    made = {path.name for path in drawn[1].glob("*.png")}
    assert shown and shown <= made <= {path.name for path in Path("docs/images").glob("*.png")}


def test_commands_name_studies_that_exist() -> None:
    assert set(re.findall(r"sppo study ([\w-]+)", PAGE.read_text("utf-8"))) <= set(STUDIES)
