"""Studies are fair: nothing but what is in question differs between the agents."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppo.agents import AGENTS
from sppo.agents.config import AgentConfig
from sppo.envs import episodes
from sppo.envs.chain import SparseChain
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import resolve
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
        own = config.settings.keys() - COMMON
        of_ppo = agent == "ppo" and (name == "lambda" or "/gae lambda/" in run)
        assert own <= ({"gae_lambda"} if of_ppo else set()), "which SPPO has not"
        common = {name: value for name, value in config.settings.items() if name not in own}
        seen[setting, config.seed].add(repr(replace(config, agent="", settings=common)))
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
    assert budgets[0]["sppo/PrecisionCartPole-v0"] == 20_000 and budgets[0]["sppo/Hopper-v0"] == 1_000


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


def heights(**changed: dict[float, list[float]]) -> dict[tuple[str, float], list[float]]:
    """Of every agent .6 at 3e-4 and .5 at 1e-4, by two seeds; others where `changed`."""
    usual = {1e-4: [0.5, 0.5], 3e-4: [0.6, 0.6]}
    return {(a, rate): h for a in studies.AGENTS for rate, h in {**usual, **changed.get(a, {})}.items()}


def test_the_best_rate_has_the_greatest_mean_area() -> None:
    """PPO: means .55 (a single seed of .9 does not decide) and .6; SPPO: .7 and .6."""
    best = best_rates(sweep(heights(ppo={1e-4: [0.9, 0.2]}, sppo={1e-4: [0.7, 0.7]})))
    assert best == {(CARTPOLE, agent): 1e-4 if agent == "sppo" else 3e-4 for agent in studies.AGENTS}


@pytest.mark.parametrize("half", [{"ppo": {1e-3: [0.9, 0.9]}}, {agent: {1e-3: [0.9]} for agent in studies.AGENTS}])
def test_a_rate_that_some_have_still_to_try_counts_for_none(half: dict[str, dict[float, list[float]]]) -> None:
    """One agent has run there, or all with one seed of two."""
    assert set(best_rates(sweep(heights(**half))).values()) == {3e-4}


def test_a_task_of_which_one_rate_is_complete_is_not_swept() -> None:
    """GRPO lacks a seed at 1e-4."""
    assert best_rates(sweep(heights(grpo={1e-4: [0.5]}))) == {}


def test_the_tuned_figure_repeats_swept_tasks_at_each_agents_best_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "RESULTS", tmp_path)
    pack(sweep(heights(sppo={1e-4: [0.7, 0.7]})), tmp_path / "rates.json.gz")
    (ppo, *_), tuned = (list(STUDIES[name].runs()) for name in ("figure", "tuned"))
    assert {config.env_id for _, config in tuned} == {CARTPOLE} and len(tuned) == 5 * len(studies.AGENTS)
    rates = {name.split("/")[2]: (name.split("/")[0], config.settings) for name, config in tuned}
    assert rates["sppo"] == ("0.0001", {"learning_rate": 1e-4}) and rates["grpo"] == ("0.0003", {"learning_rate": 3e-4})
    assert replace(tuned[0][1], settings={}) == ppo[1]


def test_every_agent_of_a_study_exists() -> None:
    assert set(studies.AGENTS) <= set(AGENTS)


@pytest.mark.parametrize(("name", "made"), [("dials", 390), ("text-dials", 87)])
def test_the_run_that_dials_share_is_made_once(name: str, made: int) -> None:
    """Values but for the own one of each dial, and the base: 2 + 2 + 3 + 2 + 2 + 1 + 1 on CartPole and the walk,
    2 + 2 + 3 + 2 + 1 on MountainCar, each by two agents and five seeds, and two of PPO's lambda on each.
    On text 2 + 3 + 2 + 2 + 2 + 1 + 1, three seeds, one more lambda, and a shared network or not by a third agent."""
    listed, named = list(STUDIES[name].runs()), STUDIES[name].named()
    assert len(named) == made
    assert all(run in listed for run in named), "under one of its names"
    assert len({repr(config) for _, config in named}) == made


def test_a_value_of_a_dial_is_what_its_name_says() -> None:
    """Also the own one, of which the config says nothing: it is the task's."""
    for run, config in [run for name in ("dials", "text-dials") for run in STUDIES[name].runs()]:
        _, dial, value, *_ = run.split("/")
        resolved = resolve(config)
        if dial == "gae lambda" and config.agent == "sppo":
            found = float(value)  # it has none, and is the base
            assert not config.settings
        elif dial == "start spread":
            found = episodes(config.env_id, **config.env_kwargs).start_spread
        elif dial == "spread of terms":
            found = int(np.diff(resolved.env_kwargs["terms"])[0])
        else:
            found = resolved.settings[{"critic warm-up": "critic_warmup"}.get(dial, dial.replace(" ", "_"))]
        assert found == float(value), run


