"""Figures of a comparison: curves on one grid, files, panels of training metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_runs import write_run

from sppo.agents import AGENTS as registered
from sppo.experiments.diagnostics import diagnostic_tags, unit_of
from sppo.experiments.evidence.findings_figures import draw_dials, draw_map, draw_profiles, draw_tasks
from sppo.experiments.evidence.gains import Cell
from sppo.experiments.plots import align, colour_of, common_grid, plot_curves, style_of
from sppo.experiments.report import write_report
from sppo.experiments.results import load_runs
from sppo.experiments.scopes import AGENTS
from sppo.experiments.stats import Interval
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


def test_an_agent_keeps_its_height_and_its_name_where_a_task_lacks_others(tmp_path: Path) -> None:
    """The first task, by name, has PPO and SPPO alone; the second REINFORCE and the tracker too."""
    for env_id, agents in (
        ("sppo/Chain-v0", ("ppo", "sppo")),
        ("sppo/Hopper-v0", ("ppo", "reinforce", "sppo", "tracker")),
    ):
        for agent in agents:
            for seed in range(2):
                write_run(tmp_path, agent, seed, env_id=env_id, nested=True)
    figure = draw_tasks(summarize(tmp_path))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "ppo (n = 2)",
        "reinforce (n = 2)",
        "sppo (n = 2)",
        "tracker (n = 2)",
    ]
    chain, hopper = figure.axes[2:]
    assert [tick.get_text() for tick in chain.get_yticklabels()] == ["tracker", "sppo", "reinforce"]
    dots = [[line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"] for ax in (chain, hopper)]
    assert dots == [[1], [2, 1, 0]] and chain.get_ylim() == hopper.get_ylim()


def test_shares_on_dials_stay_between_none_and_all(tmp_path: Path) -> None:
    """Areas 0.7 and 1.0: Student, one degree of freedom, 0.85 +- 12.706 x 0.2121 / 1.414 = 0.85 +- 1.906."""
    for agent in ("ppo", "sppo"):
        for seed, height in enumerate((0.7, 1.0)):
            write_run(tmp_path / "Cart" / "spread" / "5", agent, seed, success=[height, height])
    (ax,) = draw_dials(load_runs(tmp_path)[0]).axes
    assert ax.get_ylim() == (0.0, 1.02)


def test_an_agent_keeps_its_colour_whoever_stands_beside_it() -> None:
    """Of two tasks' figures; agents of no study take what is left, and none looks like another."""
    assert colour_of(["ppo", "sppo", "tracker"], "tracker") == colour_of(AGENTS, "tracker")
    assert colour_of(["sppo"], "sppo") != colour_of(["ppo"], "ppo")
    everyone = list(registered)
    for agents in (everyone, ["ppo", "dapo", "mine"]):
        looks = {(colour_of(agents, agent), style_of(agents, agent)) for agent in agents}
        assert len(looks) == len(agents)
    assert len({colour_of(["ppo", "dapo", "mine"], agent) for agent in ("ppo", "dapo", "mine")}) == 3


def test_profiles_that_cover_each_other_differ_in_style(tmp_path: Path) -> None:
    for agent in ("ppo", "sppo"):
        for seed in range(2):
            write_run(tmp_path, agent, seed, success=[0.5, 0.5])
    ppo, sppo = draw_profiles(summarize(tmp_path)).axes[0].lines
    assert ppo.get_ydata().tolist() == sppo.get_ydata().tolist() and ppo.get_linestyle() != sppo.get_linestyle()


def test_a_map_is_bold_where_a_page_is_marked() -> None:
    """From +0.0004 on it is above zero, but +0.000 is what is shown."""
    cells = [Cell(10.0, 0.5, Interval(0.01, low, 0.02), 3) for low in (0.0004, 0.0006)]
    texts = draw_map({"chain": [cells]}, "sppo", "ppo").axes[0].texts
    assert [text.get_fontweight() for text in texts] == ["normal", "bold"]
