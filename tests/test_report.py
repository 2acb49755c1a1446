"""The page of a comparison: its first screen in words and as a table, its settings, and that it needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_runs import CARTPOLE, write_run
from report_pages import COMMAND, Page, records

from sppo.experiments.answer import answer, grounds, is_clear
from sppo.experiments.differences import differences, flatten
from sppo.experiments.matrix import matrix
from sppo.experiments.packed import pack
from sppo.experiments.report import duration, write_report
from sppo.experiments.results import load_runs
from sppo.experiments.stats import Interval
from sppo.experiments.summary import format_table, leaves_out_zero, summarize


def test_words_say_who_is_ahead_by_how_much_and_how_surely(two_agents: Path) -> None:
    # areas 0.25 and 0.75 on all three seeds
    assert answer(summarize(two_agents)) == [
        "On PrecisionCartPole-v0 sppo (+0.500 [+0.500, +0.500]) learns faster than ppo.",
        "Numbers: gain in success rate averaged over training (AUC), its 95% interval over n = 3 seeds. "
        "A difference is clear where zero is outside of that interval and of Student's of the plain mean.",
    ]


def test_words_claim_nothing_where_the_interval_holds_zero(tmp_path: Path) -> None:
    for seed, (low, high) in enumerate([(0.2, 0.9), (0.4, 0.7), (0.6, 0.5), (0.8, 0.3)]):
        write_run(tmp_path, "ppo", seed, success=[low, low])
        write_run(tmp_path, "sppo", seed, success=[high, high])
        write_run(tmp_path, "tracker", seed, success=[low / 10, low / 10])
    # interquartile means: 0.5 of PPO, 0.6 of SPPO, 0.05 of the tracker
    table = summarize(tmp_path)
    assert re.fullmatch(
        r"On PrecisionCartPole-v0 tracker \(-0\.450 \[-0\.\d+, -0\.\d+\]\) learns slower than ppo; "
        r"sppo does not clearly differ from ppo\.",
        answer(table)[0],
    )
    assert re.fullmatch(
        r"On PrecisionCartPole-v0 sppo \(\+0\.100 \[-0\.\d+, \+0\.\d+\]\) does not clearly differ from ppo\.",
        answer(summarize(tmp_path, ["ppo", "sppo"]))[0],
    )
    ppo, sppo, tracker = table.rows
    assert "Every run of ppo beat every run of tracker." in grounds(tracker, ppo, 0.95)
    # of 16 pairs SPPO wins 0.9: 4, 0.7: 3, 0.5: 2, 0.3: 1
    assert "beats a run of ppo with probability 0.62" in grounds(sppo, ppo, 0.95)


def test_no_mark_contradicts_its_digits() -> None:
    intervals = [(0.01, 0.0004, 0.02), (0.01, 0.0006, 0.02), (-0.01, -0.02, -0.0004), (-0.01, -0.02, -0.0006)]
    assert [leaves_out_zero(Interval(*interval)) for interval in intervals] == [False, True, False, True]


@pytest.fixture
def two_tasks(tmp_path: Path) -> Path:
    """SPPO is ahead on Precision CartPole, areas 0.75 and 0.25, and level on Hopper."""
    for env_id, success in ((CARTPOLE, [0.0, 1.0, 1.0]), ("sppo/Hopper-v0", [0.0, 0.0, 1.0])):
        for seed in range(2):
            write_run(tmp_path, "ppo", seed, env_id=env_id, nested=True, episodes=1000, success=[0.0, 0.0, 1.0])
            write_run(tmp_path, "sppo", seed, env_id=env_id, nested=True, episodes=1000, success=success)
    return tmp_path


def test_first_screen_of_several_tasks(two_tasks: Path) -> None:
    table = summarize(two_tasks)
    # over both tasks the middle half of 0.75 0.75 0.25 0.25 has mean 0.5, that of PPO 0.25
    assert answer(table)[:2] == [
        "Over all 2 tasks sppo (+0.250 [+0.250, +0.250]) learns faster than ppo.",
        "Task by task: on PrecisionCartPole-v0 sppo (+0.500 [+0.500, +0.500]) faster than ppo; "
        "no clear difference on the other.",
    ]
    shown = matrix(table, COMMAND)
    assert re.findall(r"<th scope=\"col\">([^<]+)<small>([^<]+)", shown) == [
        ("all tasks", "n = 2"),
        ("Hopper-v0", "n = 2, 1.00k episodes"),
        ("PrecisionCartPole-v0", "n = 2, 1.00k episodes"),
    ]
    row = shown.split('<th scope="row">')[2]
    assert re.findall(r"<td((?: class=\"ahead\")?)[^>]*>([^<]+)<small>", row) == [
        (' class="ahead"', "▲ +0.250"),
        ("", "+0.000"),
        (' class="ahead"', "▲ +0.500"),
    ]
    page = write_report(two_tasks, COMMAND).read_text("utf-8")
    assert page.index("Over all 2 tasks") < page.index('class="matrix"') < page.index("<h2>")


def test_task_without_an_agent_is_told_apart_from_no_gain(two_tasks: Path) -> None:
    write_run(two_tasks, "tracker", 0, env_id=CARTPOLE, nested=True, episodes=1000, success=[0.0, 0.0, 0.0])
    table = summarize(two_tasks)
    assert answer(table)[0].startswith("Task by task: ")
    row = matrix(table, COMMAND).split('<th scope="row">')[3]
    assert re.findall(r"<td>([^<]+)", row) == ["–", "-0.250"]
    assert "<small>one seed</small>" in row


def test_a_task_without_the_first_agent_has_no_gains(two_tasks: Path) -> None:
    for agent, height in (("rloo", 0.2), ("tracker", 0.8)):
        for seed in range(2):
            write_run(two_tasks, agent, seed, env_id="sppo/Chain-v0", nested=True, success=[height] * 2)
    table = summarize(two_tasks)
    # there the tracker's 0.8 is a lot more than 0.2, but neither is measured against PPO
    assert answer(table)[0] == (
        "Task by task: on PrecisionCartPole-v0 sppo (+0.500 [+0.500, +0.500]) faster than ppo; "
        "no clear difference on another; nothing to compare on 1."
    )
    row = matrix(table, COMMAND).split('<th scope="row">')[4]
    assert "tracker" in row and re.findall(r"<td>([^<]+)", row) == ["–"] * 3
    assert "P(AUC > rloo)" not in format_table(table)
    (told,) = answer(summarize(two_tasks / "Chain-v0", ["rloo", "tracker"]))[:1]
    assert told == "On Chain-v0 tracker (+0.600 [+0.600, +0.600]) learns faster than rloo."


def test_agents_that_lag_behind_do_not_silence_the_others(two_agents: Path) -> None:
    write_run(two_agents, "tracker", 0, episodes=1000, success=[0.0, 0.0, 0.0])
    assert answer(summarize(two_agents))[0] == (
        "On PrecisionCartPole-v0 sppo (+0.500 [+0.500, +0.500]) learns faster than ppo; "
        "of tracker one seed cannot tell."
    )
    # measured against it, no other has an interval either
    assert answer(summarize(two_agents, ["tracker", "ppo", "sppo"])) == [
        "On PrecisionCartPole-v0 one seed cannot tell agents apart."
    ]


def test_one_agent_with_unequal_seeds_is_told_task_by_task(tmp_path: Path) -> None:
    for env_id, seeds in ((CARTPOLE, 2), ("sppo/Hopper-v0", 1)):
        for seed in range(seeds):
            write_run(tmp_path, "ppo", seed, env_id=env_id, nested=True, success=[0.0, 1.0])
    assert answer(summarize(tmp_path)) == [
        f"On {task} ppo ends at 1.000 success and averages 0.500 over training."
        for task in ("Hopper-v0", "PrecisionCartPole-v0")
    ]


def test_how_many_intervals_chance_would_mark(tmp_path: Path) -> None:
    for agent in ("ppo", *(f"a{i}" for i in range(20))):
        for seed in range(2):
            write_run(tmp_path, agent, seed, success=[0.5, 0.5])
    told = answer(summarize(tmp_path))[-1]
    assert told.endswith("of the plain mean. By chance about 1 of 20 intervals would leave out zero.")


def test_a_bootstrap_of_few_seeds_alone_makes_no_difference_clear(tmp_path: Path) -> None:
    """Gains of .1, .2 and .6 have one sign, so that the bootstrap's interval leaves out zero; Student's is
    .3 -+ 4.303 x .2646 / sqrt(3) = .3 -+ .657. Those of .29, .3 and .31 are clear by both."""
    for agent, gains in (("ppo", (0, 0, 0)), ("far", (0.1, 0.2, 0.6)), ("near", (0.29, 0.3, 0.31))):
        for seed, gain in enumerate(gains):
            write_run(tmp_path, agent, seed, success=[0.2 + gain, 0.2 + gain])
    table = summarize(tmp_path)
    far, near = (next(row for row in table.rows if row.agent == agent) for agent in ("far", "near"))
    assert far.auc_gain and far.auc_gain.low > 0 and far.mean_gain
    np.testing.assert_allclose(far.mean_gain, [0.3, -0.357, 0.957], atol=1e-3)
    assert not is_clear(far) and is_clear(near)
    cells = re.findall(r"<td[^>]*>(?:▲ )?[+]0.3\d\d|<td[^>]*>(?:▲ )?[+]0.2\d\d", matrix(table, ""))
    assert ["▲" in cell for cell in cells] == [False, True] and "[-0.357, +0.957]" in cells[0]


def test_one_seed_tells_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", 0)
    write_run(tmp_path, "sppo", 0)
    assert answer(summarize(tmp_path)) == ["On PrecisionCartPole-v0 one seed cannot tell agents apart."]
    assert "one seed: no interval" in write_report(tmp_path, COMMAND).read_text("utf-8")


def test_settings_that_differ_between_agents(two_tasks: Path) -> None:
    # not the seeds, which both agents share, nor the budgets, which are equal on each task
    assert differences(summarize(two_tasks)) == {"hyper.critic": {"ppo": '"step"', "sppo": '"start"'}}
    for seed in range(2):
        config = two_tasks / "Hopper-v0" / "sppo" / f"seed{seed}" / "config.json"
        config.write_text(config.read_text().replace("0.0003", "0.001"))
    assert differences(summarize(two_tasks))["hyper.learning_rate"] == {
        "ppo": "0.0003",
        "sppo": "Hopper-v0: 0.001; PrecisionCartPole-v0: 0.0003",
    }


def test_unfinished_runs_and_thresholds_never_reached_are_told(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "ppo", seed, episodes=1000, success=[0.0, 0.5])
    write_run(tmp_path, "ppo", 2, finished=False)
    page = write_report(tmp_path, COMMAND).read_text("utf-8")
    assert "1 unfinished run left out" in page
    assert "never (0 of 2)" in page
    assert "inf" not in page.split("<script")[0]


def test_a_packed_file_has_its_page_below_runs(two_agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack(load_runs(two_agents)[0], two_agents / "mine.json.gz")
    monkeypatch.chdir(two_agents)
    assert write_report(file, COMMAND) == Path("runs/reports/mine/report.html")
    with pytest.raises(ValueError, match="nothing"):
        write_report(two_agents / "nothing", COMMAND)
    assert not (two_agents / "nothing").exists()


def test_counts_have_the_units_of_their_tasks(tmp_path: Path) -> None:
    for name, heads in (
        ("text/addition", ("responses", "tokens")),
        (CARTPOLE, ("episodes or responses", "env steps or tokens")),
    ):
        write_run(tmp_path, "ppo", 0, env_id=name, nested=True)
        page = write_report(tmp_path, COMMAND).read_text("utf-8")
        for head in (f"{heads[0]} to 90%", *heads):
            assert f'<th scope="col">{head}</th>' in page


def test_of_many_tasks_it_is_told_on_how_many(tmp_path: Path) -> None:
    """PPO's rate is 0.0003 on four tasks and 0.001 on five; SPPO's the former everywhere."""
    for i in range(9):
        for agent in ("ppo", "sppo"):
            folder = write_run(tmp_path, agent, 0, env_id=f"sppo/T{i}-v0", nested=True)
            if agent == "ppo" and i > 3:
                config = folder / "config.json"
                config.write_text(config.read_text().replace("0.0003", "0.001"))
    assert differences(summarize(tmp_path))["hyper.learning_rate"]["ppo"] == "on 4 tasks: 0.0003; on 5 tasks: 0.001"


def test_report_is_one_whole_page(two_agents: Path) -> None:
    path = write_report(two_agents, COMMAND)
    assert path == two_agents / "report.html"
    text = path.read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert page.headings[0] == f"ppo and sppo on {CARTPOLE}"
    assert "Training diagnostics" in page.headings
    # curves and diagnostics, drawn in the page's own ink; they and four tables have the command beside them
    assert text.count("<figure>") == 2
    assert text.count("--note &#x27;&lt;b&gt;&#x27;</code>") == 6
    assert "currentColor" in text
    assert not re.search(r"\$[a-z]", text)


def test_configs_in_the_page_cannot_end_their_script(two_agents: Path) -> None:
    config = two_agents / "ppo" / "seed0" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "</script><b>"}))
    configs = records(write_report(two_agents, COMMAND).read_text("utf-8"))
    assert configs[0]["config"]["note"] == '"</script><b>"'
    assert configs[0]["config"]["hyper.gae_lambda"] == "1.0"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (42, "42 s"), (60, "1 min 00 s"), (90, "1 min 30 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_flat_settings() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": "x"}) == {"a.b": "1", "a.c": "{}", "d": '"x"'}
