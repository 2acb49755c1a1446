"""What the studies found, on runs of known curves; and the committed figures, drawn again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from level_runs import level

from sppo.experiments.evidence.findings import redraw, whole_tasks
from sppo.experiments.evidence.findings_figures import draw_dials, draw_map, draw_tasks
from sppo.experiments.evidence.gains import cells, gain, horizon_slope, pooled_gain
from sppo.experiments.evidence.text_findings import cost_to, ratio_of_medians, told_ratio
from sppo.experiments.packed import pack
from sppo.experiments.results import Run
from sppo.experiments.scopes import AGENTS
from sppo.experiments.summary import summarize


def grid() -> list[Run]:
    """SPPO minus PPO is 0.1 at horizon 10, -0.2 at 100 where success is rare, and nothing where it is not."""
    gaps = {("10", "0.01"): 0.1, ("100", "0.01"): -0.2, ("10", "0.5"): 0.0, ("100", "0.5"): 0.0}
    return [
        level(
            f"{horizon}/{start}/{agent}/seed{seed}", 0.5 + 0.01 * seed + (gap if agent == "sppo" else 0), float(start)
        )
        for (horizon, start), gap in gaps.items()
        for agent in ("ppo", "sppo")
        for seed in range(3)
    ]


def test_a_gain_pairs_seeds() -> None:
    """Heights .50, .51, .52 against .60, .61, .62: seeds differ, the difference does not."""
    difference, n = gain([r for r in grid() if r.name.startswith("10/0.01")], "sppo", "ppo")
    assert n == 3
    np.testing.assert_allclose(difference, [0.1, 0.1, 0.1], rtol=1e-5)


def test_a_pooled_gain_is_the_mean_over_settings() -> None:
    """Differences .1, -.2, 0 and 0 at four settings, the same for every seed."""
    pooled, n = pooled_gain(grid(), "sppo", "ppo")
    assert n == 3
    np.testing.assert_allclose(pooled, [-0.025] * 3, rtol=1e-5)


def test_the_slope_is_per_tenfold_horizon_within_each_seed() -> None:
    """Over horizons 1, 10 and 100 seed 0 gains 0, .1 and .2, slope .1, and seed 1 .3, 0 and .3, slope 0.

    Student over .1 and 0: .05 +- 12.706 x .0707 / 1.414 = .05 +- .6353.
    """
    gains = {0: (0.0, 0.1, 0.2), 1: (0.3, 0.0, 0.3)}
    runs = [
        level(f"{horizon}/0.1/{agent}/seed{seed}", 0.5 + gained * (agent == "sppo"))
        for seed, of_seed in gains.items()
        for horizon, gained in zip((1, 10, 100), of_seed, strict=True)
        for agent in ("ppo", "sppo")
    ]
    slope, n = horizon_slope(runs, "sppo", "ppo")
    assert n == 2
    np.testing.assert_allclose(slope, [0.05, 0.05 - 0.6353, 0.05 + 0.6353], rtol=1e-4)


def test_a_seed_that_lacks_a_setting_is_left_out_of_the_pool() -> None:
    """Without one run of seed 2 the other two are pooled."""
    assert pooled_gain([run for run in grid() if run.name != "10/0.01/ppo/seed2"], "sppo", "ppo")[1] == 2


def test_a_seed_s_luck_counts_once_however_many_settings_share_it() -> None:
    """Two seeds, differences 0 and .2 at both of two settings: mean .1, and as far from sure as one setting alone.

    Student, one degree of freedom: 12.706 x sd / sqrt(2) = 12.706 x .1414 / 1.414 = 1.2706.
    """
    runs = [
        level(f"10/{start}/{agent}/seed{seed}", 0.5 + 0.2 * seed * (agent == "sppo"))
        for start in ("0.1", "0.2")
        for agent in ("ppo", "sppo")
        for seed in range(2)
    ]
    np.testing.assert_allclose(pooled_gain(runs, "sppo", "ppo")[0], [0.1, 0.1 - 1.2706, 0.1 + 1.2706], rtol=1e-4)


def test_a_gain_without_common_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="sppo and ppo share no seed among 2 runs"):
        gain([level("1/1/ppo/seed0", 0.5), level("1/1/sppo/seed1", 0.5)], "sppo", "ppo")


def test_the_map_has_horizons_in_columns_and_start_success_in_rows() -> None:
    rare, common = cells(grid(), "sppo", "ppo")
    assert [c.x for c in rare] == [10, 100] and rare[0].success == pytest.approx(0.01)
    np.testing.assert_allclose([c.gain.estimate for c in rare], [0.1, -0.2], rtol=1e-5)
    np.testing.assert_allclose([c.gain.estimate for c in common], 0, atol=1e-12)
    written = [text.get_text() for text in draw_map({"chain": [rare, common]}, "sppo", "ppo").axes[0].texts]
    assert any("-0.200" in text for text in written)


def test_seconds_to_a_threshold_are_those_of_the_first_evaluation_above_it() -> None:
    assert cost_to(level("1/1/ppo/seed0", 0.7, 0.1), 0.5, "cpu_seconds") == 5
    assert cost_to(level("1/1/ppo/seed0", 0.7, 0.1), 0.5, "env_steps") == 8e-5
    assert math.isinf(cost_to(level("1/1/ppo/seed0", 0.4, 0.1), 0.5, "cpu_seconds"))


def test_single_seeds_have_times_and_no_ratios(tmp_path: Path) -> None:
    """SPPO is at one half after five seconds, PPO never, the tracker before it has learned."""
    runs = [level("Chain/sppo/seed0", 0.7, 0.1), level("Chain/ppo/seed0", 0.4, 0.1), level("Chain/tracker/seed0", 0.7)]
    pack(runs, tmp_path / "text.json.gz")
    told = redraw(tmp_path, tmp_path / "images").split("Processor seconds")[1].splitlines()
    times = [line.partition("N = 1")[2].split() for line in told[1:4]]
    assert times == [["never"], ["5", "s"], ["0", "s"]], "and one seed has no interval"


def test_ratios_of_medians_pair_their_seeds() -> None:
    """Medians 6 and 3. Twice as long for each seed: so it is of every draw of seeds."""
    assert ratio_of_medians(np.array([2.0, 6.0, 8.0]), np.array([1.0, 3.0, 4.0])) == (2, 2, 2)


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        # With one of three that never gets there, a draw has two or three of it in 7 of 27 cases: more than 2.5 %.
        ([4.0, 4.0, math.inf], [2.0, 2.0, 2.0], (2, 2, math.inf)),
        ([4.0, 4.0, 4.0], [2.0, 2.0, math.inf], (2, 0, 2)),
        ([math.inf] * 3, [2.0, 2.0, 2.0], (math.inf, math.inf, math.inf)),
        ([math.inf] * 3, [math.inf] * 3, (math.nan, 0, math.inf)),
        ([0.0] * 3, [0.0] * 3, (math.nan, 0, math.inf)),
    ],
)
def test_ratios_of_what_is_never_reached(x: list[float], y: list[float], told: tuple[float, ...]) -> None:
    np.testing.assert_equal(tuple(ratio_of_medians(np.array(x), np.array(y))), told)


@pytest.mark.parametrize(
    ("x", "sppo", "told"),
    [
        ([math.inf] * 3, [2.0, math.inf, math.inf], "not known: neither gets there"),
        ([0.0] * 3, [0.0, 0.0, 2.0], "not known: both are there at the start"),
        ([4.0] * 3, [0.0] * 3, "not known: sppo is there at the start"),
        ([math.inf] * 3, [0.0] * 3, "x never [never, never]"),
        ([math.inf, 4.0, 4.0], [2.0] * 3, "x 2.00 [2.00, never]"),
        # Two or three draws of three are of SPPO's first seed in 7 of 27 cases, and over nothing nothing is a bound.
        ([4.0] * 3, [0.0, 2.0, 2.0], "x 2.00 [2.00, no bound]"),
    ],
)
def test_why_a_ratio_is_not_known_is_told(x: list[float], sppo: list[float], told: str) -> None:
    assert told_ratio(np.array(x), np.array(sppo)) == told


def text_run(name: str, height: float, **settings: Any) -> Run:
    """On arithmetic, at its height after five processor seconds."""
    run = level(name, height, 0.1, env_id="text/arithmetic")
    return replace(run, config={**run.config, "settings": settings})


def test_times_are_told_over_sppos_with_intervals(tmp_path: Path) -> None:
    """Both at one half after less than a token, and five seconds; RLOO never."""
    runs = [text_run(f"arithmetic/sppo/seed{seed}", 0.7) for seed in range(3)]
    runs += [text_run(f"arithmetic/grpo/seed{seed}", 0.7, num_generations=8) for seed in range(2)]
    runs += [text_run(f"arithmetic/rloo/seed{seed}", 0.3, num_generations=4) for seed in range(3)]
    pack(runs, tmp_path / "text.json.gz")
    told = [" ".join(line.split()) for line in redraw(tmp_path, tmp_path / "images").splitlines() if " N = " in line]
    assert told[:3] == [
        "arithmetic sppo N = 1 0",
        "arithmetic grpo N = 8 0 x 1.00 [1.00, 1.00] n = 2",
        "arithmetic rloo N = 4 never x never [never, never] n = 3",
    ]
    assert told[3:] == [
        "arithmetic sppo N = 1 5 s",
        "arithmetic grpo N = 8 5 s x 1.00 [1.00, 1.00] n = 2",
        "arithmetic rloo N = 4 never x never [never, never] n = 3",
    ]


def test_single_runs_are_told_without_intervals(tmp_path: Path) -> None:
    """From .1, level at .7 from the second evaluation on; 80 tokens and nine seconds at the last."""
    runs = [level(f"addition/{agent}/seed0", 0.7, 0.1, env_id="text/addition") for agent in AGENTS]
    pack(runs, tmp_path / "smollm2.json.gz")
    lines = redraw(tmp_path, tmp_path / "images").splitlines()
    assert [line.split() for line in lines[4:]] == [[agent, "0.100", "0.700", "0.700", "80", "9"] for agent in AGENTS]
    assert "n = 1" in lines[2] and (tmp_path / "images" / "smollm2.png").stat().st_size > 10_000


def test_text_is_drawn_against_tokens_and_seconds() -> None:
    """With several seeds the gains stand beside; of single runs there are none."""
    runs = [level(f"addition/{agent}/seed{s}", 0.7, 0.1, env_id="text/addition") for agent in AGENTS for s in range(2)]
    for mine, panels in ((runs, 3), (runs[::2], 2)):
        axes = draw_tasks(summarize(mine, AGENTS), ("env_steps", "cpu_seconds")).axes
        labels = [ax.get_xlabel() for ax in axes]
        assert labels[:2] == ["tokens", "processor time [s]"] and len(axes) == panels


def test_dials_are_drawn_per_task_and_value() -> None:
    """Tasks side by side; one that lacks a dial has an empty place there. Without a dial in common, one row."""
    runs = [
        level(f"{dial}/{value}/{agent}/seed{seed}", 0.5)
        for dial in ("Chain/spread", "Chain/warm-up", "Cart/spread", "Car/width")
        for value in (0, 5)
        for agent in ("ppo", "sppo")
        for seed in range(2)
    ]
    axes = draw_dials([run for run in runs if "width" not in run.name]).axes
    assert [(ax.get_xlabel(), ax.get_title(loc="left")) for ax in axes] == [
        ("spread", "Chain"),
        ("spread", "Cart"),
        ("warm-up", ""),
    ]
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["0", "5"]
    assert axes[0].get_ylim() == axes[2].get_ylim() and axes[1].get_ylabel() == ""
    apart = draw_dials([run for run in runs if "warm-up" in run.name or "width" in run.name])
    assert [ax.get_title(loc="left") for ax in apart.axes] == ["Chain", "Car"]
    assert len({round(ax.get_position().y0, 3) for ax in apart.axes}) == 1 and "n = 2;" in apart.get_suptitle()


def test_a_study_is_drawn_from_its_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold packed runs"):
        redraw(tmp_path, tmp_path)
    pack(grid(), tmp_path / "chain-map.json.gz")
    told = redraw(tmp_path, tmp_path / "images")
    assert "horizon   100  start success 0.010  -0.200 [-0.200, -0.200]  n = 3" in told
    assert (tmp_path / "images" / "map-sppo-ppo.png").stat().st_size > 10_000


def test_each_study_on_text_has_a_figure_of_its_own(tmp_path: Path) -> None:
    for study in ("text", "text-pool"):
        runs = [
            level(f"{env}/{agent}/seed{seed}", 0.6, 0.1, env_id=f"text/{env}")
            for env in ("arithmetic", "reasoning_gym:basic_arithmetic")[: 2 if study == "text" else 1]
            for agent in ("ppo", "sppo")
            for seed in range(2)
        ]
        pack(runs, tmp_path / f"{study}.json.gz")
    told = redraw(tmp_path, tmp_path / "images")
    assert {"text.png", "text-pool.png"} <= {file.name for file in (tmp_path / "images").iterdir()}
    for cost in ("Processor seconds", "Tokens"):
        assert told.count(f"{cost} to 50% of held-out prompts") == 2
        assert told.count(f"{cost} to 20% of held-out prompts") == 1, "of a task that few learn to one half"


def at(rate: float, name: str, height: float, **about: Any) -> Run:
    """A level run at a learning rate."""
    run = level(name, height, **about)
    return replace(run, config={**run.config, "settings": {"learning_rate": rate}})


def tuned_runs(task: str = "Chain", **about: Any) -> list[Run]:
    """SPPO's .8 at 1e-3, in one seed of five .3, over the .5 of all others at the common rate."""
    made = {agent: (1e-3, 0.8) if agent == "sppo" else (3e-4, 0.5) for agent in AGENTS}
    return [
        at(rate, f"{rate:g}/{task}/{agent}/seed{seed}", height - 0.5 * (agent == "sppo" and seed == 4), **about)
        for agent, (rate, height) in made.items()
        for seed in range(5)
    ]


