"""The one update: epochs x minibatches x microbatches of a weighted loss, for every algorithm, network and domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sppo.agents.batch import Experience
from sppo.agents.losses import KLEstimator, approximate_kl, clipped_surrogate, kl_estimate
from sppo.agents.minibatches import Parts, microbatches, minibatches, per_pass, some_silent
from sppo.agents.protocols import Critic, Learner, Policy

Stats = dict[str, Tensor]
Stop = Callable[[Mapping[str, float]], bool]


class Loss(Protocol):
    """A per-step loss over experience."""

    @property
    def memoryless(self) -> bool:
        """True where each step can be evaluated alone, so that minibatches are cut over steps; else over rows."""

    @property
    def block(self) -> int:
        """Rows that must stay together, as neighbours, in one minibatch: 1, or 2 for preference pairs."""

    def __call__(self, batch: Experience) -> tuple[Tensor, Stats]:
        """The loss of each step (B, T), and detached (B, T) statistics to be averaged with the same weights."""


@dataclass(frozen=True)
class PolicyLoss:
    """An objective, the clipped surrogate unless a subclass has another, with what may be added to every objective.

    L_t = objective_t - ent_coef * entropy_t + kl_coef * KL_t,  KL_t estimated against the reference.
    """

    policy: Policy
    clip_low: float = 0.2
    clip_high: float = 0.2
    ent_coef: float = 0.0
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    block: int = 1

    @property
    def memoryless(self) -> bool:
        return self.policy.memoryless

    def objective(self, batch: Experience, logprobs: Tensor) -> tuple[Tensor, Stats]:
        """What the algorithm minimises, each step (B, T), and statistics; where A is 0, so must its gradient be."""
        assert batch.advantages is not None
        old_logprobs, low, high = batch.traj.logprobs, self.clip_low, self.clip_high
        surrogate = clipped_surrogate(logprobs, old_logprobs, batch.advantages, clip_low=low, clip_high=high)
        with torch.no_grad():
            ratio = torch.exp(logprobs - old_logprobs)
            clipped = ((ratio < 1 - low) | (ratio > 1 + high)).float()
        return surrogate, {"train/clip_fraction": clipped}

    def __call__(self, batch: Experience) -> tuple[Tensor, Stats]:
        logprobs, entropy = self.policy.evaluate(batch.traj, entropy=self.ent_coef != 0)
        loss, stats = self.objective(batch, logprobs)
        seen = logprobs.detach()
        stats |= {
            "train/policy_gradient_loss": loss.detach(),
            "train/approx_kl": approximate_kl(seen, batch.traj.logprobs),
            # An estimate of the negative entropy from the actions taken, exact on average before the first step.
            "train/entropy_loss": seen if entropy is None else -entropy.detach(),
        }
        if entropy is not None:
            loss = loss - self.ent_coef * entropy
        if batch.ref_logprobs is not None:
            kl = kl_estimate(logprobs, batch.ref_logprobs, self.kl_estimator)
            stats["train/reference_kl"] = kl.detach()
            if self.kl_coef:
                loss = loss + self.kl_coef * kl
        return loss, stats


@dataclass(frozen=True)
class LogLikelihoodLoss:
    """Negative log-likelihood of the actions taken: cloning, supervised fine-tuning, rejection fine-tuning."""

    policy: Policy
    block: int = 1

    @property
    def memoryless(self) -> bool:
        return self.policy.memoryless

    def __call__(self, batch: Experience) -> tuple[Tensor, Stats]:
        logprobs, _ = self.policy.evaluate(batch.traj)
        return -logprobs, {"train/loss": -logprobs.detach()}


@dataclass(frozen=True)
class ValueLoss:
    """The critic's own loss against the value targets."""

    critic: Critic
    block: int = 1

    @property
    def memoryless(self) -> bool:
        return self.critic.memoryless

    def __call__(self, batch: Experience) -> tuple[Tensor, Stats]:
        assert batch.value_targets is not None
        loss = self.critic.loss(batch.traj, batch.value_targets)
        return loss, {"train/value_loss": loss.detach()}


@dataclass(frozen=True)
class Beside:
    """A second loss of the same networks, on data of its own, of which each pass is cut into as many minibatches as
    that of the first loss: `coef` times it is added, minibatch by minibatch."""

    loss: Loss
    data: Sequence[Experience]
    coef: float


