"""Comparisons summed up: hand-worked areas, gains and intervals over seeds and tasks, the table for a terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_runs import CARTPOLE, write_run

from sppo.experiments.results import load_runs
from sppo.experiments.summary import ALL_TASKS, format_table, short, summarize


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


def test_unequal_seeds_are_not_paired(two_agents: Path) -> None:
    write_run(two_agents, "sppo", 7, episodes=1000, success=[0.0, 1.0, 1.0])
    sppo = summarize(two_agents).rows[1]
    assert not sppo.paired and (sppo.seeds, sppo.pairs) == (4, 3)
    assert sppo.auc_gain == (0.5, 0.5, 0.5)


def test_gains_are_over_the_first_agent_or_none(tmp_path: Path) -> None:
    write_run(tmp_path, "ppo", 0, nested=True)
    for agent in ("rloo", "sppo"):
        write_run(tmp_path, agent, 0, env_id="sppo/Hopper-v0", nested=True)
    table = summarize(tmp_path)
    assert table.agents[0] == "ppo"
    assert [(row.agent, row.auc_gain, row.pairs) for row in table.rows] == [
        ("rloo", None, 0),
        ("sppo", None, 0),
        ("ppo", None, 0),
    ]
    assert "P(" not in format_table(table).split("\n", 2)[1]


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


def test_terminal_table_is_narrow(two_agents: Path) -> None:
    text = format_table(summarize(two_agents))
    assert "P(AUC > ppo)" in text
    assert "1.00k (3/3)" in text
    assert max(map(len, text.splitlines())) <= 100


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


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Two settings of two seeds each. Level curves: PPO at 0.5; SPPO at 0.5 with seed 0, and with seed 1 at 0.7 on a
    horizon of 10 and at 0.9 on one of 100."""
    for horizon, heights in (("10", [0.5, 0.7]), ("100", [0.5, 0.9])):
        for seed, height in enumerate(heights):
            write_run(tmp_path / horizon, "ppo", seed, success=[0.5, 0.5, 0.5])
            write_run(tmp_path / horizon, "sppo", seed, success=[height] * 3)
    return tmp_path


def test_settings_are_scopes_where_a_task_has_an_agent_s_seed_twice(settings: Path) -> None:
    table = summarize(settings)
    assert table.of_settings and table.scopes == ["10", "100"] and table.env_ids == [CARTPOLE]
    _, low = table.of("10")
    _, high = table.of("100")
    assert low.auc.estimate == pytest.approx(0.6) and high.auc.estimate == pytest.approx(0.7)
    # gains 0 and 0.2: Student, one degree of freedom, 12.706 x 0.1414 / 1.414 = 1.2706
    assert low.auc_gain == pytest.approx((0.1, 0.1 - 1.2706, 0.1 + 1.2706), abs=1e-4)
    # a rate of success goes no further, whatever Student says
    assert low.auc[1:] == (0.0, 1.0)


def test_settings_are_summed_up_seed_by_seed(settings: Path) -> None:
    table = summarize(settings)
    assert table.pools == {"all settings": ["10", "100"]}
    ppo, sppo = table.of("all settings")
    assert (ppo.auc.estimate, sppo.seeds) == (pytest.approx(0.5), 2)
    # seed 0 gains 0 at both, seed 1 0.2 and 0.4: means 0 and 0.3, and two seeds are no more than two
    assert sppo.auc_gain == pytest.approx((0.15, 0.15 - 1.9059, 0.15 + 1.9059), abs=1e-4)


def test_an_agent_without_all_settings_or_seeds_is_compared_where_it_has_them(settings: Path) -> None:
    shutil.rmtree(settings / "100" / "sppo" / "seed0")
    write_run(settings / "10", "tracker", 1, success=[0.6, 0.6, 0.6])
    table = summarize(settings)
    # with seed 1 alone SPPO gains 0.2 at one setting and 0.4 at the other
    assert table.of("100")[1].auc_gain == pytest.approx((0.4, -np.inf, np.inf))
    assert [(row.agent, row.seeds) for row in table.of("all settings")] == [("ppo", 2), ("sppo", 1)]
    assert table.of("all settings")[1].auc_gain == pytest.approx((0.3, -np.inf, np.inf))


def test_settings_without_a_shared_seed_have_no_gain(settings: Path) -> None:
    """At 10 PPO keeps seed 0 and SPPO seed 1; at 100 both have both, and PPO has no seed at both that SPPO has too."""
    shutil.rmtree(settings / "10" / "ppo" / "seed1")
    shutil.rmtree(settings / "10" / "sppo" / "seed0")
    table = summarize(settings)
    found = {scope: table.of(scope)[1] for scope in ("10", "100", "all settings")}
    assert [(row.auc_gain is None, row.improvement is None, row.pairs) for row in found.values()] == [
        (True, True, 0),
        (False, False, 2),
        (True, True, 0),
    ]


def test_settings_are_in_the_order_of_what_they_are_worth(tmp_path: Path) -> None:
    for name in ("100/0.05", "25/0.4", "25/0.05", "rare/0.1"):
        write_run(tmp_path / name, "ppo", 0)
    assert summarize(tmp_path).scopes == ["25/0.05", "25/0.4", "100/0.05", "rare/0.1"]


def test_settings_of_several_tasks_are_summed_up_task_by_task(tmp_path: Path) -> None:
    for rate in ("0.001", "0.0001"):
        for env_id in (CARTPOLE, "sppo/Hopper-v0"):
            write_run(tmp_path / rate, "ppo", 0, env_id=env_id, nested=True)
    table = summarize(tmp_path)
    assert table.scopes[:2] == ["0.0001/Hopper-v0", "0.001/Hopper-v0"]
    assert table.pools["all settings of PrecisionCartPole-v0"] == table.scopes[2:]


def test_one_rate_for_each_agent_and_task_makes_no_settings(tmp_path: Path) -> None:
    """As in a tuned comparison, where an agent's rate is before its task's name."""
    for rate, agent in (("0.001", "ppo"), ("0.003", "sppo")):
        write_run(tmp_path / rate, agent, 0, nested=True)
    table = summarize(tmp_path)
    assert table.scopes == [CARTPOLE] and [row.agent for row in table.rows] == ["ppo", "sppo"]


def test_a_setting_of_two_tasks_is_refused(tmp_path: Path) -> None:
    for seed, env_id in enumerate((CARTPOLE, "sppo/Hopper-v0")):
        write_run(tmp_path / "a", "ppo", seed, env_id=env_id)
    write_run(tmp_path / "b", "ppo", 0)
    with pytest.raises(ValueError, match=r"below a must be of one task, got sppo/Hopper-v0, sppo/PrecisionCartPole-v0"):
        summarize(tmp_path)


def test_an_interval_depends_on_its_own_runs_alone(two_agents: Path) -> None:
    """Whoever else is in the table, and in which order."""
    alone, after = summarize(two_agents, ["sppo"]), summarize(two_agents, ["ppo", "sppo"])
    assert alone.rows[0].final == after.rows[1].final and alone.rows[0].auc == after.rows[1].auc
