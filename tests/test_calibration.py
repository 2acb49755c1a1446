"""Calibration: every figure by hand, intervals, and critics of text and control measured on held-out starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from small_agents import chain, told

from sppo.agents import PPO, SPPO, Reinforce, Tracker
from sppo.agents.control import ControlSampler
from sppo.envs import episodes
from sppo.experiments import calibration
from sppo.experiments.calibration import Calibrate, measure, metrics, paired_difference
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import resolve
from sppo.experiments.packed import pack, unpack
from sppo.experiments.plots import plot_reliability
from sppo.experiments.results import load_runs
from sppo.experiments.run import run

VALUES = np.array([0.9, 0.75, 0.2, 0.25])
OUTCOMES = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], float)  # rates 1, 1/2, 1/2, 0


def test_figures_by_hand() -> None:
    found = metrics(VALUES, OUTCOMES)
    # (0.1^2 + 0.1^2) + (0.25^2 + 0.75^2) + (0.8^2 + 0.2^2) + 2 * 0.25^2 = 0.02 + 0.625 + 0.68 + 0.125, over 8
    assert found["brier"] == pytest.approx(1.45 / 8)
    # Successes at 0.9 0.9 0.75 0.2, failures at 0.75 0.2 0.25 0.25: the pairs won are 4 + 4 + (3 + 1/2) + 1/2 of 16
    assert found["auc"] == pytest.approx(12 / 16)
    # Tenths: 0.9 alone, 0.75 alone, 0.2 with 0.25: 1/4 |0.9 - 1| + 1/4 |0.75 - 0.5| + 2/4 |0.225 - 0.25|
    assert found["ece"] == pytest.approx(0.025 + 0.0625 + 0.0125)
    # V - mean: 0.375 0.225 -0.325 -0.275; q - mean: 0.5 0 0 -0.5: 0.325 / sqrt(0.3725 * 0.5)
    assert found["pearson"] == pytest.approx(0.325 / np.sqrt(0.3725 * 0.5))
    # ranks 4 3 1 2 and 4 2.5 2.5 1: deviations 1.5 .5 -1.5 -.5 and 1.5 0 0 -1.5: 3 / sqrt(5 * 4.5)
    assert found["spearman"] == pytest.approx(3 / np.sqrt(5 * 4.5))
    # two starts with q (1 - q) / (n - 1) = 1/4, two with 0: mean 1/8; Var q = 1/8: nothing but noise
    assert found["ceiling"] == 0


def test_figures_of_perfect_and_useless_critics(rng: np.random.Generator) -> None:
    rates = rng.random(400)
    outcomes = (rng.random((400, 32)) < rates[:, None]).astype(float)
    perfect = metrics(rates, outcomes)
    assert perfect["ece"] < 0.05
    # The ceiling is what the true rates reach: up to the noise of 400 starts.
    assert abs(perfect["pearson"] - perfect["ceiling"]) < 0.01
    assert perfect["pearson"] < 0.99
    blind = metrics(np.full(400, 0.5), outcomes)
    assert np.isnan(blind["pearson"]) and np.isnan(blind["spearman"])
    assert blind["auc"] == 0.5 and blind["brier"] == 0.25
    assert metrics(1 - rates, outcomes)["auc"] == pytest.approx(1 - perfect["auc"])
    sure = metrics(rates, np.ones((400, 32)))
    assert np.isnan(sure["auc"]) and np.isnan(sure["pearson"])


def test_one_episode_from_each_start_tells_of_no_noise() -> None:
    """Rates 1, 0, 1, 0 vary by 1/4, of which one episode each cannot say how much is chance."""
    assert np.isnan(metrics(VALUES, np.array([[1.0], [0.0], [1.0], [0.0]]))["ceiling"])
    # Two each, which agree: all of it is between starts.
    assert metrics(VALUES, np.repeat([[1.0], [0.0], [1.0], [0.0]], 2, axis=1))["ceiling"] == 1


def test_correlations_are_scipys(rng: np.random.Generator) -> None:
    values, outcomes = rng.random(50), (rng.random((50, 4)) < 0.5).astype(float)
    found = metrics(values, outcomes)
    assert found["pearson"] == pytest.approx(pearsonr(values, outcomes.mean(1)).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(values, outcomes.mean(1)).statistic)


def test_partial_rewards_count_by_their_size() -> None:
    # One start, V 0.5 twice: outcomes 0.25 and 0.75 against 0.5.
    found = metrics(np.array([0.5, 0.5]), np.array([[0.25], [0.75]]))
    assert found["brier"] == 0.0625 and found["ece"] == 0.0


def test_intervals(rng: np.random.Generator) -> None:
    rates = rng.random(100)
    outcomes = (rng.random((100, 16)) < rates[:, None]).astype(float)
    found = calibration.calibration(rates, outcomes)
    for name, value in metrics(rates, outcomes).items():
        assert found[name].estimate == value and found[name].low < value < found[name].high, name
    # Fisher's interval of a correlation r from 100: tanh(atanh r -+ 1.96 / sqrt 97); the bootstrap's is about as wide
    r = found["pearson"].estimate
    low, high = np.tanh(np.arctanh(r) - 0.199), np.tanh(np.arctanh(r) + 0.199)
    assert 0.5 < (found["pearson"].high - found["pearson"].low) / (high - low) < 1.5


def test_a_pair_differs_by_what_one_knows_more(rng: np.random.Generator) -> None:
    rates = rng.random(200)
    outcomes = (rng.random((200, 32)) < rates[:, None]).astype(float)
    same = paired_difference((rates, outcomes), (rates, outcomes))
    assert all(tuple(interval) == (0, 0, 0) for interval in same.values())
    worse = rates + 0.5 * rng.standard_normal(200)
    found = paired_difference((rates, outcomes), (worse, outcomes))
    assert found["pearson"].low > 0.1 and found["brier"].high < 0
    assert found["ceiling"] == (0, 0, 0)
    with pytest.raises(ValueError, match="same starts, got 200 and 199"):
        paired_difference((rates, outcomes), (rates[1:], outcomes[1:]))


@pytest.mark.parametrize(
    ("values", "outcomes", "told"),
    [
        ([0.5], [1.0], r"outcomes \(P, n\), got \(1,\) and \(1,\)"),
        ([0.5, 0.5], [[1.0]], r"got \(2,\) and \(1, 1\)"),
        ([np.nan], [[1.0]], "finite, got nan"),
        ([0.5], [[2.0]], r"\[0, 1\], got 2 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(values, outcomes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        metrics(np.array(values), np.array(outcomes))


def test_a_critic_of_control_is_measured() -> None:
    env = episodes("sppo/PrecisionCartPole-v0", horizon=20)
    for kind in (SPPO, PPO):
        agent = kind(env, seed=0)
        sampler = ControlSampler(episodes("sppo/PrecisionCartPole-v0", horizon=20), policy=agent.policy)
        values, outcomes = measure(agent, sampler, np.arange(5), 3)
        assert values.shape == (5,) and outcomes.shape == (5, 3)
        assert len(np.unique(values)) == 5
        assert sampler.counts["episodes"] == 15 and agent.sampler.counts["episodes"] == 0
        first = sampler.rollout(np.array([3]))
        value = agent.critic.value(first) if kind is SPPO else agent.critic.values(first)[:, 0]
        assert values[3] == pytest.approx(float(value), abs=1e-6)
    with pytest.raises(ValueError, match="Reinforce has no critic"):
        measure(Reinforce(env), sampler, np.arange(5), 3)
    assert sampler.counts["episodes"] == 21, "it is refused after one"


def test_a_table_of_control_predicts_one_number() -> None:
    """Of 8 outcomes, 3 are successes: (0.9 + 3) / (2 * 0.9 + 8) everywhere, since starts have no names of their own."""
    agent = Tracker(chain())
    agent.credit(told([1, 1, 1, 0, 0, 0, 0, 0]))
    values, outcomes = measure(agent, ControlSampler(chain(), policy=agent.policy), np.arange(5), 3)
    np.testing.assert_allclose(values, 3.9 / 9.8, rtol=1e-6)
    found = metrics(values, outcomes)
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"])


def test_a_run_is_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / agent for agent in ("sppo", "ppo")]
    for folder in folders:
        options = {"env_kwargs": {"horizon": 20}, "total_episodes": 64, "n_evals": 1, "n_eval_episodes": 4}
        config = resolve(RunConfig(agent=folder.name, start="none", **options))
        run([config], [folder])
    with pytest.raises(ValueError, match="calibrate it first"):
        Calibrate(run=folders[0], against=folders[1])()
    Calibrate(run=folders[1], prompts=12, samples=4)()
    capsys.readouterr()
    Calibrate(run=folders[0], prompts=12, samples=4, against=folders[1])()
    shown = capsys.readouterr().out
    content = json.loads((folders[0] / "calibration.json").read_text())
    assert content["starts"] == list(range(12)) and np.shape(content["outcomes"]) == (12, 4)
    values, outcomes = np.array(content["values"]), np.array(content["outcomes"])
    assert content["metrics"]["brier"][0] == pytest.approx(metrics(values, outcomes)["brier"])
    assert shown.count("brier") == 2 and f"less {folders[1]}" in shown
    assert (folders[0] / "calibration.svg").exists()
    Calibrate(run=folders[1], prompts=6, samples=4)()
    with pytest.raises(ValueError, match="another task: its starts differ"):
        Calibrate(run=folders[0], prompts=12, samples=4, against=folders[1])()


def test_a_table_knows_the_prompts_it_was_trained_on_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two responses to each of three prompts, k right: (0.9 + k) / (0.9 + 0.9 + 2); 1/2 for any other prompt."""
    pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
    tracker, sppo = folders = [tmp_path / agent for agent in ("tracker", "sppo")]
    for folder in folders:
        settings = {"episodes_per_update": 6}
        options: dict[str, Any] = {"env_kwargs": {"train_size": 3}, "n_evals": 1, "n_eval_episodes": 4}
        config = RunConfig(agent=folder.name, env_id="text/arithmetic", total_episodes=6, settings=settings, **options)
        run([resolve(config)], [folder])
    with pytest.raises(ValueError, match=r"sppo has no calibration-train\.json"):
        Calibrate(run=tracker, against=sppo, split="train")()
    Calibrate(run=sppo, prompts=5, samples=2, split="train")()
    assert "text/arithmetic has 3 training prompts, fewer than 5" in capsys.readouterr().out
    Calibrate(run=tracker, prompts=5, samples=2, split="train", against=sppo)()
    assert "less" in capsys.readouterr().out
    Calibrate(run=tracker, prompts=5, samples=2)()
    assert "tracker predicts 0.500 at all 5 held-out starts: nothing correlates" in capsys.readouterr().out
    loaded = {found.label: found for found in load_runs(tmp_path)[0]}
    assert loaded["sppo"].calibration == {} and loaded["tracker"].calibration["values"].tolist() == [0.5] * 5
    trained = loaded["tracker"].calibration_train
    assert trained["outcomes"].shape == (3, 2) and "training prompts" in (tracker / "calibration-train.svg").read_text()
    assert {round(float(value) * 3.8, 5) for value in trained["values"]} <= {0.9, 1.9, 2.9}
    pack(list(loaded.values()), tmp_path / "runs.json.gz")
    (again,) = [found for found in unpack(tmp_path / "runs.json.gz") if found.label == "tracker"]
    np.testing.assert_allclose(again.calibration_train["values"], trained["values"], rtol=1e-3)


