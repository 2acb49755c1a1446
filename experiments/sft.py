"""Stage 2: clone an expert's successful episodes until the policy succeeds sometimes, and stop there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from sppo.agents.batch import Choices, Experience
from sppo.agents.control import ControlSampler
from sppo.agents.learners import LocalLearner
from sppo.agents.minibatches import minibatches, per_pass
from sppo.agents.networks import ControlPolicy, GaussianPolicy
from sppo.agents.storage import save_policy
from sppo.agents.update import LogLikelihoodLoss
from sppo.envs import episodes
from sppo.experiments.settings import make
from sppo.experiments.tasks import short_name, task


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """How a start policy is cloned."""

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the environment."""
    low: float = 0.05
    """Least success rate to stop at, with sampled actions."""
    high: float = 0.20
    """Greatest success rate to stop at."""
    episodes: int = 100
    """How many of the expert's episodes each fit sees, drawn anew for each."""
    learning_rate: float = 2e-4
    batch_size: int = 512
    """Steps per gradient step."""
    check_every: int = 10
    """Gradient steps between two looks at the success rate, which jumps."""
    check_episodes: int = 128
    """Episodes of each look."""
    measure_episodes: int = 512
    """Episodes, from other starts, of the success rate that is reported and must lie in the window."""
    min_gradient_steps: int = 50
    """Cloning goes on at least so long, so that a task in which chance succeeds is cloned too."""
    max_gradient_steps: int = 20_000
    log_std_init: float = -0.5
    """Initial log standard deviation of continuous actions."""
    net_arch: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}")


class WindowMissed(ValueError):
    """Cloning ended without a success rate in its window: another seed may find one."""


def read_demonstrations(path: Path) -> dict[str, Tensor]:
    """An expert's episodes: observations (S, D), actions (S,) or (S, A), lengths (N,), end to end.

    Raises:
        ValueError: if they are missing or damaged.
    """
    file = path / "episodes.safetensors" if path.is_dir() else path
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the expert's episodes {file}: {error}; `sppo experts` makes them") from error


