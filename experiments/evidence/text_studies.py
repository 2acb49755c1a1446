"""The studies on text: their runs, with settings of the task that are the same for all, see `tasks.TEXT_TASKS`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sppo.experiments.config import RunConfig
from sppo.experiments.evidence.study import LAMBDA, Named, by_seed, of_lambda, of_setting, one_at_a_time
from sppo.experiments.evidence.text_starts import OPERANDS, SUCCESSES, TERMS, chains_start, start_of
from sppo.experiments.scopes import AGENTS
from sppo.experiments.tasks import TEXT, short_name, task

TEXT_SEEDS = range(3)
TEXT_SWEEP_SEEDS = range(3, 6)
"""Of the learning-rate sweep; start models are the same for all seeds, prompts and samples are not."""
TEXT_RATES = (3e-5, 1e-4, 3e-4)
"""The common one in the middle."""
ARITHMETIC = TEXT + "arithmetic"
TEXT_NAMES = ("arithmetic", "reasoning_gym:spell_backward", "reasoning_gym:basic_arithmetic")
POOL = 256
"""Prompts that come again and again, where there is something to track."""


def _of_all(prefix: str, seeds: Sequence[int], **about: Any) -> Iterator[Named]:
    for agent in AGENTS:
        yield from by_seed(f"{prefix}/{agent}", RunConfig(agent=agent, **about), seeds)


def text() -> Iterator[Named]:
    """On arithmetic from the model that ships, on the others from one that is made: see `text_starts`."""
    for name in TEXT_NAMES:
        env_id = TEXT + name
        start = {"start": str(start_of(name))} if task(env_id).start is None else {}
        yield from _of_all(short_name(env_id).split(":")[-1], TEXT_SEEDS, env_id=env_id, n_evals=20, **start)


def text_pool() -> Iterator[Named]:
    """Each prompt some forty times; evaluated on held-out ones, as always."""
    return _of_all("arithmetic", TEXT_SEEDS, env_id=ARITHMETIC, n_evals=20, env_kwargs={"train_size": POOL})


def text_rates() -> Iterator[Named]:
    """At a fifth of the budget."""
    about = {"env_id": ARITHMETIC, "total_episodes": task(ARITHMETIC).total_episodes // 5, "n_evals": 5}
    for rate in TEXT_RATES:
        yield from _of_all(f"{rate:g}/arithmetic", TEXT_SWEEP_SEEDS, settings={"learning_rate": rate}, **about)


def text_dials() -> Iterator[Named]:
    """The budget is a multiple of every batch. Chains of 4 terms, of 3 to 6 and of 2 to 7 differ ever more among
    themselves; the first are easier on the whole, too. A shared network learns at the policy's rate, 1e-4, and has all
    of its layers."""
    base = RunConfig(env_id=ARITHMETIC, total_episodes=4_096, n_evals=8)
    fewest, most = task(ARITHMETIC).env_kwargs["terms"]
    terms = {0: [4, 4], 3: [3, 6], most - fewest: None}
    dials = {
        "episodes per update": of_setting("episodes_per_update", 128, (32, 128, 512)),
        "critic learning rate": of_setting("critic_learning_rate", 1e-3, (1e-4, 3e-4, 1e-3, 1e-2)),
        "critic warm-up": of_setting("critic_warmup", 0, (0, 5, 15)),
        "reward noise": of_setting("reward_noise", 0, (0, 0.1, 0.3)),
        "shared network": of_setting("shared_network", False, (False, True)),
        "spread of terms": {x: {"env_kwargs": {"terms": ends}} if ends else {} for x, ends in terms.items()},
    }
    yield from one_at_a_time(base, dials, TEXT_SEEDS)
    yield from of_lambda(base, (LAMBDA, 1), TEXT_SEEDS)
    for shared in (False, True):  # a third agent tells the loss of values from what they are of
        config = replace(base, agent="ppo-bce", settings={"shared_network": True} if shared else {})
        yield from by_seed(f"arithmetic/shared network/{shared:d}/ppo-bce", config, TEXT_SEEDS)


def smollm2() -> Iterator[Named]:
    """A pretrained model, with the task's own settings; one run each, for each takes minutes.

    On one thread: two would wait for each other wherever another run has a core of its own.
    """
    return _of_all("addition", [0], env_id=TEXT + "addition", text={"threads": 1})


def text_map() -> Iterator[Named]:
    """Chains whose worked steps take about the horizon, from models that miss each step so often."""
    for horizon, terms in TERMS.items():
        for success in SUCCESSES:
            for agent in ("ppo", "sppo"):
                config = RunConfig(
                    agent=agent,
                    env_id=ARITHMETIC,
                    env_kwargs={"terms": [terms, terms], "operands": OPERANDS},
                    start=str(chains_start(horizon, success)),
                    total_episodes=1_920,
                    n_evals=6,
                    text={"max_completion_length": horizon},
                )
                yield from by_seed(f"{horizon}/{success:g}/{agent}", config, TEXT_SEEDS)
