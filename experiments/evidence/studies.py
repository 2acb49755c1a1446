"""The studies behind docs/RESULTS.md: each a question and the runs that answer it, nothing else.

A run is a folder name, TASK/AGENT/seedK below a name for what varies, and its config. In a study everything that is not
in question is the same for all agents: start policies by seed, budgets, settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sppo.experiments.compact import ENDING
from sppo.experiments.config import RunConfig
from sppo.experiments.evidence import text_studies
from sppo.experiments.evidence.study import LAMBDA, Dial, Named, Study, by_seed, of_lambda, of_setting, one_at_a_time
from sppo.experiments.packed import unpack
from sppo.experiments.results import Run, area
from sppo.experiments.scopes import AGENTS
from sppo.experiments.tasks import TASKS, TEXT, short_name, task
from sppo.llm.tasks.names import unknown

MAPPED = ("ppo", "ppo-bce", "sppo", "reinforce")
"""Of the maps over control tasks: a critic of every step, by either loss, one of the start, none."""
SEEDS = range(5)
SWEEP_SEEDS = range(5, 8)
"""Of the learning-rate sweep: other seeds and other start policies than those of the figure."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
COMMON_RATE = 3e-4
HORIZONS = (10, 30, 100, 300, 1000)
HOPPER = "sppo/Hopper-v0"
CHAIN = "sppo/SparseChain-v0"
CARTPOLE = "sppo/PrecisionCartPole-v0"
LUNAR = "sppo/LunarLander-v0"
CARTPOLE_HORIZONS = (25, 50, 100, 200, 400)
CARTPOLE_SEEDS = range(20)
"""Of the map over CartPole, where five left SPPO and PPO undecided."""
HIGHER_RATES = (1e-3, 3e-3)
"""Of the policy, at which that map is made again: at the common one all that it shows may be one of slow learning."""
HIGHER_SEEDS = range(10)
WINDOWS = {0.01: 0.03, 0.05: 0.2, 0.4: 0.6}
"""Of the success of start policies: low to high."""
RESULTS = Path("docs/results")
"""Packed runs of the studies: NAME.json.gz."""
STARTS_MADE = Path("runs/starts")
"""Start policies that do not ship, made on demand."""
STEPS = 4_000_000
"""Of environment, at most, in an episode budget at full horizon."""