def swept(**about: Any) -> list[Run]:
    """SPPO is best at 1e-3, the others at the common rate."""
    return [
        at(rate, f"{rate:g}/Any/{agent}/seed5", 0.6 if (rate == 1e-3) == (agent == "sppo") else 0.4, **about)
        for agent in AGENTS
        for rate in (3e-4, 1e-3)
    ]


def test_tuned_runs_are_told_with_their_rates(tmp_path: Path) -> None:
    """On two tasks: without the seeds at either end .3 is gained, and on average .2 with t(0.975, 4) = 2.776 times the
    standard error .1. A run at a rate that is not the best any more counts for nothing."""
    other = {"env_id": "sppo/Other-v0"}
    stale = at(3e-3, "0.003/Chain/sppo/seed0", 0.9)
    pack([*swept(), *swept(**other)], tmp_path / "rates.json.gz")
    pack([*tuned_runs(), stale, *tuned_runs("Other", **other)], tmp_path / "tuned.json.gz")
    told = redraw(tmp_path, tmp_path / "images")
    assert re.search(r"SparseChain-v0 +ppo 0.0003  sppo 0.001  ppo-bce 0.0003", told)
    robust, plain = (line.split()[1:] for line in told.splitlines() if re.match("  sppo +[+]", line))
    assert robust[::3] == ["+0.300"] * 3 and plain == ["+0.200", "[-0.078,", "+0.478]"] * 3


