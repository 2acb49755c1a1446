"""The ids: what `gymnasium.make`, `gymnasium.make_vec` and `episodes` build for them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import numbers
from typing import Any

import gymnasium as gym

from sppo.envs.adapters import EpisodeEnv, EpisodeVectorEnv
from sppo.envs.episodes import Episodes

TASKS = {
    "PrecisionCartPole": "classic:CartPole",
    "MountainCar": "classic:MountainCar",
    "Hopper": "hopper:Hopper",
    "LunarLander": "lunar_lander:LunarLander",
    "Pendulum": "classic:Pendulum",
    "SparseChain": "chain:SparseChain",
}
_ENTRY_POINT = "sppo.envs.registry:make_env"
_VECTOR_ENTRY_POINT = "sppo.envs.registry:make_vector_env"


def register() -> None:
    """Register `sppo/NAME-v0` and `sppo/NAME-dense-v0` with Gymnasium, for each task."""
    for name in TASKS:
        for suffix, kwargs in (("", {}), ("-dense", {"reward": "dense"})):
            gym.register(
                f"sppo/{name}{suffix}-v0",
                entry_point=_ENTRY_POINT,
                vector_entry_point=_VECTOR_ENTRY_POINT,
                kwargs={"task": name, **kwargs},
            )


def make_task(task: str, **kwargs: Any) -> Episodes:
    """The batch of a task of ours by its short name; its simulator is imported only now."""
    module, name = TASKS[task].split(":")
    cls = getattr(importlib.import_module(f"sppo.envs.{module}"), name)
    known = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name != "self"}
    for key, value in kwargs.items():
        if key not in known:
            raise ValueError(f"{task} has no option {key!r}{_nearest(key, list(known))}; it has {', '.join(known)}")
        _check_dial(f"{task}'s {key}", value, known[key])
    made: Episodes = cls(**kwargs)
    return made


def _check_dial(name: str, value: Any, default: Any) -> None:
    """A dial takes what its default is: a finite number, a whole one, true or false, or a word."""
    kind, words = (
        (bool, "true or false")
        if isinstance(default, bool)
        else (numbers.Integral, "a whole number")
        if isinstance(default, int)
        else (numbers.Real, "a finite number")
        if isinstance(default, float)
        else (type(default), f"a {type(default).__name__}")
    )
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be {words}, got {value!r}")
    if isinstance(value, numbers.Real) and not math.isfinite(value):
        raise ValueError(f"{name} must be {words}, got {value!r}")
    if isinstance(value, numbers.Real) and value < 0 and ("spread" in name or "tolerance" in name):
        raise ValueError(f"{name} must not be negative, got {value!r}")


def make_env(task: str, render_mode: str | None = None, **kwargs: Any) -> EpisodeEnv:
    """What `gymnasium.make` calls."""
    return EpisodeEnv(make_task(task, **kwargs), render_mode)


def make_vector_env(task: str, num_envs: int = 1, **kwargs: Any) -> EpisodeVectorEnv:
    """What `gymnasium.make_vec` calls."""
    return EpisodeVectorEnv(make_task(task, **kwargs), num_envs)


def episodes(env_id: str, **kwargs: Any) -> Episodes:
    """A batch of episodes of any registered environment: ours as arrays, any other through Gymnasium, row by row.

    Args:
        env_id: a registered id, as `gymnasium.make` takes it: "module:id" imports the module that registers it.
        kwargs: the environment's own options (the dials of a task of ours).

    Raises:
        ValueError: an unknown id or option, or an environment whose spaces or missing time limit shut it out.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
    except gym.error.Error:
        raise ValueError(f"no environment is registered as {name!r}{_nearest(name, list(gym.registry))}") from None
    except ModuleNotFoundError as error:
        raise ValueError(f"{env_id!r} names a module that cannot be imported: {error}") from None
    if spec.entry_point == _ENTRY_POINT:
        return make_task(**{**spec.kwargs, **kwargs})
    from sppo.envs.replay import GymEpisodes

    return GymEpisodes.of_id(name, **kwargs)


def _nearest(name: str, known: list[str]) -> str:
    # Ids are matched without namespace and case too: "CartPole" should find "sppo/PrecisionCartPole-v0".
    short = {k.rsplit("/", 1)[-1].lower(): k for k in known}
    found = difflib.get_close_matches(name, known, 1, 0.6) or [
        short[s] for s in difflib.get_close_matches(name.rsplit("/", 1)[-1].lower(), list(short), 1, 0.5)
    ]
    return f"; did you mean {found[0]!r}?" if found else ""