def test_control_has_no_start_that_comes_twice(tmp_path: Path) -> None:
    options: dict[str, Any] = {"env_kwargs": {"horizon": 20}, "total_episodes": 64, "n_evals": 1, "n_eval_episodes": 4}
    run([resolve(RunConfig(agent="tracker", start="none", **options))], [tmp_path])
    with pytest.raises(ValueError, match="draws a fresh start for every episode"):
        Calibrate(run=tmp_path, split="train")()
    Calibrate(run=tmp_path, prompts=6, samples=2)()
    assert json.loads((tmp_path / "calibration.json").read_text())["metrics"]["pearson"] == [None] * 3


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    png, svg = plot_reliability(VALUES, OUTCOMES, tmp_path / "reliability")
    assert png.read_bytes()[:4] == b"\x89PNG"
    text = svg.read_text()
    assert "success rate in 2 episodes" in text and "predicted at held-out starts" in text


@pytest.mark.slow
def test_a_small_critic_of_text_knows_which_chains_are_hard(tmp_path: Path) -> None:
    """A run of the arithmetic task as it comes: a third of its chains are longer than the model was taught."""
    pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
    run([RunConfig(env_id="text/arithmetic", agent="sppo", n_evals=1)], [tmp_path])
    Calibrate(run=tmp_path, prompts=200, samples=32)()
    found = json.loads((tmp_path / "calibration.json").read_text())["metrics"]
    # Measured 0.86, with the interval [0.81, 0.91].
    assert found["pearson"][0] > 0.78
    assert found["auc"][0] > 0.85 and found["ece"][0] < 0.1
