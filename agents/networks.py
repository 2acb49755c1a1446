"""Small networks for control: several side by side, in and outside autograd; categorical and Gaussian policies."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray
from torch import Tensor, nn

from sppo.agents.batch import Choices

Activation = Literal["relu", "tanh"]
Array = NDArray[Any]
_M = TypeVar("_M", bound="MLP")


class MLP(nn.Module):
    """S independent networks side by side (S = 1 unless stacked) on standardised observations.

    Weights are (S, out, in), orthogonal as in stable-baselines3. Rows of a batch belong to the networks in S equal,
    consecutive shares. Observations are standardised with a fixed mean and standard deviation (0 and 1 unless set),
    kept with the weights.
    """

    obs_mean: Tensor  # (S, n_inputs)
    obs_std: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        net_arch: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("relu", "tanh"):
            raise ValueError(f"activation must be 'relu' or 'tanh', got {activation!r}")
        self.n_inputs, self.n_outputs = n_inputs, n_outputs
        self.net_arch, self.activation = tuple(net_arch), activation
        self.register_buffer("obs_mean", torch.zeros(1, n_inputs))
        self.register_buffer("obs_std", torch.ones(1, n_inputs))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        sizes = [n_inputs, *net_arch, n_outputs]
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
            scale = gain if i == len(net_arch) else math.sqrt(2)
            weight = nn.init.orthogonal_(torch.empty(b, a), scale, generator=generator)
            self.weights.append(nn.Parameter(weight[None]))
            self.biases.append(nn.Parameter(torch.zeros(1, b, 1)))

    def standardise_as(self, other: MLP) -> None:
        """Take over another network's observation mean and standard deviation."""
        self.obs_mean.copy_(other.obs_mean)
        self.obs_std.copy_(other.obs_std)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (..., n_inputs) to outputs (n_outputs, ...), features first.

        Inside, activations are (S, features, steps): with thousands of steps and tens of features, the matrix products
        of the forward and backward pass are two to seven times faster than with (steps, features).
        """
        return self._output(observations, self.weights[-1], self.biases[-1])

    def _output(self, observations: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(k, ...) of an output layer (S, k, features), (S, k, 1) behind the hidden ones."""
        x = observations.reshape(len(self.obs_mean), -1, self.n_inputs)
        x = ((x - self.obs_mean[:, None]) / self.obs_std[:, None]).transpose(1, 2).contiguous()
        for hidden, its_bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.baddbmm(its_bias, hidden, x)
            x = x.relu_() if self.activation == "relu" else x.tanh_()
        return torch.baddbmm(bias, weight, x).transpose(0, 1).reshape(weight.shape[1], *observations.shape[:-1])

    def add_value_head(self, generator: torch.Generator | None = None) -> None:
        """A second output behind the hidden layers, of one number, for a critic that shares them."""
        weight = nn.init.orthogonal_(torch.empty(1, self.weights[-1].shape[2]), generator=generator)
        self.value_weight, self.value_bias = nn.Parameter(weight[None]), nn.Parameter(torch.zeros(1, 1, 1))

    def value_head(self, observations: Tensor) -> Tensor:
        """Observations (..., n_inputs) to (...)."""
        return self._output(observations, self.value_weight, self.value_bias).squeeze(0)

    def in_numpy(self) -> _NumpyMLP:
        """The same function outside autograd; up to date until the next optimiser step."""
        return _NumpyMLP(self)


def stack_networks(networks: Sequence[_M]) -> _M:
    """One module that runs several of the same shape side by side, on a copy of their weights."""
    stacked = copy.deepcopy(networks[0])
    named = [dict(network.named_parameters()) | dict(network.named_buffers()) for network in networks]
    for name, tensor in (*stacked.named_parameters(), *stacked.named_buffers()):
        tensor.data = torch.cat([tensors[name].detach() for tensors in named])
    return stacked


class _NumpyMLP:
    """One matrix product per layer, into reused buffers: several times faster than modules on small batches."""

    def __init__(self, mlp: MLP) -> None:
        self.weights = [w.detach().numpy().copy() for w in mlp.weights]
        self.biases = [b.detach().numpy().copy() for b in mlp.biases]
        mean, std = mlp.obs_mean.numpy(), mlp.obs_std.numpy()
        self.weights[0] /= std[:, None]
        self.biases[0] -= self.weights[0] @ mean[:, :, None]
        self.n_networks = len(mean)
        self.squash = np.tanh if mlp.activation == "tanh" else lambda x, out: np.maximum(x, 0, out=out)
        self.buffers: list[Array] = []

    def __call__(self, observations: Array) -> Array:
        """Observations (n, n_inputs) to outputs (n_outputs, n), overwritten by the next call."""
        n = len(observations) // self.n_networks
        if not self.buffers or self.buffers[0].shape[2] != n:
            self.buffers = [np.empty((self.n_networks, b.shape[1], n), np.float32) for b in self.biases]
        x = observations.reshape(self.n_networks, n, -1).transpose(0, 2, 1)
        last = len(self.buffers) - 1
        for i, out in enumerate(self.buffers):
            np.matmul(self.weights[i], x, out=out)
            out += self.biases[i]
            if i < last:
                self.squash(out, out=out)
            x = out
        return x[0] if self.n_networks == 1 else x.transpose(1, 0, 2).reshape(x.shape[1], -1)


