"""The policy gradient of an algorithm at a fixed policy, against the true one: signal, noise and bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppo.agents import Agent, ControlSampler, Experience
from sppo.agents.learners import LocalLearner
from sppo.agents.update import minimise
from sppo.experiments.stats import Floats, Interval, Rows, bootstrap_rows

NEVER = 2**62
RESAMPLES = 2000


def fit(agent: Agent, episodes: int, callback: Any = None) -> None:
    """Show the agent's critic so many episodes in all, as learning does, of a policy that stays as it is."""
    agent.config = replace(agent.config, critic_warmup=NEVER)
    agent.learn(total_episodes=episodes, callback=callback)


def sample_anew(agent: Agent, seed: int) -> None:
    """Give the agent a sampler of the same policy and task whose starts and actions are drawn from this seed."""
    old = agent.sampler
    if isinstance(old, ControlSampler):
        agent.sampler = ControlSampler(old.env, policy=agent.policy, seed=seed)
    else:
        agent.sampler = old.with_prompts(old.prompts, seed=seed)


def gradient(agent: Agent, experience: Experience) -> tuple[Tensor, float]:
    """The gradient (P,) of the agent's own loss over a whole batch before any step, and its unit.

    Minus the gradient times the unit, the steps of an episode as the loss weighs them, is in units of the gradient of
    the success rate: without clipping a policy gradient sums over the steps of an episode, and losses take means.

        unit = (sum of share) (number of steps) / ((sum of weight) (episodes)), the mean length for token_mean
    """
    learner = LocalLearner(agent.policy, learning_rate=0.0, max_grad_norm=float("inf"), adam_eps=1e-8)
    loss, data = agent.policy_loss(agent.policy), agent.policy_experience(experience)
    generator = np.random.default_rng(0)
    minimise(learner, loss, data, n_epochs=1, n_minibatches=1, generator=generator)
    steps, weight = float(experience.traj.valid.sum()), float(experience.weight.sum())
    unit = float(experience.share.sum()) * steps / (max(weight, 1e-12) * len(experience))
    return learner.grad.clone(), unit


def ascents(agent: Agent, batches: int) -> Tensor:
    """(M, P) directions in which the agent would take the policy, each from a batch of its own, in units of the
    gradient of the success rate."""
    rows, units = [], []
    agent.freeze_reference()
    for _ in range(batches):
        row, unit = gradient(agent, agent.collect(agent.sampler, agent.starts()))
        rows.append(-row.double())
        units.append(unit)
    return torch.stack(rows) * float(np.mean(units))


class Moments(NamedTuple):
    """What is kept of M independent gradients g_m, in units of the true one, g*.

    along   g_m . g* / |g*|^2                          mean 1 without bias
    square  |g_m|^2 / |g*|^2
    mean    (2 g_m . h_m - u) / |g*|^2, h_m the mean of the others, u the mean of g_m . h_m: its mean estimates |E g|^2
            without bias, and that it varies with g_m twice over is what a resampled mean has to reflect
    """

    along: Floats
    square: Floats
    mean: Floats


def moments(gradients: Tensor, truth: Tensor, squared_norm: float) -> Moments:
    """Of gradients (M, P) against the truth (P,), whose squared norm is given where `truth` is itself an estimate."""
    squares = gradients.square().sum(1)
    cross = (gradients @ gradients.sum(0) - squares) / (len(gradients) - 1)
    parts = (gradients @ truth, squares, 2 * cross - cross.mean())
    return Moments(*((part / squared_norm).numpy() for part in parts))


def estimated(gradients: Tensor) -> tuple[Tensor, float]:
    """The mean (P,) of unbiased gradients (M, P), and an estimate without bias of the true one's squared norm."""
    mean, m = gradients.mean(0), len(gradients)
    noise = float((gradients - mean).square().sum()) / (m - 1)
    return mean, float(mean @ mean) - noise / m


# Figures over K policies with M batches each: `batches` holds one Moments per policy.


def _interval(
    batches: Sequence[Sequence[Floats]], figure: Callable[[Floats], Floats], back: Callable[[Any], Any] = lambda x: x
) -> Interval:
    """The mean over policies of a figure of each one's moments (..., M, C), resampling its batches."""
    tables = [np.stack(each, -1) for each in batches]  # K of (M, C)

    def mean(rows: Rows) -> Floats:
        return np.mean([figure(table[rows[..., k]]) for k, table in enumerate(tables)], axis=0)

    found = bootstrap_rows((len(tables[0]), len(tables)), mean, 0, resamples=RESAMPLES)
    return Interval(*map(float, map(back, found)))


def _logarithm(rows: Floats) -> Floats:
    """log10 of the signal-to-noise ratio of moments (..., M, 3)."""
    along, square, _ = np.moveaxis(rows, -1, 0)
    m = along.shape[-1]
    signal = along.mean(-1) ** 2 - along.var(-1, ddof=1) / m  # of the mean's square, what the noise adds
    signal = np.maximum(signal, 1e-6)
    return np.log10(signal / np.maximum(square.mean(-1) - signal, 1e-12))


def signal_to_noise(batches: Sequence[Moments]) -> Interval:
    """How much of a gradient is the true one: (E g.u)^2 / (E|g|^2 - (E g.u)^2), u = g*/|g*|; the geometric mean.

    Whatever does not point along g* is noise, a bias across it included; without bias it is |E g|^2 / tr Cov g.
    Scale-free. Scaled at best, g is off by E|c g - g*|^2 / |g*|^2 = 1 / (1 + SNR), and, as far as there is no bias,
    SNR grows in proportion to the batch.
    """
    return _interval(batches, _logarithm, lambda x: 10.0**x)


def ratio(a: Sequence[Moments], b: Sequence[Moments]) -> Interval:
    """The signal-to-noise ratio of a over that of b, on the same batches: the geometric mean over policies."""
    both = [(*x, *y) for x, y in zip(a, b, strict=True)]
    return _interval(both, lambda rows: _logarithm(rows[..., :3]) - _logarithm(rows[..., 3:]), lambda x: 10.0**x)


def cosine(batches: Sequence[Moments]) -> Interval:
    """Between the mean gradient and the true one, (E g.u) / |E g|: 1 where scale is all the bias there is."""
    return _interval(batches, lambda rows: rows[..., 0].mean(-1) / np.sqrt(np.maximum(rows[..., 2].mean(-1), 1e-12)))


def bias(batches: Sequence[Moments]) -> Interval:
    """|E g - g*|^2 / |g*|^2, without bias itself, so that it may come out below 0."""
    return _interval(batches, lambda rows: rows[..., 2].mean(-1) - 2 * rows[..., 0].mean(-1) + 1)


def variance(batches: Sequence[Moments]) -> Interval:
    """tr Cov g / |g*|^2, without bias itself: with the bias it makes E|g - g*|^2 / |g*|^2, where none is, 1 / SNR."""
    return _interval(batches, lambda rows: rows[..., 1].mean(-1) - rows[..., 2].mean(-1))
