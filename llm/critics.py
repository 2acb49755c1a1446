"""Transformers with a scalar head as critics: of every prefix or of the prompt alone, each a model of its own or the
policy's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sppo.agents.batch import Choices
from sppo.agents.critics import Shared
from sppo.agents.losses import (
    ValueLossName,
    from_units_of_return,
    in_units_of_return,
    known_value_loss,
    value_loss,
)
from sppo.llm.passes import a_pass, device_of
from sppo.llm.policy import hidden_states, sequences


def new_head(base: Any) -> nn.Linear:
    """A head that predicts 0, on the device of its body."""
    head = nn.Linear(base.config.hidden_size, 1, device=device_of(base))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class _OfText:
    """A body that reads tokens, and a head behind its last layer."""

    memoryless = False
    base: Any
    head: Any
    value_loss: ValueLossName

    @property
    def device(self) -> torch.device:
        return device_of(self.base)

    def reads(self, traj: Choices) -> Tensor:
        """(B,) tokens of each row in one pass."""
        return traj.sizes

    def start_at(self, value: float) -> None:
        """Predict this return everywhere until trained; far off it, early advantages would all have one sign."""
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.fill_(from_units_of_return(value, self.value_loss))

    def _score(self, hidden: Tensor) -> Tensor:
        score: Tensor = self.head(hidden).squeeze(-1).float()
        return score


class _OfStart(_OfText):
    def reads(self, traj: Choices) -> Tensor:
        lengths: Tensor = traj.inputs.lengths
        return lengths

    @torch.no_grad()
    @a_pass
    def value(self, traj: Choices) -> Tensor:
        """(B,), in units of return."""
        return in_units_of_return(self._read(traj), self.value_loss)

    @a_pass
    def loss(self, traj: Choices, targets: Tensor) -> Tensor:
        """(B, 1) against targets (B, 1)."""
        return value_loss(self._read(traj)[:, None], targets, self.value_loss, type(self).__name__)

    def _read(self, traj: Choices) -> Tensor:
        lengths = traj.inputs.lengths
        ids = traj.inputs.ids[:, : int(lengths.max())]
        states, shared = hidden_states(self.base, ids, lengths)
        return self._score(states[torch.arange(len(ids), device=ids.device), lengths - 1 - shared])


class _OfSteps(_OfText):
    @torch.no_grad()
    @a_pass
    def values(self, traj: Choices) -> Tensor:
        """(B, T + 1), in units of return."""
        return in_units_of_return(self._read(traj, traj.valid.shape[1] + 1), self.value_loss)

    @a_pass
    def loss(self, traj: Choices, targets: Tensor) -> Tensor:
        """(B, T) against targets (B, T)."""
        return value_loss(self._read(traj, traj.valid.shape[1]), targets, self.value_loss, type(self).__name__)

    def _read(self, traj: Choices, n: int) -> Tensor:
        lengths = traj.inputs.lengths
        states, shared = hidden_states(self.base, sequences(traj), lengths)
        scores = self._score(states)  # (B, L - shared)
        at = lengths[:, None] - 1 - shared + torch.arange(n, device=scores.device)
        return scores.gather(1, at.clamp(max=scores.shape[1] - 1))


class _Own(nn.Module):
    def __init__(self, base: Any, *, value_loss: ValueLossName) -> None:
        super().__init__()
        self.base, self.value_loss = base, known_value_loss(value_loss)
        self.head = new_head(base)


class _Shared(Shared):
    """Its body and its head are the policy's."""

    @property
    def base(self) -> Any:
        return self.policy.base

    @property
    def head(self) -> Any:
        return self.policy.value_head


class TextStartCritic(_OfStart, _Own):
    """V(s_0): a transformer that reads the prompt alone, with a scalar head at its last token."""


class TextStepCritic(_OfSteps, _Own):
    """V(s_t) of every prefix."""


class SharedTextStartCritic(_Shared, _OfStart):
    """V(s_0) behind the policy's last layer."""


class SharedTextStepCritic(_Shared, _OfSteps):
    """V(s_t) behind the policy's last layer."""
