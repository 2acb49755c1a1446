"""SparseChain under any policy, worked out: values of all states, and the gradient of the success rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sppo.agents.batch import Choices
from sppo.agents.networks import CategoricalPolicy
from sppo.envs.chain import SparseChain

ROWS = 2**17
"""States taken through the network at a time."""


def observations(chain: SparseChain) -> Tensor:
    """(H, X, D) what the policy sees at every time and position, reachable or not."""
    width = chain.start_spread + chain.horizon + 1
    t, x = np.indices((chain.horizon, width)).reshape(2, -1)
    seen = chain.restore({"seed": np.zeros(len(t), np.int64), "t": t, "state": x[:, None].astype(np.float64)})
    return torch.from_numpy(seen).reshape(chain.horizon, width, -1)


def values(chain: SparseChain, right: Tensor) -> Tensor:
    """Probability of success from every state, by dynamic programming; differentiable in the policy.

    V(x, H) = [x >= goal],  V(x, t) = q V(x + 1, t + 1) + (1 - q) V(x, t + 1),  q = p (1 - slip) + (1 - p) slip

    Args:
        chain: the task.
        right: (H, X) p, the probability of action 1 at each time and position.
    Returns:
        (H + 1, X); beyond the last position, which no episode leaves, the goal has long been reached.
    """
    steps, width = right.shape
    q = right * (1 - chain.slip) + (1 - right) * chain.slip
    value = (torch.arange(width) >= chain.goal).to(right)
    rows = [value]
    for t in reversed(range(steps)):
        value = q[t] * torch.cat([value[1:], torch.ones_like(value[:1])]) + (1 - q[t]) * value
        rows.append(value)
    return torch.stack(rows[::-1])


def solve(chain: SparseChain, policy: CategoricalPolicy) -> tuple[Tensor, Tensor]:
    """Values (H + 1, X) in float64, and the gradient (P,) of the success rate by the policy's weights.

    The chain rule in two steps, so that no graph holds all states: by the action probabilities, then by the weights.
    """
    seen = observations(chain)

    def right(rows: Tensor) -> Tensor:
        return policy.forward(rows).double().softmax(0)[1]

    flat = seen.flatten(0, 1)
    with torch.no_grad():
        p = torch.cat([right(rows) for rows in flat.split(ROWS)]).reshape(seen.shape[:2])
    p.requires_grad_()
    value = values(chain, p)
    value[0, : chain.start_spread + 1].mean().backward()
    assert p.grad is not None
    weights = [w for w in policy.parameters() if w.requires_grad]
    total = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    for rows, by_p in zip(flat.split(ROWS), p.grad.flatten().split(ROWS), strict=True):
        for sum_, part in zip(total, torch.autograd.grad(right(rows), weights, by_p), strict=True):
            sum_ += part
    return value.detach(), torch.cat([w.flatten() for w in total])


class ExactCritic:
    """V(s_t) and V(s_0) as they are, of a policy that stays as it is: a critic with nothing left to learn."""

    def __init__(self, chain: SparseChain, value: Tensor) -> None:
        self.goal, self.table = chain.goal, value

    def values(self, traj: Choices) -> Tensor:
        """(B, T + 1)."""
        positions = (traj.inputs[..., 0] * self.goal).round().long()
        return self.table[torch.arange(positions.shape[1]), positions].to(traj.logprobs)

    def value(self, traj: Choices) -> Tensor:
        """(B,)."""
        return self.values(traj)[:, 0]


class ConstantCritic:
    """The same for every state."""

    def __init__(self, value: float) -> None:
        self.constant = value

    def values(self, traj: Choices) -> Any:
        """(B, T + 1)."""
        b, t = traj.valid.shape
        return torch.full((b, t + 1), self.constant)

    def value(self, traj: Choices) -> Tensor:
        """(B,)."""
        return torch.full((len(traj),), self.constant)
