"""Which agents are compared, and in what: a task, or a setting of a study, which the names of its runs tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sppo.experiments.results import Run

AGENTS = ("ppo", "sppo", "ppo-bce", "tracker", "reinforce", "grpo", "rloo")
"""Of the studies; PPO first, whom the others are measured against."""


def setting_of(run: Run) -> str:
    """What its name has before AGENT/seedK."""
    return "/".join(run.name.split("/")[:-2])


def by_setting(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of all agents and seeds at each."""
    return _grouped(runs, setting_of)


def _grouped(runs: Iterable[Run], key: Callable[[Run], str]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def by_scope(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By task; or by setting, where an agent ran with one seed more than once on a task.

    Raises:
        ValueError: two runs of one agent at one setting with one seed; a setting of several tasks.
    """
    tasks = _grouped(runs, lambda run: run.env_id)
    if not any(map(_twice, tasks.values())):
        return dict(sorted(tasks.items()))
    settings = by_setting(runs)
    for name, here in settings.items():
        if found := _twice(here):
            a, b = found
            raise ValueError(f"{a.name} and {b.name} are both {b.label} on {b.env_id} with seed {b.seed}")
        if len(ids := sorted({run.env_id for run in here})) > 1:
            raise ValueError(f"the runs below {name or 'the top folder'} must be of one task, got {', '.join(ids)}")
    return dict(sorted(settings.items(), key=lambda item: (item[1][0].env_id, by_value(item[0]))))


def _twice(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Two runs of one agent with one seed."""
    seen: dict[tuple[str, int], Run] = {}
    for run in runs:
        if (run.label, run.seed) in seen:
            return seen[run.label, run.seed], run
        seen[run.label, run.seed] = run
    return None


def by_value(setting: str) -> list[tuple[bool, float, str]]:
    """Sorts numbers by what they are worth: 25/0.4 comes before 100/0.05."""

    def key(part: str) -> tuple[bool, float, str]:
        try:
            return False, float(part), ""
        except ValueError:
            return True, 0.0, part

    return [key(part) for part in setting.split("/")]