def test_a_task_is_tuned_whole_or_not_at_all() -> None:
    """One run is still to be made."""
    runs = tuned_runs()
    assert whole_tasks(runs) == runs and whole_tasks(runs[1:]) == []


def test_a_map_is_told_by_learning_rate_and_at_each_agents_best(tmp_path: Path) -> None:
    """SPPO's .8 is at the common rate, and the others' .6 (PPO with its loss: .7) at 3e-3; at 1e-3 a run is missing,
    and seeds that the rates do not have are left out."""
    heights = {"ppo": (0.5, 0.6), "ppo-bce": (0.5, 0.7), "sppo": (0.8, 0.4), "reinforce": (0.5, 0.6)}

    def made(rate: float, heights: dict[str, float], prefix: str = "", seeds: Iterable[int] = range(2)) -> list[Run]:
        return [
            at(rate, f"{prefix}{horizon}/0.01/{agent}/seed{seed}", height + 0.01 * seed, first=0.1)
            for agent, height in heights.items()
            for horizon in (10, 100)
            for seed in seeds
        ]

    low, high = ({agent: pair[i] for agent, pair in heights.items()} for i in (0, 1))
    pack([*made(3e-4, low), *made(3e-4, low, seeds=[19])], tmp_path / "cartpole-map.json.gz")
    pack([*made(3e-3, high, "0.003/"), *made(1e-3, high, "0.001/")[1:]], tmp_path / "cartpole-rates.json.gz")
    told = redraw(tmp_path, tmp_path / "images").partition("sppo study cartpole-rates")[2].splitlines()
    rows = {line[:24].strip(): line[24:].split() for line in told if line.startswith("  ")}
    assert rows[""] == ["0.0003", "0.003", "each", "at", "its", "best"]
    assert rows["sppo"][::3] == ["0.805", "0.405"]
    assert [rows[agent].index(cell) for agent in heights for cell in rows[agent] if "*" in cell] == [5, 5, 2, 5]
    assert rows["sppo - ppo"][::3] == ["+0.300", "-0.200", "+0.200"]
    assert rows["sppo - ppo-bce"][::3] == ["+0.300", "-0.300", "+0.100"]
    assert rows["reinforce - ppo"][::3] == ["+0.000"] * 3
