"""Comparisons read off the disk: hand-worked summaries, the page and the figures, damaged folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_runs import CARTPOLE, write_run

from sppo.experiments.plots import align, common_grid, diagnostic_tags
from sppo.experiments.report import duration, flatten, verdict, write_report
from sppo.experiments.results import load_runs
from sppo.experiments.summary import ALL_TASKS, format_table, short, summarize

COMMAND = "sppo compare --env sppo/PrecisionCartPole-v0 --seeds 3 --note '<b>'"


@pytest.fixture
def two_agents(tmp_path: Path) -> Path:
    """Episodes 0, 500, 1000. PPO: 0, 0, 1 on three seeds; SPPO: 0, 1, 1 on three seeds."""
    for seed in range(3):
        write_run(tmp_path, "ppo", seed, episodes=1000, success=[0.0, 0.0, 1.0])
        write_run(tmp_path, "sppo", seed, episodes=1000, success=[0.0, 1.0, 1.0])
    return tmp_path


def test_summary_by_hand(two_agents: Path) -> None:
    table = summarize(two_agents)
    ppo, sppo = table.rows
    assert (ppo.agent, sppo.agent) == ("ppo", "sppo")
    assert (ppo.seeds, ppo.reached) == (3, 3)
    # areas over 1000 episodes: flat 0 then a ramp worth 250; a ramp worth 250 then flat 1 worth 500
    assert ppo.auc == (0.25, 0.25, 0.25)
    assert sppo.auc == (0.75, 0.75, 0.75)
    assert sppo.auc_gain == (0.5, 0.5, 0.5)
    assert sppo.final_gain == (0.0, 0.0, 0.0)
    assert sppo.improvement == (1.0, 1.0, 1.0)
    assert sppo.paired
    assert ppo.improvement is None
    # the first record at or above 0.9, and its environment steps (200 an episode)
    assert ppo.episodes_to == (1000.0, 1000.0, 1000.0)
    assert sppo.env_steps_to == (100_000.0, 100_000.0, 100_000.0)


def test_threshold_and_order_can_be_chosen(two_agents: Path) -> None:
    table = summarize(two_agents, ["sppo", "ppo"], threshold=0.0)
    assert [row.agent for row in table.rows] == ["sppo", "ppo"]
    assert table.rows[0].auc_gain is None
    assert table.rows[1].auc_gain == (-0.5, -0.5, -0.5)
    assert table.rows[0].episodes_to == (0.0, 0.0, 0.0)


def test_run_that_stopped_early_keeps_its_last_value(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", 0, episodes=1000, success=[1.0, 1.0])
    write_run(tmp_path, "sppo", 0, episodes=500, success=[1.0, 1.0])
    table = summarize(tmp_path)
    assert table.budgets == {CARTPOLE: 1000.0}
    assert table.rows[1].auc.estimate == 1.0


def test_never_reached(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "ppo", seed, episodes=1000, success=[0.0, 0.5])
    (row,) = summarize(tmp_path).rows
    assert row.reached == 0
    assert "never (0/3)" in format_table(summarize(tmp_path))
    assert "inf" not in write_report(tmp_path, "x").read_text("utf-8").split("<script")[0]


def test_unequal_seeds_are_not_paired(two_agents: Path) -> None:
    write_run(two_agents, "sppo", 7, episodes=1000, success=[0.0, 1.0, 1.0])
    sppo = summarize(two_agents).rows[1]
    assert not sppo.paired
    assert sppo.auc_gain == (0.5, 0.5, 0.5)


def test_several_tasks_are_summed_up(tmp_path: Path) -> None:
    for env_id, gain in ((CARTPOLE, [0.0, 1.0, 1.0]), ("sppo/Hopper-v0", [0.0, 0.0, 1.0])):
        for seed in range(2):
            write_run(tmp_path, "ppo", seed, env_id=env_id, nested=True, episodes=1000, success=[0.0, 0.0, 1.0])
            write_run(tmp_path, "sppo", seed, env_id=env_id, nested=True, episodes=1000, success=gain)
    table = summarize(tmp_path)
    assert sorted(table.env_ids) == sorted([CARTPOLE, "sppo/Hopper-v0"])
    ppo, sppo = table.of(ALL_TASKS)
    # areas of SPPO: 0.75 on one task, 0.25 on the other, two seeds each; one of four cut at each end, (0.25 + 0.75) / 2
    assert sppo.auc == (0.5, 0.5, 0.5)
    # it wins one task and ties the other
    assert sppo.improvement == (0.75, 0.75, 0.75)
    assert ppo.episodes_to is None
    page = write_report(tmp_path, COMMAND).read_text("utf-8")
    assert "Task by task" in page


def test_no_sum_over_tasks_that_some_agent_lacks(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", 0, nested=True)
    write_run(tmp_path, "ppo", 0, env_id="sppo/Hopper-v0", nested=True)
    write_run(tmp_path, "sppo", 0, env_id="sppo/Hopper-v0", nested=True)
    assert summarize(tmp_path).of(ALL_TASKS) == []


def test_unfinished_runs_are_left_out_and_listed(two_agents: Path) -> None:
    write_run(two_agents, "sppo", 8, finished=False)
    stopped = write_run(two_agents, "sppo", 9)
    (stopped / "result.json").write_text(json.dumps({"finished": False}))
    table = summarize(two_agents)
    assert [(path.name, why) for path, why in table.unfinished] == [
        ("seed8", "no result.json"),
        ("seed9", "result.json does not say finished"),
    ]
    assert table.rows[1].seeds == 3
    assert "seed8 (no result.json)" in format_table(table)
    assert "2 unfinished runs left out" in write_report(two_agents, COMMAND).read_text("utf-8")


def test_folders_inside_a_run_are_its_own(two_agents: Path) -> None:
    inside = two_agents / "ppo" / "seed0" / "checkpoint"
    inside.mkdir()
    (inside / "config.json").write_text('{"agent": "ppo"}')
    # the comparison's own settings are not a run either
    (two_agents / "config.json").write_text('{"seeds": 3}')
    assert len(load_runs(two_agents)[0]) == 6


def test_two_settings_of_one_agent_stand_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", 0)
    write_run(tmp_path, "ppo-slow", 0)
    config = tmp_path / "ppo-slow" / "seed0" / "config.json"
    config.write_text(config.read_text().replace('"ppo-slow"', '"ppo"'))
    assert [row.agent for row in summarize(tmp_path).rows] == ["ppo", "ppo-slow"]


def test_last_of_two_evaluations_at_one_count_holds(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "ppo", 0, episodes=1000, success=[0.0, 0.5])
    with (folder / "evals.csv").open("a") as file:
        file.write("1000,200000,99,0.75,0.75\n")
    (run,), _ = load_runs(tmp_path)
    assert run.evals["episodes"].tolist() == [0.0, 1000.0]
    assert run.evals["success_rate"].tolist() == [0.0, 0.75]


def break_json(run: Path) -> None:
    (run / "config.json").write_text("{")


def break_result(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"finished": True, "success_rate": "high", "seconds": 1}))


def drop_key(run: Path) -> None:
    (run / "config.json").write_text('{"agent": "ppo", "seed": 0}')


def drop_column(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds\n0,0,0\n")


def cut_row(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n0,0,0,0.1\n10,2000,1\n")


def go_back(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n10,20,1,0.1\n5,30,2,0.2\n")


def stand_still(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n1,20,1,0.1\n5,20,2,0.2\n")


def empty(run: Path) -> None:
    (run / "evals.csv").write_text("episodes,env_steps,seconds,success_rate\n")


def remove(run: Path) -> None:
    (run / "evals.csv").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_json, r"seed1/config\.json must be readable JSON"),
        (break_result, r"seed1/result\.json must give success_rate as a finite number, got 'high'"),
        (drop_key, r"seed1/config\.json must have the keys agent, env_id, seed, it lacks env_id"),
        (drop_column, r"seed1/evals\.csv must have the column success_rate, got episodes, env_steps, seconds"),
        (cut_row, r"seed1/evals\.csv must hold finite numbers, column success_rate does not in line 3"),
        (go_back, r"seed1/evals\.csv must not go back, column episodes falls in line 3"),
        (stand_still, r"seed1/evals\.csv must count more env_steps"),
        (empty, r"seed1/evals\.csv must have at least one row"),
        (remove, r"seed1/evals\.csv must be a readable CSV"),
    ],
)
def test_damaged_run_is_named(two_agents: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(two_agents / "ppo" / "seed1")
    with pytest.raises(ValueError, match=told):
        summarize(two_agents)


def test_folders_without_runs_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is none"):
        summarize(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"at least one finished run, found no folder with a config\.json"):
        summarize(tmp_path)
    write_run(tmp_path, "ppo", 0, finished=False)
    with pytest.raises(ValueError, match=r"seed0: no result\.json"):
        summarize(tmp_path)


def test_wrong_agents_and_twice_the_same_run_are_told(two_agents: Path) -> None:
    with pytest.raises(ValueError, match="agents must be among ppo, sppo, got grpo"):
        summarize(two_agents, ["grpo"])
    (two_agents / "again").mkdir()
    (two_agents / "ppo" / "seed0").rename(two_agents / "ppo" / "seed00")
    write_run(two_agents, "ppo", 0)
    with pytest.raises(ValueError, match=r"ppo/seed0 and .*ppo/seed00 are both ppo on .* with seed 0"):
        summarize(two_agents)


def test_terminal_table_is_narrow(two_agents: Path) -> None:
    text = format_table(summarize(two_agents))
    assert "P(AUC > ppo)" in text
    assert "1.00k (3/3)" in text
    assert max(map(len, text.splitlines())) <= 100


def test_verdict_says_who_is_ahead_or_that_nobody_is(tmp_path: Path) -> None:
    for seed, (low, high) in enumerate([(0.2, 0.9), (0.4, 0.7), (0.6, 0.5), (0.8, 0.3)]):
        write_run(tmp_path, "ppo", seed, success=[low, low])
        write_run(tmp_path, "sppo", seed, success=[high, high])
        write_run(tmp_path, "tracker", seed, success=[low / 10, low / 10])
    ppo, sppo, tracker = summarize(tmp_path).rows
    assert verdict(sppo, ppo, 0.95)[0] == "No clear difference between sppo and ppo in learning speed"
    assert verdict(tracker, ppo, 0.95)[0] == "ppo learns faster than tracker"


def test_one_seed_tells_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", 0)
    write_run(tmp_path, "sppo", 0)
    ppo, sppo = summarize(tmp_path).rows
    assert "one seed each cannot tell them apart" in verdict(sppo, ppo, 0.95)[0]
    assert "one seed: no interval" in write_report(tmp_path, COMMAND).read_text("utf-8")


class Page(HTMLParser):
    """What a browser would fetch, and whether every element is closed."""

    VOID = frozenset({"meta", "input", "link", "br", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(f"{tag} {value}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


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
    assert "<strong>sppo learns faster than ppo</strong>" in text
    assert "--note &#x27;&lt;b&gt;&#x27;" in text
    # curves and diagnostics, drawn in the page's own ink
    assert text.count("<figure>") == 2
    assert "currentColor" in text
    assert not re.search(r"\$[a-z]", text)


def test_configs_in_the_page_cannot_end_their_script(two_agents: Path) -> None:
    config = two_agents / "ppo" / "seed0" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "</script><b>"}))
    text = write_report(two_agents, COMMAND).read_text("utf-8")
    block = re.search(r'<script type="application/json" id="configs">(.*?)</script>', text, re.S)
    assert block is not None
    records = json.loads(block[1])
    assert records[0]["config"]["note"] == '"</script><b>"'
    assert records[0]["config"]["hyper.gae_lambda"] == "1.0"


def test_curves_are_written_as_png_and_svg(two_agents: Path) -> None:
    from sppo.experiments.report import plot_curves

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
    assert "Training diagnostics" not in write_report(two_agents, COMMAND).read_text("utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (999, "999"),
        (4352, "4.35k"),
        (99_960, "100k"),
        (999_999, "1.00M"),
        (12_345_678, "12.3M"),
        (np.inf, "never"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (42, "42 s"), (60, "1 min 00 s"), (90, "1 min 30 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_flat_settings() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": "x"}) == {"a.b": "1", "a.c": "{}", "d": '"x"'}
