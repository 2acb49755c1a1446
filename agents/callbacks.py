"""What can be done between updates; names as in stable-baselines3 where it has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sppo.agents.agent import Agent

Metrics = dict[str, float]


class Callback:
    """Called after every update; returning False ends learning. It may add to `metrics`."""

    def on_training_start(self, agent: Agent) -> None: ...

    def on_update(self, agent: Agent, metrics: Metrics) -> bool | None: ...

    def on_training_end(self, agent: Agent) -> None: ...


class CallbackList(Callback):
    """Several callbacks in order; learning ends if any of them says so."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.callbacks = [as_callback(callback) for callback in callbacks]

    def on_training_start(self, agent: Agent) -> None:
        for callback in self.callbacks:
            callback.on_training_start(agent)

    def on_update(self, agent: Agent, metrics: Metrics) -> bool:
        return all([callback.on_update(agent, metrics) is not False for callback in self.callbacks])

    def on_training_end(self, agent: Agent) -> None:
        for callback in self.callbacks:
            callback.on_training_end(agent)


class FunctionCallback(Callback):
    def __init__(self, function: Callable[[Agent, Metrics], bool | None]) -> None:
        self.function = function

    def on_update(self, agent: Agent, metrics: Metrics) -> bool | None:
        return self.function(agent, metrics)


def as_callback(callback: Any) -> Callback:
    """A Callback from None, a Callback, a function of (agent, metrics), or a sequence of these."""
    if callback is None:
        return Callback()
    if isinstance(callback, Callback):
        return callback
    return FunctionCallback(callback) if callable(callback) else CallbackList(callback)


class EvalCallback(Callback):
    """Evaluate on fixed held-out starts, outside the budget, at the start and then every `eval_freq` episodes.

    Args:
        sampler: over an environment of its own, sharing the agent's policy; its generator is reset before each
            evaluation, so that evaluations do not depend on one another.
        starts: held-out starts.
        eval_freq: episodes between evaluations, or what else `clock` reads.
        on_eval: told the record of each evaluation: success_rate, mean_return, mean_length, and episodes, env_steps,
            n_updates, seconds and cpu_seconds so far.
        deterministic: take the mode instead of sampling.
        clock: what is counted between evaluations; by default the agent's episodes.
    """

    def __init__(
        self,
        sampler: Any,
        starts: Any,
        *,
        eval_freq: float,
        on_eval: Callable[[Mapping[str, float]], None] | None = None,
        deterministic: bool = False,
        clock: Callable[[Agent], float] | None = None,
    ) -> None:
        self.sampler, self.starts, self.eval_freq = sampler, starts, eval_freq
        self.clock = clock or (lambda agent: agent.num_episodes)
        self.on_eval, self.deterministic = on_eval, deterministic
        self.last: Mapping[str, float] = {}

    def evaluate(self, agent: Agent) -> Mapping[str, float]:
        """Evaluate now."""
        self.sampler.generators["actions"] = np.random.default_rng(0)
        traj = self.sampler.rollout(self.starts, greedy=self.deterministic)
        self.last = {
            "episodes": agent.num_episodes,
            "env_steps": agent.num_steps,
            "n_updates": agent.n_updates,
            "seconds": agent.seconds,
            "cpu_seconds": agent.cpu_seconds,
            "success_rate": float(traj.success.double().mean()),
            "mean_return": float(traj.outcomes.mean()),
            "mean_length": float(traj.lengths.float().mean()),
        }
        if self.on_eval is not None:
            self.on_eval(self.last)
        return self.last

    def on_training_start(self, agent: Agent) -> None:
        self.seen = self.clock(agent)
        if agent.num_episodes == 0:
            self.evaluate(agent)

    def on_update(self, agent: Agent, metrics: Metrics) -> None:
        before, self.seen = self.seen, self.clock(agent)
        if self.seen // self.eval_freq > before // self.eval_freq:
            record = self.evaluate(agent)
            metrics["eval/success_rate"] = record["success_rate"]
            metrics["eval/mean_reward"] = record["mean_return"]
            metrics["eval/mean_ep_length"] = record["mean_length"]


class CheckpointCallback(Callback):
    """Save the agent every `save_freq` updates by calling `save(agent)`, and at the end."""

    def __init__(self, save: Callable[[Agent], Any], *, save_freq: int) -> None:
        self.save, self.save_freq = save, save_freq

    def on_update(self, agent: Agent, metrics: Metrics) -> None:
        if agent.n_updates % self.save_freq == 0:
            self.save(agent)

    def on_training_end(self, agent: Agent) -> None:
        if agent.n_updates % self.save_freq:
            self.save(agent)


class StopTrainingOnSuccess(Callback):
    """End learning once an evaluation reaches `success_threshold`."""

    def __init__(self, evaluation: EvalCallback, success_threshold: float) -> None:
        self.evaluation, self.success_threshold = evaluation, success_threshold

    def on_update(self, agent: Agent, metrics: Metrics) -> bool:
        return self.evaluation.last.get("success_rate", 0.0) < self.success_threshold
