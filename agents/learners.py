"""Who owns gradients and optimisers: one network on one process, or several side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sppo.agents.batch import Experience

# Gradients are rows of one tensor so that each agent's stay its own; autograd would rather have them apart.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


class _OneProcess:
    """Gradients kept in one tensor, and nobody else to sum with."""

    grad: Tensor

    def zero_grad(self) -> None:
        self.grad.zero_()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def total(self, x: Tensor) -> Tensor:
        return x

    def own_rows(self, batch: Experience, block: int) -> Experience:
        return batch


def adam(tensors: Sequence[Tensor], learning_rate: float, eps: float, weight_decay: float) -> torch.optim.AdamW:
    """Adam; in each step all weights first shrink by learning_rate x weight_decay of themselves."""
    return torch.optim.AdamW(list(tensors), lr=learning_rate, eps=eps, weight_decay=weight_decay, fused=True)


class LocalLearner(_OneProcess):
    """A module and its Adam on one process.

    Weights that learn and their gradients are moved into one flat tensor each, of which the module's are views:
    clipping and Adam then cost a handful of calls, which for small networks is a good part of the update. Frozen
    weights stay where they are, and have neither gradients nor moments.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        learning_rate: float,
        max_grad_norm: float,
        adam_eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        self.module, self.max_grad_norm = module, max_grad_norm
        self.flat = torch.cat([p.detach().flatten() for p in trained(module)])
        self.grad = torch.zeros_like(self.flat)
        self.bind(self.flat, self.grad)
        self.optimizer = adam([self.flat], learning_rate, adam_eps, weight_decay)

    def bind(self, flat: Tensor, grad: Tensor) -> None:
        """Keep weights and gradients in these tensors (P,) from now on."""
        self.flat.data, self.grad = flat, grad
        self.flat.grad = grad
        bind_views(self.module, flat[None], grad[None])

    def step(self, learns: Sequence[bool] = (True,)) -> list[float]:
        norm = float(self.grad.norm())
        check_gradient(self.module, norm)
        if learns[0]:
            if norm > self.max_grad_norm:
                self.grad.mul_(self.max_grad_norm / norm)
            self.optimizer.step()
        return [norm]


def check_gradient(module: nn.Module, norm: float) -> None:
    """Raises: FloatingPointError if the gradient of the module is not finite."""
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient of {type(module).__name__} is not finite: lower the learning rate, or look for "
            "rewards or observations that are huge"
        )


class StackLearner(_OneProcess):
    """The learners of S networks as one: their weights and gradients are rows of (S, P) tensors.

    Each learner keeps its own Adam state, so that it can be saved, or go on alone, at any time.
    """

    def __init__(self, learners: Sequence[Any], stacked: nn.Module) -> None:
        flat = torch.stack([learner.flat.data for learner in learners])
        self.learners, self.grad = list(learners), torch.zeros_like(flat)
        for i, learner in enumerate(learners):
            assert isinstance(learner, LocalLearner)
            learner.bind(flat[i], self.grad[i])
        bind_views(stacked, flat, self.grad)
        first = learners[0].optimizer
        settings = (first.defaults[name] for name in ("lr", "eps", "weight_decay"))
        self.optimizer = adam([learner.flat for learner in learners], *settings)
        for learner in learners:
            self.optimizer.state[learner.flat] = learner.optimizer.state[learner.flat]

    def step(self, learns: Sequence[bool]) -> list[float]:
        """Clip each network's gradient and step those that learn; gradient norms before clipping."""
        norms = torch.linalg.vector_norm(self.grad, dim=1)
        told: list[float] = norms.tolist()
        for learner, norm, own, active in zip(self.learners, told, self.grad, learns, strict=True):
            check_gradient(learner.module, norm)
            learner.flat.grad = own if active else None
        self.grad *= (self.learners[0].max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1.0)[:, None]
        self.optimizer.step()
        for learner, own in zip(self.learners, self.grad, strict=True):
            learner.flat.grad = own  # so that it can go on alone
        return told


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [p for p in module.parameters() if p.requires_grad]


def bind_views(module: nn.Module, flat: Tensor, grad: Tensor) -> None:
    """Make a module's weights that learn, and their gradients, views of (S, P) tensors, in the order of `trained`."""
    first = 0
    for p in trained(module):
        here = slice(first, first + p.numel() // len(flat))
        p.data = flat[:, here].view(p.shape)
        p.grad = grad[:, here].view(p.shape)
        first = here.stop