class CategoricalPolicy(MLP):
    """Softmax over the actions of a Discrete space."""

    memoryless = True

    def __init__(self, n_inputs: int, n_actions: int, **kwargs: Any) -> None:
        super().__init__(n_inputs, n_actions, gain=0.01, **kwargs)

    def evaluate(self, traj: Choices, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        log_p = self.forward(traj.inputs[:, : traj.valid.shape[1]]).log_softmax(0)
        logprobs = log_p.gather(0, traj.actions.unsqueeze(0)).squeeze(0)
        return logprobs, -(log_p.exp() * log_p).sum(0) if entropy else None

    def actor(self) -> _CategoricalActor:
        return _CategoricalActor(self)


class _CategoricalActor:
    """Acts for n rows of which network `owner` (one number, or (n,)) each belongs to."""

    def __init__(self, policy: CategoricalPolicy) -> None:
        self.outputs = policy.in_numpy()
        self.dtype, self.shape = np.int64, ()

    def noise(self, generator: np.random.Generator, n: int) -> Array:
        return generator.random(n, np.float32)

    def act(self, logits: Array, noise: Array | None, owner: Any) -> tuple[Array, Array]:
        """Actions and log-probabilities from logits (n_actions, n); the mode without noise."""
        logits -= logits.max(0)
        p = np.exp(logits)
        if noise is None:
            actions = logits.argmax(0)
        else:
            # Inverse transform: the first action whose cumulative (unnormalised) probability exceeds u * total.
            cumulative = p.cumsum(0)
            actions = (cumulative[:-1] <= noise * cumulative[-1]).sum(0)
        return actions, logits[actions, np.arange(len(actions))] - np.log(p.sum(0))


class GaussianPolicy(MLP):
    """Normal with a state-independent standard deviation; actions are clipped to the Box by the environment's side."""

    memoryless = True

    def __init__(self, n_inputs: int, n_actions: int, *, log_std_init: float = 0.0, **kwargs: Any) -> None:
        super().__init__(n_inputs, n_actions, gain=0.01, **kwargs)
        self.log_std = nn.Parameter(torch.full((1, n_actions), log_std_init))

    def evaluate(self, traj: Choices, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        mean = self.forward(traj.inputs[:, : traj.valid.shape[1]]).movedim(0, -1)  # (B, T, A)
        n_networks, n_actions = self.log_std.shape
        z = (traj.actions - mean).reshape(n_networks, -1, n_actions) * torch.exp(-self.log_std)[:, None]
        log_normaliser = self.log_std.sum(1, keepdim=True) + 0.5 * math.log(2 * math.pi) * n_actions  # (S, 1)
        logprobs = (-0.5 * z.square().sum(-1) - log_normaliser).view(mean.shape[:-1])
        if not entropy:
            return logprobs, None
        return logprobs, (log_normaliser + 0.5 * n_actions).expand(n_networks, z.shape[1]).reshape(mean.shape[:-1])

    def actor(self) -> _GaussianActor:
        return _GaussianActor(self)


class _GaussianActor:
    def __init__(self, policy: GaussianPolicy) -> None:
        self.outputs = policy.in_numpy()
        self.log_std = policy.log_std.detach().numpy()
        self.dtype, self.shape = np.float32, self.log_std.shape[1:]

    def noise(self, generator: np.random.Generator, n: int) -> Array:
        return generator.standard_normal((n, *self.shape), np.float32)

    def act(self, mean: Array, noise: Array | None, owner: Any) -> tuple[Array, Array]:
        """Actions and log-probabilities from means (n_actions, n); the mode without noise."""
        z = np.zeros(mean.T.shape, np.float32) if noise is None else noise
        log_std = self.log_std[owner]
        normaliser = log_std.sum(-1) + np.float32(0.5 * math.log(2 * math.pi) * self.shape[0])
        return mean.T + np.exp(log_std) * z, -0.5 * np.square(z).sum(1) - normaliser


ControlPolicy = CategoricalPolicy | GaussianPolicy


def make_policy(observation_space: Space[Any], action_space: Space[Any], **kwargs: Any) -> ControlPolicy:
    """A policy for these spaces.

    Raises:
        ValueError: for an action space other than Discrete (from 0) or a one-dimensional Box.
    """
    assert observation_space.shape is not None
    n_inputs = int(np.prod(observation_space.shape))
    if isinstance(action_space, Discrete) and action_space.start == 0:
        return CategoricalPolicy(n_inputs, int(action_space.n), **kwargs)
    if isinstance(action_space, Box) and len(action_space.shape) == 1:
        return GaussianPolicy(n_inputs, action_space.shape[0], **kwargs)
    raise ValueError(f"the action space must be Discrete (from 0) or a one-dimensional Box, got {action_space}")
