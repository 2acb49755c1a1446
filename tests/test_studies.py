"""Studies are fair: nothing but what is in question differs between the agents."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from sppo.agents import AGENTS
from sppo.agents.config import AgentConfig
from sppo.envs.chain import SparseChain
from sppo.experiments.config import RunConfig
from sppo.experiments.studies import HORIZONS, STUDIES, chain_goal, study

COMMON = set(AgentConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", STUDIES)
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


@pytest.mark.parametrize(("success", "tolerance"), [(0.01, 0.04), (0.05, 0.08), (0.2, 0.22), (0.5, 0.1)])
def test_goals_of_the_chain_give_about_the_success_asked_for(success: float, tolerance: float) -> None:
    """Starts are spread over 0 to 4, which on a short walk adds most to a small success rate."""
    for horizon in HORIZONS:
        chain = SparseChain(horizon=horizon, goal=chain_goal(horizon, success))
        assert float(chain.value(0.5, range(5), 0).mean()) == pytest.approx(success, abs=tolerance)


def test_unknown_studies_and_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown study 'figur'; did you mean 'figure'"):
        study("figur")
    assert STUDIES["figure"].jobs(tmp_path, "Nowhere") == []


def test_every_agent_of_a_study_exists() -> None:
    assert {config.agent for one in STUDIES.values() for _, config in one.runs()} <= set(AGENTS)
    assert all(isinstance(config, RunConfig) for one in STUDIES.values() for _, config in one.runs())