def budget(env_id: str) -> int:
    """Episodes: the paper's, or as many as four million steps hold if each takes the whole horizon; a quarter of that
    for Hopper, whose physics costs ten times as much as any other's."""
    horizon = 200 if env_id == CARTPOLE else 1000
    return min(task(env_id).total_episodes, STEPS // horizon) // (4 if env_id == HOPPER else 1)


def _tasks(agents: Sequence[str], seeds: Iterable[int], divisor: int = 1, **settings: Any) -> Iterator[Named]:
    """Every agent on each of the five tasks."""
    for env_id in (*(each for each in TASKS if each != HOPPER), HOPPER):  # the slowest last
        for agent in agents:
            config = RunConfig(
                agent=agent,
                env_id=env_id,
                total_episodes=budget(env_id) // divisor,
                n_evals=max(1, (10 if env_id == HOPPER else 40) // divisor),
                n_eval_episodes=100,
                settings=settings,
            )
            yield from by_seed(f"{short_name(env_id)}/{agent}", config, seeds)


def _figure() -> Iterator[Named]:
    return _tasks(AGENTS, SEEDS)


def _lambda() -> Iterator[Named]:
    """The figure's PPO again with stable-baselines3's lambda; here it is 1 elsewhere."""
    for name, config in _figure():
        if config.agent == "ppo":
            yield f"{LAMBDA:g}/{name}", replace(config, settings={"gae_lambda": LAMBDA})


def _rates() -> Iterator[Named]:
    for rate in RATES:
        for name, config in _tasks(AGENTS, SWEEP_SEEDS, divisor=5, learning_rate=rate):
            yield f"{rate:g}/{name}", config


def best_rates(runs: Iterable[Run]) -> dict[tuple[str, str], float]:
    """Of every task and agent of the sweep the learning rate with the greatest mean area under the curve.

    Of a task only rates at which all agents have all the seeds that it has anywhere, and nothing of one with fewer than
    two such rates: half a sweep would favour the agents that came first.
    """
    areas: dict[str, dict[float, dict[str, dict[int, float]]]] = {}
    for run in runs:
        of_rate = areas.setdefault(run.env_id, {}).setdefault(rate_of(run), {})
        of_rate.setdefault(run.label, {})[run.seed] = area(run)
    best: dict[tuple[str, str], float] = {}
    for env_id, of_task in areas.items():
        seeds = {seed for of_rate in of_task.values() for of_agent in of_rate.values() for seed in of_agent}
        whole = [rate for rate, a in of_task.items() if all(a.get(agent, {}).keys() == seeds for agent in AGENTS)]
        for agent in AGENTS if len(whole) > 1 else ():
            best[env_id, agent] = max(whole, key=lambda rate: fmean(of_task[rate][agent].values()))
    return best


def rate_of(run: Run) -> float:
    """Its learning rate."""
    return float(run.config["settings"]["learning_rate"])


def _tuned() -> Iterator[Named]:
    """The figure again on the tasks that were swept, each agent at its best rate, be it the common one."""
    best = best_rates(unpack(RESULTS / f"rates{ENDING}"))
    for name, config in _figure():
        if rate := best.get((config.env_id, config.agent)):
            yield f"{rate:g}/{name}", replace(config, settings={"learning_rate": rate})


def chain_goal(horizon: int, success: float) -> int:
    """The goal that a walk with even odds from position 2, the mean of the starts, reaches about so often."""
    from scipy.stats import binom

    return 2 + max(1, round(binom.isf(success, horizon, 0.5)))


def _map(horizon: int, success: float, seeds: Iterable[int], **about: Any) -> Iterator[Named]:
    """One cell: both critics and none."""
    for agent in MAPPED:
        config = RunConfig(agent=agent, total_episodes=3_200, n_evals=25, n_eval_episodes=100, **about)
        yield from by_seed(f"{horizon}/{success:g}/{agent}", config, seeds)


def _chain_map() -> Iterator[Named]:
    """Without a start policy: a network whose output layer is small begins at even odds."""
    for horizon in HORIZONS:
        for success in (0.01, 0.05, 0.2, 0.5):
            dials = {"horizon": horizon, "goal": chain_goal(horizon, success)}
            yield from _map(horizon, success, SEEDS, env_id=CHAIN, env_kwargs=dials, start="none")


def _cartpole_map(seeds: Iterable[int] = CARTPOLE_SEEDS, **about: Any) -> Iterator[Named]:
    """From start policies cloned for each horizon into a window of success: see `commands.make_starts`."""
    for horizon in CARTPOLE_HORIZONS:
        for low in WINDOWS:
            start = str(STARTS_MADE / f"{horizon}" / f"{low:g}" / short_name(CARTPOLE))
            kwargs = {"horizon": horizon}
            yield from _map(horizon, low, seeds, env_id=CARTPOLE, env_kwargs=kwargs, start=start, **about)


def _cartpole_rates() -> Iterator[Named]:
    """The same cells at higher rates of the policy; the common one is the map's."""
    for rate in HIGHER_RATES:
        for name, config in _cartpole_map(HIGHER_SEEDS, settings={"learning_rate": rate}):
            yield f"{rate:g}/{name}", config


def _dials() -> Iterator[Named]:
    """One thing at a time, on three tasks, whose own value of it is among those compared.

    A shared network learns at the policy's rate, 3e-4: compare it with two networks whose critic has that rate too.
    """
    rare = {"horizon": 100, "goal": chain_goal(100, 0.01)}
    for base, spreads in (
        (RunConfig(env_id=CARTPOLE, total_episodes=3_200), (0.01, 0.05, 0.1)),
        (RunConfig(env_id="sppo/MountainCar-v0", total_episodes=400), (0.02, 0.1, 0.2)),
        (RunConfig(env_id=CHAIN, env_kwargs=rare, start="none", total_episodes=3_200), (0, 4, 20)),
    ):
        size, (_, spread, _) = task(base.env_id).episodes_per_update, spreads
        kwargs = {x: {"env_kwargs": {**base.env_kwargs, "start_spread": x}} for x in spreads}
        dials: dict[str, Dial] = {
            "episodes per update": of_setting("episodes_per_update", size, (size // 4, size, 4 * size)),
            "start spread": {**kwargs, spread: {}},
            "critic learning rate": of_setting("critic_learning_rate", 1e-3, (1e-4, 3e-4, 1e-3, 1e-2)),
            "critic warm-up": of_setting("critic_warmup", 0, (0, 5, 20)),
        }
        if base.env_id in (CARTPOLE, CHAIN):
            dials |= {
                "reward noise": of_setting("reward_noise", 0, (0, 0.1, 0.3)),
                "shared network": of_setting("shared_network", False, (False, True)),
            }
        base = replace(base, n_evals=25, n_eval_episodes=100)
        yield from one_at_a_time(base, dials, SEEDS)
        yield from of_lambda(base, (0.9, LAMBDA, 1), SEEDS)


def _critics() -> Iterator[Named]:
    """SPPO with the critic of the task, a smaller and a larger one: of a model's four layers the first one, two or all,
    and on LunarLander, whose starts differ, hidden layers of 16, 64 or 256 units beside the policy's 64."""
    of_text = RunConfig(agent="sppo", env_id=TEXT + "arithmetic", total_episodes=4_800, n_evals=10)
    for layers in (1, 2, 4):
        config = replace(of_text, text={"critic_layers": layers})
        yield from by_seed(f"arithmetic/critic layers/{layers}/sppo", config, text_studies.TEXT_SEEDS)
    of_control = RunConfig(agent="sppo", env_id=LUNAR, total_episodes=budget(LUNAR), n_evals=20, n_eval_episodes=100)
    for width in (16, 64, 256):
        config = replace(of_control, settings={"critic_width": width})
        yield from by_seed(f"{short_name(LUNAR)}/critic width/{width}/sppo", config, SEEDS)


STUDIES = {
    "figure": Study(
        question="Seven ways to give credit on the paper's five control tasks, at the same settings",
        runs=_figure,
    ),
    "lambda": Study(
        question="The figure's PPO with lambda = 0.95, as stable-baselines3 and many others have it",
        runs=_lambda,
    ),
    "rates": Study(
        question="Which learning rate is best for each of the seven, on seeds that the figure does not report",
        runs=_rates,
    ),
    "tuned": Study(
        question="The figure again, each with its best rate of the sweep",
        runs=_tuned,
    ),
    "chain-map": Study(
        question="A critic of every step, of the start or none, over horizon and start success, on a known walk",
        runs=_chain_map,
    ),
    "cartpole-map": Study(
        question="A critic of every step, of the start or none, over horizon and start success, on Precision CartPole",
        runs=_cartpole_map,
    ),
    "cartpole-rates": Study(
        question="The map on Precision CartPole at higher learning rates",
        runs=_cartpole_rates,
    ),
    "dials": Study(
        question="PPO and SPPO as one thing varies: batch, spread of starts, critic, noise, networks shared, lambda",
        runs=_dials,
    ),
    "text": Study(
        question="The same seven on small language models that learn arithmetic and spelling",
        runs=text_studies.text,
    ),
    "text-pool": Study(
        question="The same seven on arithmetic with few prompts, which a table can track",
        runs=text_studies.text_pool,
    ),
    "text-rates": Study(
        question="Which learning rate is best for each of the seven on arithmetic, on seeds that text does not report",
        runs=text_studies.text_rates,
    ),
    "text-dials": Study(
        question="PPO and SPPO on arithmetic as one thing varies: batch, spread, critic, noise, a shared network",
        runs=text_studies.text_dials,
    ),
    "smollm2": Study(
        question="The same seven on a pretrained model of 135 million parameters that learns addition, one run each",
        runs=text_studies.smollm2,
    ),
    "text-map": Study(
        question="PPO and SPPO over horizon and success of the start model, on chains of arithmetic",
        runs=text_studies.text_map,
    ),
    "critics": Study(
        question="SPPO with a small and a large critic, on arithmetic and LunarLander",
        runs=_critics,
    ),
}


def study(name: str) -> Study:
    """By name.

    Raises:
        ValueError: for an unknown one, naming the nearest.
    """
    if name not in STUDIES:
        raise ValueError(unknown("study", name, STUDIES))
    return STUDIES[name]
