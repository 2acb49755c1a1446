"""Studies are fair: nothing but what is in question differs between the agents."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppo.agents import AGENTS
from sppo.agents.config import AgentConfig, make_config
from sppo.envs.chain import SparseChain
from sppo.experiments.evidence import studies
from sppo.experiments.evidence.studies import CARTPOLE, STUDIES, best_rates, chain_goal, study
from sppo.experiments.packed import pack
from sppo.experiments.results import Run
from sppo.experiments.tasks import task
from sppo.llm.tasks import make_task

COMMON = set(AgentConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", sorted(STUDIES.keys() - {"tuned"}))
def test_agents_of_a_study_differ_in_nothing_else(name: str) -> None:
    """Before their own settings are filled in, configs of one setting and seed are equal but for the agent."""
    seen: dict[tuple[str, int], set[str]] = defaultdict(set)
    for run, config in STUDIES[name].runs():
        setting, agent, seed = run.rsplit("/", 2)
        assert agent == config.agent and seed == f"seed{config.seed}"
        seen[setting, config.seed].add(repr(replace(config, agent="")))
        assert set(config.settings) <= COMMON
    assert all(len(configs) == 1 for configs in seen.values())


def test_agents_of_the_figure_share_every_setting_that_they_share(tmp_path: Path) -> None:
    jobs = STUDIES["figure"].jobs(tmp_path, "PrecisionCartPole")
    settings = [configs[0].settings for configs, _ in jobs]
    assert len(jobs) == 7 and all(len(configs) == 5 for configs, _ in jobs)
    for key in COMMON:
        assert len({repr(of_one[key]) for of_one in settings}) == 1, key


def test_the_sweep_touches_no_seed_or_start_policy_that_is_reported(tmp_path: Path) -> None:
    reported, swept = ({c.start for cs, _ in STUDIES[n].jobs(tmp_path) for c in cs} for n in ("figure", "rates"))
    assert len(reported) == 25 and len(swept) == 15 and not reported & swept


def test_budgets_are_a_fifth_in_the_sweep() -> None:
    budgets = [{c.env_id: c.total_episodes for _, c in STUDIES[name].runs()} for name in ("figure", "rates")]
    assert budgets[1] == {env_id: episodes // 5 for env_id, episodes in budgets[0].items() if episodes}
    assert budgets[0]["sppo/PrecisionCartPole-v0"] == 20_000 and budgets[0]["sppo/Hopper-v0"] == 2_000


@pytest.mark.parametrize("success", [0.01, 0.05, 0.2, 0.5])
def test_goals_of_the_chain_give_about_the_success_asked_for(success: float) -> None:
    """By the exact value; on shorter walks the spread of starts, 0 to 4, makes success likelier."""
    for horizon in (100, 300, 1000):
        chain = SparseChain(horizon=horizon, goal=chain_goal(horizon, success))
        assert 0.9 < float(chain.value(0.5, range(5), 0).mean()) / success < 1.6


def test_unknown_studies_and_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown study 'figur'; did you mean 'figure'"):
        study("figur")
    assert STUDIES["figure"].jobs(tmp_path, "Nowhere") == []


def sweep(heights: dict[tuple[str, float], list[float]]) -> list[Run]:
    """Runs on CartPole whose curves are level: area is height."""
    return [
        Run(
            name=f"{rate}/{agent}/seed{seed}",
            label=agent,
            env_id=CARTPOLE,
            seed=seed,
            config={"settings": {"learning_rate": rate}},
            evals={"episodes": np.array([0.0, 10.0]), "success_rate": np.array([height, height])},
            progress={},
            success_rate=height,
            seconds=1.0,
        )
        for (agent, rate), of_rate in heights.items()
        for seed, height in enumerate(of_rate)
    ]


def test_the_best_rate_has_the_greatest_mean_area() -> None:
    """PPO: means .5, .6, .55 (a single seed of .9 does not decide); SPPO: .7, .2, .2."""
    heights = {("ppo", 1e-4): [0.5, 0.5], ("ppo", 3e-4): [0.6, 0.6], ("ppo", 1e-3): [0.9, 0.2]}
    heights |= {("sppo", 1e-4): [0.7, 0.7], ("sppo", 3e-4): [0.2, 0.2], ("sppo", 1e-3): [0.2, 0.2]}
    assert best_rates(sweep(heights)) == {(CARTPOLE, "ppo"): 3e-4, (CARTPOLE, "sppo"): 1e-4}


def test_the_tuned_figure_repeats_runs_whose_best_rate_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    pack(sweep({("ppo", 3e-4): [0.6], ("sppo", 1e-4): [0.7]}), tmp_path / "rates.json.gz")
    (ppo, *_), tuned = (list(STUDIES[name].runs()) for name in ("figure", "tuned"))
    assert [name for name, _ in tuned] == [f"PrecisionCartPole-v0/sppo/seed{seed}" for seed in range(5)]
    assert replace(tuned[0][1], agent="ppo", settings={}) == ppo[1]


def test_every_agent_of_a_study_exists() -> None:
    assert set(studies.AGENTS) <= set(AGENTS)


def test_dials_that_are_off_are_the_run_that_all_dials_share() -> None:
    """Without noise, and with two networks, learning is as at the middle of the others; on MountainCar neither is."""
    off: dict[str, set[str]] = defaultdict(set)
    for run, config in STUDIES["dials"].runs():
        name, dial, value, *_ = run.split("/")
        if dial in ("reward noise", "shared network") and value == "0":
            settings = make_config(AGENTS[config.agent].Config, config.settings)
            assert not settings.reward_noise and not settings.shared_network
            off[name].add(dial)
    assert off == {name: {"reward noise", "shared network"} for name in ("PrecisionCartPole-v0", "SparseChain-v0")}


def test_prompts_of_the_pool_come_again_and_again() -> None:
    """9600 responses to 256 prompts: 37 each."""
    for _, config in STUDIES["text-pool"].runs():
        train = make_task("arithmetic", **{**task(config.env_id).env_kwargs, **config.env_kwargs}).prompts("train")
        assert task(config.env_id).total_episodes // len(train) == 37