def clone(
    config: SFTConfig,
    demonstrations: dict[str, Tensor],
    save_to: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Behaviour cloning into the window [low, high].

    Gradient steps run until a look at the success rate exceeds `low`. A look above `high` undoes the steps since the
    one before and halves the learning rate, so the window is not jumped over.

    Args:
        config: how.
        demonstrations: as `read_demonstrations` gives them.
        save_to: where the policy (safetensors, with a JSON beside it) goes.
        progress: told the success rate of each look.

    Returns:
        What the JSON holds: the settings, the success rate with its number of episodes, and the gradient steps taken.

    Raises:
        ValueError: if the demonstrations do not fit the environment.
        WindowMissed: if the window is not reached.
    """
    generator = np.random.default_rng([config.seed, 2])
    sampler = _sampler(config)
    policy = sampler.policy
    _check_fit(config, demonstrations, policy)
    observations, actions = _choose(demonstrations, config.episodes, generator)
    policy.obs_mean.copy_(observations.mean(0))
    policy.obs_std.copy_(observations.std(0).clamp(min=1e-3))
    if isinstance(policy, GaussianPolicy):
        torch.nn.init.constant_(policy.log_std, config.log_std_init)
    learner = LocalLearner(policy, learning_rate=config.learning_rate, max_grad_norm=1.0, adam_eps=1e-5)
    loss, data = LogLikelihoodLoss(policy), _as_experience(observations, actions)

    def look(n: int, first: int) -> float:
        traj = sampler.rollout(np.arange(first, first + n))
        rate = float(traj.success.float().mean())
        if progress is not None:
            progress(rate)
        return rate

    steps, kept = 0, _state(learner)
    rate = look(config.check_episodes, 0)
    while (
        steps < config.min_gradient_steps
        or not config.low <= rate <= config.high
        or not config.low <= (rate := look(config.measure_episodes, 10_000)) <= config.high
    ):
        if rate > config.high and steps >= config.min_gradient_steps:
            if learner.optimizer.param_groups[0]["lr"] < 1e-8:
                raise WindowMissed(f"{config.env_id}: no policy between {config.low} and {config.high} could be found")
            kept[2] *= 0.5  # the learning rate to go on with
            _restore(learner, kept)
        else:
            kept = _state(learner)
            if steps >= config.max_gradient_steps:
                raise WindowMissed(f"{config.env_id}: success is {rate:.3f} after {steps} gradient steps of cloning")
        count = per_pass(data, loss, 1, config.batch_size)
        for batch, _ in zip(minibatches(data, loss, 10_000, count, generator), range(config.check_every), strict=False):
            learner.zero_grad()
            per_step, _stats = loss(batch)
            learner.backward((per_step * batch.weight).sum() / batch.share.sum())
            learner.step()
            steps += 1
        rate = look(config.check_episodes, 0)
    about = {
        "config": dataclasses.asdict(config),
        "success_rate": rate,
        "success_rate_episodes": config.measure_episodes,
        "gradient_steps": steps,
        "env_steps": sampler.counts["env_steps"],
        "policy": {
            "kind": type(policy).__name__,
            "n_inputs": policy.n_inputs,
            "n_outputs": policy.n_outputs,
            "net_arch": list(config.net_arch),
            "activation": config.activation,
        },
    }
    if save_to is not None:
        save_policy(policy, save_to, about)
    return about


def sft_config(env_id: str, **overrides: Any) -> SFTConfig:
    """An id's settings: the defaults, what its task fixes, then `overrides`."""
    return make(SFTConfig, {**task(env_id).sft, **overrides, "env_id": env_id})


def check_fits(config: SFTConfig, expert: Path, folder: Path, n_fits: int) -> None:
    """Everything that can be checked before cloning. Writes nothing.

    Raises:
        ValueError: naming what is wrong.
    """
    if n_fits < 1:
        raise ValueError(f"fits: at least one is needed, got {n_fits}")
    _check_fit(config, read_demonstrations(expert), _sampler(config).policy)
    for seed in range(config.seed, config.seed + n_fits):
        path = _policy_file(config, folder, seed)
        if path.exists():
            raise ValueError(f"{path} already exists; --out names another folder")


def fits(config: SFTConfig, expert: Path, folder: Path, n_fits: int, progress_bar: bool = True) -> list[dict[str, Any]]:
    """Several independent fits, one per seed, as folder/NAME/0.safetensors, 1.safetensors, ..."""
    demonstrations = read_demonstrations(expert)
    made = []
    with tqdm(total=n_fits, disable=not progress_bar, unit="fit", desc=short_name(config.env_id)) as bar:
        for seed in range(config.seed, config.seed + n_fits):
            path = _policy_file(config, folder, seed)
            one = dataclasses.replace(config, seed=seed)
            made.append(clone(one, demonstrations, path, lambda rate: bar.set_postfix(success=f"{rate:.3f}")))
            bar.update()
    return made


def summary(made: list[dict[str, Any]]) -> str:
    """One line per fit."""
    lines = [f"{'fit':>4s} {'success':>8s} {'gradient steps':>15s}"]
    lines += [f"{m['config']['seed']:4d} {m['success_rate']:8.3f} {m['gradient_steps']:15d}" for m in made]
    return "\n".join(lines)


def network_of(path: Path) -> dict[str, Any]:
    """Layers and activation of a saved policy, from the JSON beside it.

    Raises:
        ValueError: if that is missing or damaged.
    """
    file = path.with_suffix(".json")
    try:
        policy = json.loads(file.read_text())["policy"]
        return {"net_arch": tuple(int(n) for n in policy["net_arch"]), "activation": policy["activation"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {file}, which describes the start policy: {error!r}") from error


def _sampler(config: SFTConfig) -> ControlSampler:
    return ControlSampler(
        episodes(config.env_id, **config.env_kwargs),
        seed=config.seed,
        net_arch=config.net_arch,
        activation=config.activation,
    )


def _policy_file(config: SFTConfig, folder: Path, seed: int) -> Path:
    return folder / short_name(config.env_id) / f"{seed}.safetensors"


def _check_fit(config: SFTConfig, demonstrations: dict[str, Tensor], policy: ControlPolicy) -> None:
    """Raises ValueError if the demonstrations are not of the config's task."""
    missing = {"observations", "actions", "lengths"} - demonstrations.keys()
    if missing:
        raise ValueError(f"the expert's episodes lack {', '.join(sorted(missing))}")
    steps = int(demonstrations["lengths"].sum())
    actions = (steps, policy.n_outputs) if isinstance(policy, GaussianPolicy) else (steps,)
    for name, want in (("observations", (steps, policy.n_inputs)), ("actions", actions)):
        got = tuple(demonstrations[name].shape)
        if got != want:
            raise ValueError(f"the expert's {name} must be {want} for {config.env_id}, got {got}")
    chosen = demonstrations["actions"]
    if not isinstance(policy, GaussianPolicy) and not 0 <= int(chosen.min()) <= int(chosen.max()) < policy.n_outputs:
        raise ValueError(f"the expert's actions must be in [0, {policy.n_outputs}) for {config.env_id}")


def _choose(demonstrations: dict[str, Tensor], n: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    lengths = demonstrations["lengths"].tolist()
    ends = np.cumsum(lengths)
    chosen = generator.choice(len(lengths), min(n, len(lengths)), replace=False)
    index = torch.from_numpy(np.concatenate([np.arange(ends[i] - lengths[i], ends[i]) for i in chosen]))
    return demonstrations["observations"][index], demonstrations["actions"][index]


def _as_experience(observations: Tensor, actions: Tensor) -> Experience:
    ones = torch.ones(len(actions), 1)
    choices = Choices(inputs=observations[:, None], actions=actions[:, None], logprobs=ones, valid=ones.bool())
    return Experience(traj=choices, weight=ones, share=ones)


def _state(learner: LocalLearner) -> list[Any]:
    adam = learner.optimizer.state_dict()["state"]
    copies = {i: {k: v.clone() for k, v in slot.items()} for i, slot in adam.items()}
    return [learner.flat.clone(), copies, learner.optimizer.param_groups[0]["lr"]]


def _restore(learner: LocalLearner, kept: list[Any]) -> None:
    learner.flat.copy_(kept[0])
    state = learner.optimizer.state_dict()
    copies = {i: {k: v.clone() for k, v in slot.items()} for i, slot in kept[1].items()}
    learner.optimizer.load_state_dict({**state, "state": copies})
    learner.optimizer.param_groups[0]["lr"] = kept[2]