def test_what_was_made_once_is_found_under_all_its_names() -> None:
    """CartPole's base under seven; a run that is there under its own name stays."""
    first = "PrecisionCartPole-v0/episodes per update/64/ppo/seed0"
    own = "PrecisionCartPole-v0/reward noise/0/ppo/seed0"
    runs = sweep({("ppo", 1.0): [0.5, 0.6]})
    made, old = (replace(run, name=name) for run, name in zip(runs, (first, own), strict=True))
    assert len(study("dials").under_all_names([made])) == 7
    found = {run.name: run for run in study("dials").under_all_names([made, old])}
    assert found[own] is old
    assert found["PrecisionCartPole-v0/start spread/0.05/ppo/seed0"].success_rate == made.success_rate


def test_what_was_made_once_is_found_whichever_of_its_names_it_has() -> None:
    """A base that lies under its last name alone is there under all seven; what another study made is left out."""
    (run,) = sweep({("ppo", 1.0): [0.5]})
    last = "PrecisionCartPole-v0/shared network/0/ppo/seed0"
    found = study("dials").under_all_names(
        [replace(run, name=last), replace(run, name="PrecisionCartPole-v0/ppo/seed0")]
    )
    assert len(found) == 7 and found[0].name == last
    assert "PrecisionCartPole-v0/episodes per update/64/ppo/seed0" in {each.name for each in found}


def test_a_run_is_chosen_by_any_of_its_names() -> None:
    """Value 0 of the warm-up is CartPole's base, whose first name is of another dial: two agents, five seeds."""
    dials, base = study("dials"), "PrecisionCartPole-v0/episodes per update/64"
    own = [f"{base}/{agent}/seed{seed}" for agent in ("ppo", "sppo") for seed in range(5)]
    assert [name for name, _ in dials.named("PrecisionCartPole-v0/critic warm-up/0")] == own
    every = [name for name, _ in dials.named("PrecisionCartPole-v0/critic warm-up")]
    assert every[:10] == own and len(every) == 30
    assert [name for name, _ in dials.named("PrecisionCartPole-v0/critic warm-up/0/ppo/seed3")] == own[3:4]


def test_batches_of_text_dials_end_with_the_budget() -> None:
    """4096 responses are 128, 32 and 8 batches, the first of which tells critics what to predict first; the eight
    evaluations come at the same counts."""
    sizes = {resolve(config).settings["episodes_per_update"] for _, config in STUDIES["text-dials"].runs()}
    assert sizes == {32, 128, 512}
    assert {(c.total_episodes, c.n_evals) for _, c in STUDIES["text-dials"].runs()} == {(4096, 8)}


def test_a_shared_network_has_its_like_in_two_networks() -> None:
    """It learns at the policy's rate; with that for the critic too nothing is left between them but the sharing."""
    settings = {run: resolve(config).settings for run, config in STUDIES["dials"].runs() if run.endswith("/sppo/seed0")}
    for name in ("PrecisionCartPole-v0", "SparseChain-v0"):
        shared = settings[f"{name}/shared network/1/sppo/seed0"]
        apart = settings[f"{name}/critic learning rate/0.0003/sppo/seed0"]
        assert shared["learning_rate"] == apart["learning_rate"] == apart["critic_learning_rate"]
        differ = {key for key in shared if shared[key] != apart[key]}
        assert differ == {"shared_network", "critic_learning_rate"}, "of which the shared one reads the first alone"


