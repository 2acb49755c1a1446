"""Policy and critic sharded over ranks with FSDP2; `torchrun` starts one process per rank.

All ranks run one program on the same data: each holds every trajectory, takes the same decisions and keeps the same
counters. Shared out is what costs time and memory: generation and scoring by prompt, passes through the networks by
row, weights, gradients and Adam's moments by slices of every tensor. Results are put together where they arise, so that
no algorithm, statistic or callback can tell how many ranks there are. llm/shared.py shares generation and scoring.
Policy and critic lie each on a mesh of its own: cut over all ranks, or over a few, of which the others are copies.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from sppo.agents.batch import Experience
from sppo.agents.learners import adam, check_gradient
from sppo.llm.policy import checkpoint_layers
from sppo.llm.shared_passes import PASSES, shared_pass
from sppo.llm.torchrun import check_gpus, end_with_launcher


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How a network is sharded.

    Args:
        dtype: of its arithmetic and of gathered weights; the sharded weights, gradients and Adam stay as they are.
        checkpointing: keep only the inputs of each layer, and compute the rest again in the backward pass.
        offload: weights, gradients and Adam's moments rest in the memory of the CPU, where Adam runs too.
        over: neighbours that each tensor is cut over, by default all ranks; others hold the same slices. With 1 every
            rank has the whole network, which gathers nothing and only sums gradients.
        rows: of each rank at most in one pass outside autograd (values, log-probabilities of a reference), besides
            what TOKENS allows.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    offload: bool = False
    over: int | None = None
    rows: int | None = None


class Ranks:
    """The processes that `torchrun` started, and this one's place among them."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.meshes: dict[int, DeviceMesh] = {}

    def mesh(self, over: int | None = None) -> DeviceMesh:
        """Where networks lie that are cut over so many neighbours, by default all; the others hold copies.

        Raises:
            ValueError: if they do not divide the ranks.
        """
        over = self.size if over is None else over
        if over < 1 or self.size % over:
            raise ValueError(f"a network is cut over a divisor of the {self.size} ranks, got {over}")
        if over not in self.meshes:  # one for all that are cut alike: each has buffers of its own on a GPU
            whole = over == self.size
            shape, names = ((over,), ("slices",)) if whole else ((self.size // over, over), ("copies", "slices"))
            self.meshes[over] = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        return self.meshes[over]

    @property
    def first(self) -> bool:
        """True on the one rank that writes."""
        return self.rank == 0

    def total(self, x: Tensor) -> Tensor:
        """Sum over ranks, equal to the last bit on all."""
        there = x.to(self.device, copy=True)
        dist.all_reduce(there)
        return there.to(x.device)

    def gather(self, x: Any) -> list[Any]:
        """What every rank has, in their order."""
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, x)
        return parts

    def any(self, told: bool) -> bool:
        """True where one rank at least says so: signals reach ranks at different moments, and all must heed the same
        ones."""
        return bool(self.total(torch.tensor(float(told))) > 0)

    def interleaved(self, mine: Tensor) -> Tensor:
        """All ranks' rows, equally many, dealt out one by one, in order."""
        here = mine.to(self.device).contiguous()
        parts = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(parts, here)
        return torch.stack(parts, 1).flatten(0, 1).to(mine.device)

    def part(self, n: int) -> slice:
        """This rank's share of n neighbours."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def leave(self) -> None:
        """To be called by all, at the end."""
        dist.destroy_process_group()


def join() -> Ranks | None:
    """Meet the other processes; None where this one was not started by `torchrun`.

    Raises:
        ValueError: if there are fewer GPUs than processes.
    """
    if "RANK" not in os.environ:
        return None
    device = torch.device("cpu")
    if torch.cuda.is_available():
        check_gpus()
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    end_with_launcher()
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Ranks(device)


class FSDPLearner:
    """A module sharded over ranks, and its Adam, each rank's over its own slices.

    Args:
        module: a policy or a critic with a body of `layers`; sharded in place.
        learning_rate: of Adam.
        max_grad_norm: the norm of the whole gradient, to which it is scaled down.
        adam_eps: Adam's epsilon.
        weight_decay: the share of the weights, times the learning rate, that each step takes off them.
        ranks: that share the module.
        config: how.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        learning_rate: float,
        max_grad_norm: float,
        adam_eps: float,
        weight_decay: float = 0.0,
        ranks: Ranks,
        config: ShardConfig | None = None,
    ) -> None:
        config = config or ShardConfig()
        shard(module, ranks, config)
        self.module, self.max_grad_norm, self.ranks = module, max_grad_norm, ranks
        self.copies = ranks.size // (config.over or ranks.size)
        self.parameters: list[Any] = [p for p in module.parameters() if p.requires_grad]
        # Adam sees plain tensors that share memory with the parameters, so that its state is plain too.
        self.slices = [local(p) for p in self.parameters]
        self.optimizer = adam(self.slices, learning_rate, adam_eps, weight_decay)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def backward(self, loss: Tensor) -> None:
        (loss * self.ranks.size).backward()  # FSDP2 averages gradients over ranks; the loss is a part of a sum

    def step(self, learns: Sequence[bool] = (True,)) -> list[float]:
        gradients = []
        for own, parameter in zip(self.slices, self.parameters, strict=True):
            own.data = local(parameter)
            own.grad = torch.zeros_like(own) if parameter.grad is None else local(parameter.grad)
            gradients.append(own.grad)
        squares = torch.stack([g.square().sum() for g in gradients]).sum()
        norm = float(self.ranks.total(squares / self.copies).sqrt())
        check_gradient(self.module, norm)
        if learns[0]:
            if norm > self.max_grad_norm:
                torch._foreach_mul_(gradients, self.max_grad_norm / norm)
            self.optimizer.step()
            _changed(self.module)
        for own, parameter in zip(self.slices, self.parameters, strict=True):
            own.grad = parameter.grad = None  # while responses are generated, the memory is the engine's
        return [norm]

    def total(self, x: Tensor) -> Tensor:
        return self.ranks.total(x)

    def own_rows(self, batch: Experience, block: int) -> Experience:
        """Every n-th block of rows; where there are fewer blocks than ranks, one of no weight for the others.

        All ranks must go through the network equally often, or they would wait for each other forever.
        """
        blocks = torch.arange(len(batch)).view(-1, block)[self.ranks.rank :: self.ranks.size]
        if len(blocks):
            return batch[blocks.flatten()]
        idle = batch[slice(0, block)]
        return replace(idle, weight=torch.zeros_like(idle.weight), share=torch.zeros_like(idle.share))


