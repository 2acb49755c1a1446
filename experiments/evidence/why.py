"""`sppo why`: what makes one method's gradient cleaner than another's, measured at policies that stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sppo.experiments import compact
from sppo.experiments.config import RunConfig, versions
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.evidence.studies import CARTPOLE, CHAIN, chain_goal
from sppo.experiments.process import tune_process
from sppo.experiments.scopes import AGENTS
from sppo.experiments.tasks import TEXT

# What measures loads torch, and what draws loads matplotlib: the command line loads this file.

SUCCESS = 0.2
"""Of the start policy on the chain, about."""
CHAIN_HORIZONS = (10, 30, 100, 300)
CARTPOLE_HORIZONS = (25, 50, 100, 200)
"""Beyond, the start policies succeed in too few episodes: at 400 in 0.2 to 1 %."""
EPISODES = 64
"""In each gradient, whatever the method."""
BATCHES = 48
FITS = (64, 256, 1024, 4096)
"""Episodes of the policy that a critic has seen."""
ONE_HORIZON = {CHAIN: 100, CARTPOLE: 200}
"""Where a critic is measured after each of them, and more algorithms; elsewhere after the second and the last."""
OTHERS = ("drgrpo", "gspo", "dapo", "remax", "restem", "dpo")
LAMBDA = 0.95
REFERENCE = 16_384
"""Episodes behind the gradient of reference where none can be worked out."""
SEEDS = range(2)
"""Of the start policies."""
LONG = 300
"""Steps from which on one policy has to do, for the time it takes."""
MEASURING, REFERRING = 1000, 2000
"""Added to a policy's seed: episodes that no critic has seen."""
ALONG = {CARTPOLE: 4096, "sppo/LunarLander-v0": 4096, "sppo/Pendulum-v0": 4096, TEXT + "arithmetic": 2048}
"""Tasks on which advantages are followed along episodes, and the episodes that critics see before."""
FOLLOWED = 1024
"""Episodes."""

Raw = dict[str, Any]


def pieces() -> dict[str, Callable[[], Any]]:
    """What is measured, by name, the quickest first."""
    tasks: list[tuple[str, Raw]] = [(CARTPOLE, {"horizon": horizon}) for horizon in CARTPOLE_HORIZONS]
    for horizon in CHAIN_HORIZONS:
        tasks.append((CHAIN, {"horizon": horizon, "goal": chain_goal(horizon, SUCCESS)}))
    tasks.sort(key=lambda task: task[1]["horizon"])
    return {f"along/{env_id}": partial(along, env_id) for env_id in ALONG} | {
        f"gradients/{env_id}/{dials['horizon']}/{seed}": partial(gradients, env_id, dials, seed)
        for env_id, dials in tasks
        for seed in seeds(dials["horizon"])
    }


def seeds(horizon: int) -> range:
    """Of the start policies measured."""
    return SEEDS if horizon < LONG else SEEDS[:1]


def make_agent(agent: str, env_id: str, env_kwargs: dict[str, Any], seed: int, **settings: Any) -> Any:
    """With the start policy of this seed; all agents have the same."""
    config = RunConfig(agent=agent, env_id=env_id, env_kwargs=env_kwargs, seed=seed, settings=settings)
    return make_agents([resolve(config)])[0]


