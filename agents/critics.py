"""Critics for control: of every state or of the start alone, each a network of its own or behind the policy's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sppo.agents.batch import Choices
from sppo.agents.losses import ValueLossName, in_units_of_return, known_value_loss, value_loss
from sppo.agents.networks import MLP


class _Critic(ABC):
    """The unit of its head, a logit for "bce" and a return for "squared_error", stays inside."""

    value_loss: ValueLossName

    @abstractmethod
    def head(self, observations: Tensor) -> Tensor:
        """Observations (..., D) to (...)."""


class _OfSteps(_Critic):
    memoryless = True

    def values(self, traj: Choices) -> Tensor:
        """(B, T + 1), in units of return."""
        with torch.no_grad():
            return in_units_of_return(self.head(traj.inputs), self.value_loss)

    def loss(self, traj: Choices, targets: Tensor) -> Tensor:
        """(B, T) against targets (B, T)."""
        head = self.head(traj.inputs[:, : traj.valid.shape[1]])
        return value_loss(head, targets, self.value_loss, type(self).__name__)


class _OfStart(_Critic):
    memoryless = False

    def value(self, traj: Choices) -> Tensor:
        """(B,), in units of return."""
        with torch.no_grad():
            return in_units_of_return(self.head(traj.inputs[:, 0]), self.value_loss)

    def loss(self, traj: Choices, targets: Tensor) -> Tensor:
        """(B, 1) against targets (B, 1)."""
        return value_loss(self.head(traj.inputs[:, :1]), targets, self.value_loss, type(self).__name__)


class _Own(MLP):
    def __init__(self, n_inputs: int, *, value_loss: ValueLossName, **kwargs: Any) -> None:
        super().__init__(n_inputs, 1, **kwargs)
        self.value_loss = known_value_loss(value_loss)

    def head(self, observations: Tensor) -> Tensor:
        return self.forward(observations).squeeze(0)


class Shared:
    """Its weights are the policy's, which learns them and is saved with them."""

    def __init__(self, policy: Any, *, value_loss: ValueLossName) -> None:
        self.policy, self.value_loss = policy, known_value_loss(value_loss)

    def of(self, policy: Any) -> Shared:
        """The same, of another policy with such a head: of several stacked."""
        return type(self)(policy, value_loss=self.value_loss)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Behind(Shared):
    def head(self, observations: Tensor) -> Tensor:
        values: Tensor = self.policy.value_head(observations)
        return values


class StepCritic(_Own, _OfSteps):
    """V(s_t) of every state."""


class StartCritic(_Own, _OfStart):
    """V(s_0): reads the start state alone."""


class SharedStepCritic(_Behind, _OfSteps):
    """V(s_t) behind the policy's hidden layers."""


class SharedStartCritic(_Behind, _OfStart):
    """V(s_0) behind the policy's hidden layers."""
