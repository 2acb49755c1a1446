"""The report of a study: agents compared at every setting, and settings summed up seed by seed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from fake_runs import CARTPOLE, write_run
from report_pages import COMMAND, Page, records

from sppo.experiments.answer import agent_by_agent, answer
from sppo.experiments.differences import between_settings, differences
from sppo.experiments.matrix import matrix
from sppo.experiments.report import write_report
from sppo.experiments.summary import format_table, summarize


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """SPPO gains 0.5 in every seed at one setting of two, and nothing at the other."""
    for horizon, success in ((10, [0.0, 1.0, 1.0]), (100, [0.0, 0.0, 1.0])):
        for seed in range(3):
            for agent, curve in (("ppo", [0.0, 0.0, 1.0]), ("sppo", success)):
                folder = write_run(tmp_path / f"{horizon}/a", agent, seed, episodes=1000, success=curve)
                config = json.loads((folder / "config.json").read_text())
                config |= {"env_kwargs": {"horizon": horizon}, "start": f"starts/{horizon}/{seed}.safetensors"}
                (folder / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_first_screen_of_settings(settings: Path) -> None:
    table = summarize(settings)
    assert answer(table) == [
        "Over all 2 settings sppo (+0.250 [+0.250, +0.250]) learns faster than ppo.",
        "Clearly apart from ppo at single settings: sppo faster at 1 of 2, at 10/a (+0.500 [+0.500, +0.500]).",
        "Numbers: gain in success rate averaged over training (AUC), its 95% interval over n = 3 seeds. "
        "Settings share their seeds, and so a seed's luck.",
    ]
    pools, rows = matrix(table, COMMAND).split("<tbody>")
    assert re.findall(r'<th scope="col">(?:<span.*?</span>)?([^<]+)', pools) == [
        "setting",
        "horizon",
        "success at start",
        "ppo",
        "sppo",
    ]
    assert re.findall(r"<td[^>]*>([^<]*)", pools.split("<tr>")[2]) == ["all settings", "", "0.0%", "0.250", "▲ +0.250"]
    assert [re.findall(r"<td[^>]*>([^<]*)", row) for row in rows.split("<tr>")[1:]] == [
        ["10/a", "10", "0.0%", "0.250", "▲ +0.500"],
        ["100/a", "100", "0.0%", "0.250", "+0.000"],
    ]


def test_agents_that_share_no_setting_are_not_compared(settings: Path) -> None:
    for name in ("10/a/ppo", "100/a/sppo"):
        shutil.rmtree(settings / name)
    for seed in range(3):
        write_run(settings / "1000/a", "ppo", seed)
    assert answer(summarize(settings)) == ["At no single setting do ppo and another agent share two seeds."]


def test_numbers_are_told_over_the_seeds_that_are_shared(settings: Path) -> None:
    """At 10/a PPO keeps seeds 0 and 1, SPPO all three; at 100/a they share seed 0 alone."""
    for folder in ("10/a/ppo/seed2", "100/a/ppo/seed1", "100/a/ppo/seed2"):
        shutil.rmtree(settings / folder)
    table = summarize(settings)
    assert answer(table)[1:] == [
        "Clearly apart from ppo at single settings: sppo faster at 1 of 1, at 10/a (+0.500 [+0.500, +0.500]).",
        "Numbers: gain in success rate averaged over training (AUC), its 95% interval over n = 2 seeds. "
        "Settings share their seeds, and so a seed's luck.",
    ]
    assert answer(table)[0] == "Over all 2 settings one seed cannot tell agents apart."
    _, short, long = matrix(table, COMMAND).split('<td class="name">')[1:]
    assert "n = 2<" in short and "n = 1<" in long and "one seed" in long
    words = agent_by_agent(table)
    assert words.count("n = 2 shared seeds") == 1 and words.count("<p>") == 1 and "inf" not in words


def test_page_of_settings(settings: Path) -> None:
    text = write_report(settings, COMMAND).read_text("utf-8")
    page = Page()
    page.feed(text)
    assert (page.open, page.fetched) == ([], [])
    assert page.headings[0] == f"ppo and sppo on {CARTPOLE} at 2 settings"
    assert "Training diagnostics" not in page.headings
    # what its numbers are, there and in the terminal
    assert "after Student" in text and "difference of the IQMs" not in text
    assert format_table(summarize(settings)).endswith(
        "Mean over seeds, [95% t interval]; P and to 90% (interquartile mean): [95% bootstrap interval]."
    )
    # any two runs can be chosen by names that tell settings apart
    assert {"10/a/ppo/seed0", "100/a/ppo/seed0"} <= {record["name"] for record in records(text)}


def test_student_s_intervals_leave_out_zero_as_often_as_their_level_says(tmp_path: Path) -> None:
    for setting in ("1", "2"):
        for agent in ("ppo", *(f"a{i}" for i in range(8))):
            for seed in range(2):
                write_run(tmp_path / setting, agent, seed, success=[0.5, 0.5])
    # 8 agents at 2 settings and over both: 24 intervals of 95 %
    assert "By chance about 1 of 24 intervals would leave out zero." in answer(summarize(tmp_path))[-1]


def test_settings_that_differ_between_settings(settings: Path) -> None:
    table = summarize(settings)
    assert between_settings(table, table.scopes) == {
        "env_kwargs.horizon": ["10", "100"],
        "start": ['"starts/10/*.safetensors"', '"starts/100/*.safetensors"'],
    }
    # and between agents, at every setting alike
    assert differences(table) == {"hyper.critic": {"ppo": '"step"', "sppo": '"start"'}}
