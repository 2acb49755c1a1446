"""What a study is: a question and runs, of which nothing but what is in question differs between the agents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sppo.experiments.compare import Job
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import domain, resolve
from sppo.experiments.results import Run
from sppo.experiments.tasks import short_name

LAMBDA = 0.95
"""PPO's, that stable-baselines3 and many others have; where a study does not vary it, it is 1."""

Named = tuple[str, RunConfig]
Dial = dict[float, dict[str, Any]]
"""By value, what it changes of a config; nothing at the base's own."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and its runs, some of them under several names."""

    question: str
    runs: Callable[[], Iterator[Named]]

    def _names(self) -> list[tuple[list[str], RunConfig]]:
        """Each config with all its names."""
        found: dict[str, tuple[list[str], RunConfig]] = {}
        for name, config in self.runs():
            found.setdefault(repr(config), ([], config))[0].append(name)
        return list(found.values())

    def named(self, only: str = "") -> list[Named]:
        """Each config under the first of its names, or those of which some name begins so."""
        return [(names[0], config) for names, config in self._names() if any(name.startswith(only) for name in names)]

    def under_all_names(self, made: Iterable[Run]) -> list[Run]:
        """The study's own of these finished runs, and again under the other names of their configs, where those were
        not run too."""
        own = {name for name, _ in self.runs()}
        found = {run.name: run for run in made if run.name in own}
        for names, _ in self._names():
            if run := next((found[name] for name in names if name in found), None):
                for name in names:
                    found.setdefault(name, replace(run, name=name))
        return list(found.values())

    def jobs(self, out: Path, only: str = "") -> list[Job]:
        """The same as `named`, resolved, as many seeds together as their domain trains side by side."""
        jobs: list[Job] = []
        for _, named in groupby(self.named(only), lambda run: run[0].rpartition("/")[0]):
            runs = [(out / name, resolve(config)) for name, config in named]
            size = domain(runs[0][1]).SIDE_BY_SIDE
            for first in range(0, len(runs), size):
                folders, configs = zip(*runs[first : first + size], strict=True)
                jobs.append((list(configs), list(folders)))
        return jobs


def by_seed(prefix: str, config: RunConfig, seeds: Iterable[int]) -> Iterator[Named]:
    """A config with each seed."""
    for seed in seeds:
        yield f"{prefix}/seed{seed}", replace(config, seed=seed)


def of_setting(name: str, own: float, values: Sequence[float]) -> Dial:
    """A setting of the agent, and its value where nothing is changed."""
    return {value: {"settings": {name: value}} if value != own else {} for value in values}


def one_at_a_time(base: RunConfig, dials: dict[str, Dial], seeds: Iterable[int]) -> Iterator[Named]:
    """PPO and SPPO at every value of each dial; at a dial's own value it is one and the same run."""
    for dial, values in dials.items():
        for value, changes in values.items():
            for agent in ("ppo", "sppo"):
                config = replace(base, agent=agent, **changes)
                yield from by_seed(f"{short_name(base.env_id)}/{dial}/{value:g}/{agent}", config, seeds)


def of_lambda(base: RunConfig, values: Sequence[float], seeds: Iterable[int]) -> Iterator[Named]:
    """PPO at values of its lambda, whose own one is 1; SPPO, which has none, stands beside each as it is."""
    for value in values:
        for agent, settings in ("ppo", {"gae_lambda": value} if value != 1 else {}), ("sppo", {}):
            config = replace(base, agent=agent, settings=settings)
            yield from by_seed(f"{short_name(base.env_id)}/gae lambda/{value:g}/{agent}", config, seeds)