def local(x: Any) -> Tensor:
    """This rank's slice, in the same memory."""
    return x.to_local().detach() if isinstance(x, DTensor) else x.detach()


def shard(module: Any, ranks: Ranks, config: ShardConfig) -> None:
    """Leave each rank a slice of every tensor; a layer is whole only while it computes.

    From then on the module's passes take rows in the memory of the CPU and return tables there. Outside autograd, where
    all ranks ask for the same rows, they share the work. `state_dict` and `load_state_dict` speak of this rank's
    slices, a copy is sharded too, and `save_pretrained` writes the whole model, on the first rank.
    """
    blank = _blank(module)
    body = module.base
    if config.checkpointing:
        checkpoint_layers(body)
    body.whole_rows = True  # else the number of passes through a layer would depend on the rows
    dtype = None if config.dtype == "float32" else getattr(torch, config.dtype)
    pinned = CPUOffloadPolicy() if config.offload and ranks.device.type == "cuda" else OffloadPolicy()
    options: dict[str, Any] = {
        "mesh": ranks.mesh(config.over),
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None),
        "offload_policy": pinned,
        "reshard_after_forward": True,
    }
    for layer in body.layers:
        fully_shard(layer, **options)
    fully_shard(module, **options)
    for name in PASSES:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)
            setattr(module, name, shared_pass(getattr(module, name), module.reads, ranks, config.rows))

    def again(memo: Any) -> Any:
        twin = _filled(blank)
        shard(twin, ranks, config)
        for mine, others in zip(twin.parameters(), module.parameters(), strict=True):
            local(mine).copy_(local(others))
        return twin

    def save_pretrained(folder: Path) -> None:
        whole = _filled(blank) if ranks.first else None
        for name, weight in whole_weights(module):
            if whole is not None:
                whole.get_parameter(name).data.copy_(weight)
        if whole is not None:
            whole.save_pretrained(folder)
        dist.barrier()

    module.__deepcopy__ = again
    if hasattr(module, "save_pretrained"):
        module.save_pretrained = save_pretrained
    module.register_state_dict_post_hook(_to_slices)
    module.register_load_state_dict_pre_hook(_from_slices)
    _changed(module)


def whole_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter by name, gathered from the ranks, one at a time; all must iterate."""
    for name, parameter in module.named_parameters():
        weight: Any = parameter.detach()
        yield name, weight.full_tensor() if isinstance(weight, DTensor) else weight


def _changed(module: Any) -> None:
    module.version = getattr(module, "version", 0) + 1  # so that an engine knows when its copy is old


def _blank(module: nn.Module) -> Any:
    """A copy whose parameters have shapes and no memory."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, dict(empty))


def _filled(blank: nn.Module) -> Any:
    """A copy of a blank whose parameters have memory and no content."""
    filled = {id(p): nn.Parameter(torch.empty_like(p, device="cpu"), p.requires_grad) for p in blank.parameters()}
    return copy.deepcopy(blank, dict(filled))


def _to_slices(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, x in state.items():
        state[name] = local(x)


def _from_slices(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, p in module.named_parameters(remove_duplicate=False):
        if isinstance(p, DTensor) and prefix + name in state:
            saved = state[prefix + name].to(p.device, p.dtype)
            mesh, placements = p.device_mesh, p.placements
            state[prefix + name] = DTensor.from_local(saved, mesh, placements, shape=p.shape, stride=p.stride())
    _changed(module)
