"""Made-up experience, and the gradient of one minibatch that holds all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.learners import LocalLearner
from sppo.agents.losses import aggregation_weights
from sppo.agents.networks import CategoricalPolicy, GaussianPolicy
from sppo.agents.update import PolicyLoss, minimise

N_INPUTS, HORIZON = 3, 9
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_horizon")


def made_up(
    lengths: list[int],
    *,
    aggregation: str = "token_mean",
    seed: int = 0,
    discrete: bool = True,
    padding: int = 0,
    masked: bool = False,
) -> Experience:
    """Experience of episodes of these lengths, with random entries; garbage where nothing is valid.

    Masked, only every other step of a row carries loss, from the first or the second on by turns.
    """
    rng = np.random.default_rng(seed)
    b, t = len(lengths), max(lengths) + padding

    def numbers(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).float()

    valid = torch.arange(t) < torch.tensor(lengths)[:, None]
    every_other = (torch.arange(b)[:, None] + torch.arange(t)) % 2 == 0
    carries = valid & every_other if masked else valid
    weight, share = aggregation_weights(carries, aggregation, HORIZON)  # type: ignore[arg-type]
    never = torch.zeros(b, dtype=torch.bool)
    traj = Trajectories(
        inputs=numbers(b, t + 1, N_INPUTS),
        actions=torch.from_numpy(rng.integers(0, 2, (b, t))) if discrete else numbers(b, t, 2),
        logprobs=numbers(b, t) * 0.3 - (0.7 if discrete else 2.5),
        valid=valid,
        rewards=numbers(b, t),
        terminated=~never,
        truncated=never,
        group=torch.arange(b),
        start_key=torch.full((b,), -1),
        success=never,
    )
    return Experience(
        traj=traj,
        weight=weight,
        share=share,
        advantages=numbers(b, t),
        value_targets=torch.from_numpy(rng.random((b, t))),
        ref_logprobs=numbers(b, t) * 0.3 - (0.7 if discrete else 2.5),
    )


class OverRows:
    """A loss of a memoryless policy, cut over rows all the same."""

    def __init__(self, loss: Any, block: int = 1) -> None:
        self.loss, self.memoryless, self.block = loss, False, block

    def __call__(self, batch: Experience) -> Any:
        return self.loss(batch)


def network(discrete: bool = True) -> Any:
    kind = CategoricalPolicy if discrete else GaussianPolicy
    policy = kind(N_INPUTS, 2, net_arch=(8,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.weights[-1].mul_(100)  # the usual small initial outputs would make all actions alike
    return policy


def learner_of(module: nn.Module, **settings: float) -> LocalLearner:
    return LocalLearner(module, **{"learning_rate": 0.0, "max_grad_norm": 1e9, "adam_eps": 1e-5} | settings)


def gradient(
    make_loss: Callable[[Any], Any], data: Experience, discrete: bool = True, module: Any = None, **settings: Any
) -> Tensor:
    """The gradient of one minibatch that holds everything."""
    module = module or network(discrete)
    learner = learner_of(module)
    minimise(
        learner,
        make_loss(module),
        data,
        **{"n_epochs": 1, "n_minibatches": 1, "generator": np.random.default_rng(0)} | settings,
    )
    assert learner.grad.abs().max() > 1e-4
    return learner.grad.clone()


def surrogate(policy: Any) -> PolicyLoss:
    return PolicyLoss(policy, 0.2, 0.2, ent_coef=0.01)


def penalised(policy: Any) -> PolicyLoss:
    return PolicyLoss(policy, 0.2, 0.3, ent_coef=0.01, kl_coef=0.5)


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