def gradients(env_id: str, env_kwargs: dict[str, Any], seed: int) -> Raw:
    """Every method's gradients at one start policy."""
    from sppo.experiments.evidence.exact import ConstantCritic, ExactCritic, solve
    from sppo.experiments.evidence.gradients import ascents, estimated, fit, moments, sample_anew

    at_one = env_kwargs["horizon"] == ONE_HORIZON[env_id]
    make = partial(make_agent, env_id=env_id, env_kwargs=env_kwargs, seed=seed, episodes_per_update=EPISODES)
    series: list[Raw] = []

    def record(agent: Any, name: str, critic: Any = None, **settings: Any) -> None:
        own, sampler = agent.config, agent.sampler
        agent.config = replace(own, **settings)
        sample_anew(agent, MEASURING + seed)
        found = moments(ascents(agent, BATCHES), truth, squared_norm)
        steps = agent.sampler.counts["env_steps"] / BATCHES
        agent.config, agent.sampler = own, sampler
        series.append({"agent": name, "settings": settings, "critic": critic, "steps": steps, **found._asdict()})

    ppo = make("ppo")
    sample_anew(ppo, REFERRING + seed)
    episodes = ppo.sampler.rollout(ppo.sampler.starts(4096))
    success = float(episodes.outcomes.mean())
    critics: dict[str, Any] = {}
    if env_id == CHAIN:
        values, truth = solve(ppo.sampler.env, ppo.policy)
        squared_norm, reference = float(truth @ truth), None
        success = float(values[0, : ppo.sampler.env.start_spread + 1].mean())
        critics["exact"] = ExactCritic(ppo.sampler.env, values)
    else:
        fit(ppo, FITS[-1])
        sample_anew(ppo, 2 * REFERRING + seed)
        ppo.config = replace(ppo.config, aggregation="constant_horizon", episodes_per_update=4 * EPISODES)
        rows = ascents(ppo, REFERENCE // (4 * EPISODES))
        truth, squared_norm = estimated(rows)
        reference = squared_norm / (float(truth @ truth) - squared_norm)
    if at_one:
        critics["constant"] = ConstantCritic(success)

    for name in AGENTS + OTHERS * at_one:
        agent = make(name)
        dial = name in ("ppo", "sppo")
        lambdas = ({}, {"gae_lambda": LAMBDA}) if name == "ppo" else ({},)
        if agent.critic is None:
            record(agent, name)
            continue
        for seen in FITS if dial and at_one else FITS[1::2] if dial else FITS[-1:]:
            fit(agent, seen)
            for settings in lambdas:
                record(agent, name, seen, **settings)
        for critic in critics if dial else ():
            agent.critic = critics[critic]
            for settings in lambdas:
                record(agent, name, critic, **settings)
        if dial and name == "ppo" and "exact" in critics:
            agent.critic = critics["exact"]
            record(agent, name, "exact", gae_lambda=0.0)
    return {
        "env_id": env_id,
        "env_kwargs": env_kwargs,
        "seed": seed,
        "success": success,
        "length": float(episodes.lengths.double().mean()),
        "reference_signal_to_noise": reference,
        "series": series,
    }


def along(env_id: str) -> list[Raw]:
    """Advantages and values along the episodes of one start policy."""
    from sppo.experiments.evidence.gradients import fit, sample_anew
    from sppo.experiments.evidence.positions import profile

    rows = []
    for name in AGENTS:
        agent = make_agent(name, env_id, {}, 0)
        if agent.critic is not None:
            fit(agent, ALONG[env_id], _first_prediction(env_id))
        sample_anew(agent, MEASURING)
        found = profile(agent, FOLLOWED // agent.config.episodes_per_update)
        rows.append({"env_id": env_id, "agent": name, **found})
    return rows


def _first_prediction(env_id: str) -> Any:
    if not env_id.startswith(TEXT):
        return None
    from sppo.experiments.responses import FirstPrediction

    return FirstPrediction(None)


def read(file: Path) -> Raw:
    """The measurements of a file.

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    if not file.exists():
        raise ValueError(f"{file} is missing: measure first, `sppo why --measure`")
    return compact.read(file)


@dataclass(frozen=True, kw_only=True)
class Why:
    """Signal, noise and bias of each method's gradient, and its advantages along episodes, at fixed policies.

    Draws the figures and prints the tables of docs/WHY.md from the measurements that are there, or makes them.
    """

    measure: bool = False
    """Measure what the file does not hold yet: eight minutes of one idle core for everything."""
    raw: Path = Path("docs/results/why.json.gz")
    """The file of measurements."""
    images: Path = Path("docs/images")
    """Where the figures go, why-*.png and .svg."""

    def __call__(self) -> None:
        if self.measure:
            tune_process()
            raw = read(self.raw) if self.raw.exists() else {"versions": versions()}
            for name, piece in pieces().items():
                if name not in raw:
                    print(name, flush=True)
                    raw[name] = piece()
                    compact.write(compact.short(raw), self.raw)
        from sppo.experiments.evidence.why_figures import draw
        from sppo.experiments.evidence.why_tables import tables

        raw = read(self.raw)
        print(tables(raw))
        for path in draw(raw, self.images):
            print(path)