def test_critics_of_a_study_differ_in_size_alone() -> None:
    """One of them is as large as the task's own: two of the model's four layers, and the width of the policy's."""
    found: dict[str, list[RunConfig]] = defaultdict(list)
    for run, config in STUDIES["critics"].runs():
        found[run.split("/", 2)[1]].append(resolve(config))
    for dial, sizes, own in (("critic layers", (1, 2, 4), 2), ("critic width", (16, 64, 256), None)):
        name = dial.replace(" ", "_")
        of = "text" if dial == "critic layers" else "settings"
        assert Counter(getattr(config, of)[name] for config in found[dial]) == Counter(
            sizes * (3 if of == "text" else 5)
        )
        alike = [replace(config, **{of: {**getattr(config, of), name: own}}) for config in found[dial]]
        assert len({repr(config) for config in alike}) == len(alike) / 3, "but for their seeds they are one"
        plain = RunConfig(agent="sppo", env_id=alike[0].env_id)
        assert getattr(resolve(plain), of) == getattr(alike[0], of)
    assert found["critic width"][0].net_arch == (64, 64)


def test_prompts_of_the_pool_come_again_and_again() -> None:
    """9600 responses to 256 prompts: 37 each."""
    for _, config in STUDIES["text-pool"].runs():
        train = make_task("arithmetic", **{**task(config.env_id).env_kwargs, **config.env_kwargs}).prompts("train")
        assert task(config.env_id).total_episodes // len(train) == 37


def test_smollm2_has_one_run_of_each_at_the_task_s_own_settings() -> None:
    """Nothing but the agent and the threads is asked for: siblings spend the same 960 responses on fewer prompts."""
    runs = STUDIES["smollm2"].named()
    assert [name for name, _ in runs] == [f"addition/{agent}/seed0" for agent in studies.AGENTS]
    for (_, config), agent in zip(runs, studies.AGENTS, strict=True):
        assert config == RunConfig(agent=agent, env_id="text/addition", seed=0, text={"threads": 1})
    of_task = studies.task("text/addition")
    assert (of_task.total_episodes, of_task.n_evals, of_task.start) == (960, 5, "smollm2")


def test_the_sweep_on_text_has_other_seeds_and_a_fifth_of_the_budget() -> None:
    """Three rates, the common one in the middle; seven agents, three seeds: 63 runs of 1920 responses."""
    named = STUDIES["text-rates"].named()
    assert len(named) == 63 and {config.total_episodes for _, config in named} == {9600 // 5}
    assert {name.split("/")[0] for name, _ in named} == {"3e-05", "0.0001", "0.0003"}
    reported = {config.seed for _, config in STUDIES["text"].runs()}
    assert not reported & {config.seed for _, config in named}
    assert resolve(RunConfig(env_id=named[0][1].env_id)).settings["learning_rate"] == 1e-4


def test_the_map_on_text_is_of_two_agents() -> None:
    """Three horizons, two rates of success, three seeds."""
    named = STUDIES["text-map"].named()
    assert len(named) == 3 * 2 * 2 * 3 and {config.agent for _, config in named} == {"ppo", "sppo"}
    assert len({config.start for _, config in named}) == 6


def test_ppo_with_another_lambda_is_the_figure_s_in_all_else() -> None:
    own = {name: config for name, config in STUDIES["figure"].runs() if config.agent == "ppo"}
    found = {name.removeprefix("0.95/"): config for name, config in STUDIES["lambda"].runs()}
    assert all(config.settings == {"gae_lambda": 0.95} for config in found.values())
    assert {name: replace(config, settings={}) for name, config in found.items()} == own and len(own) == 25