def minimise(
    learner: Learner,
    loss: Loss,
    data: Experience,
    *,
    n_epochs: int,
    n_minibatches: int,
    generator: np.random.Generator,
    batch_size: int | None = None,
    microbatch_size: int | None = None,
    microbatch_steps: int | None = None,
    stop: Stop | None = None,
    skip_silent: bool = False,
) -> dict[str, float]:
    """Minimise sum(weight * loss) / sum(share) over shuffled minibatches.

    The divisor is taken once per minibatch over all rows, which all ranks hold and share out, so that neither
    microbatch size nor padding, row order or rank count changes the gradient.

    Args:
        learner: owns gradients and optimiser of the module inside `loss`.
        loss: per-step loss; decides whether minibatches are cut over steps or over rows.
        data: the experience of one update.
        n_epochs: passes over the data.
        n_minibatches: optimiser steps per pass.
        generator: draws the order of each pass.
        batch_size: steps (rows, where the loss is over rows) per minibatch; overrides n_minibatches.
        microbatch_size: rows per forward and backward pass, of all ranks together; None for the whole minibatch.
        microbatch_steps: or as many rows, ordered by length, as hold so many steps when padded, tokens of prompts
            included; at least one block.
        stop: given a minibatch's averaged statistics, True ends the update before that minibatch's optimiser step.
        skip_silent: do not send rows whose advantages are all 0 through the network. They stay in the divisor, so that
            the gradient is the same, and out of the statistics. For losses whose gradient is 0 where the advantage is.

    Returns:
        Statistics averaged over all minibatches of all passes, weighted as the loss is, with `train/grad_norm` and
        `train/n_updates` (optimiser steps taken).
    """
    [result] = minimise_all(
        learner,
        loss,
        [data],
        n_epochs=n_epochs,
        n_minibatches=n_minibatches,
        generators=[generator],
        batch_size=batch_size,
        microbatch_size=microbatch_size,
        microbatch_steps=microbatch_steps,
        stop=stop,
        skip_silent=skip_silent,
    )
    return result


def minimise_all(
    learner: Learner,
    loss: Loss,
    data: Sequence[Experience],
    *,
    n_epochs: int,
    n_minibatches: int,
    generators: Sequence[np.random.Generator],
    batch_size: int | None = None,
    microbatch_size: int | None = None,
    microbatch_steps: int | None = None,
    stop: Stop | None = None,
    skip_silent: bool = False,
    beside: Beside | None = None,
) -> list[dict[str, float]]:
    """`minimise` for S networks side by side, each on its own data, in its own order, with its own statistics.

    Rows of one network never weigh in another's loss, so each learns what it would learn alone.
    """

    counts = [per_pass(d, loss, n_minibatches, batch_size) for d in data]

    def orders(loss: Loss, data: Sequence[Experience]) -> list[Iterator[Experience]]:
        each = zip(data, counts, generators, strict=True)
        return [minibatches(d, loss, n_epochs, n, generator) for d, n, generator in each]

    orders_of = orders(loss, data)
    orders_beside = [] if beside is None else orders(beside.loss, beside.data)
    averages = [Averages() for _ in data]
    skip_silent = skip_silent and any(some_silent(d) for d in data)

    def backward(loss: Loss, parts: Parts, rows: Parts, coef: float = 1.0) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Gradients of the networks' `rows` of minibatches `parts`: (S,) their divisors, (S,) the weight of the rows,
        means of statistics."""
        n, zero = len(rows), torch.zeros((), device=data[0].share.device)
        divisor = torch.stack([zero if part is None else part.share.sum() for part in parts])
        evaluated = torch.stack([zero if part is None else part.weight.sum() for part in rows])
        totals: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        for micro in microbatches(rows, microbatch_size, microbatch_steps, loss.block):
            micro = learner.own_rows(micro, loss.block)
            per_step, stats = loss(micro)
            of_loss, of_stats = (  # statistics are means, whatever the loss is
                micro.weight.reshape(n, -1) / total.clamp(min=1e-12)[:, None] for total in (divisor, evaluated)
            )
            learner.backward(coef * (per_step.reshape(n, -1) * of_loss).sum())
            for name, value in stats.items():
                totals[name] = totals[name] + (value.reshape(n, -1) * of_stats).sum(1)
        return divisor, evaluated, {name: learner.total(value).tolist() for name, value in totals.items()}

    while True:
        # A network that has stopped draws no further minibatches, as when it learns alone.
        parts = [None if a.early_stop else next(order, None) for a, order in zip(averages, orders_of, strict=True)]
        if all(part is None for part in parts):
            return [average.result() for average in averages]
        rows = parts
        if skip_silent:
            rows = [None if part is None else part.with_signal(loss.block) for part in parts]
        learner.zero_grad()
        divisor, evaluated, columns = backward(loss, parts, rows)
        weighs, seen = (divisor > 0).tolist(), (evaluated > 0).tolist()
        means = [{name: column[i] for name, column in columns.items()} if seen[i] else {} for i in range(len(data))]
        if beside is not None:
            drawn = zip(parts, orders_beside, strict=True)
            others = [None if part is None else next(order, None) for part, order in drawn]
            besides, _, columns = backward(beside.loss, others, others, beside.coef)
            for i, more in enumerate((besides > 0).tolist()):
                weighs[i] |= more
                means[i] |= {name: column[i] for name, column in columns.items()} if more else {}
        for i, average in enumerate(averages):
            average.early_stop |= parts[i] is not None and seen[i] and stop is not None and stop(means[i])
        learns = [
            part is not None and w and not a.early_stop for part, w, a in zip(parts, weighs, averages, strict=True)
        ]
        norms = learner.step(learns)
        for i, average in enumerate(averages):
            if learns[i]:
                average.add(means[i], norms[i])


class Averages:
    """Means of statistics over minibatches; one in which no row was evaluated has none but its gradient, which is 0."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.count, self.early_stop = 0, False

    def add(self, means: Mapping[str, float], grad_norm: float) -> None:
        self.count += 1
        for name, mean in {**means, "train/grad_norm": grad_norm}.items():
            self.sums[name] += mean
            self.counts[name] += 1

    def result(self) -> dict[str, float]:
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        return means | {"train/n_updates": float(self.count), "train/early_stop": float(self.early_stop)}
