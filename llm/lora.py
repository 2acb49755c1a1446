"""Low-rank adapters for policies and critics: the model stays as it is, and small matrices beside its own learn.

Source: Hu et al. 2021, arXiv 2106.09685; the layers are PEFT's.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sppo.agents.storage import write_tensors
from sppo.llm.policy import TextPolicy, critic_base

try:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    raise ImportError("adapters need PEFT: pip install sppo[lora]") from error

CriticKind = Literal["full", "lora", "head"]
"""What of a critic learns: all of it, adapters and head, or the head alone on the features of a frozen body."""

NAME = "default"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """W + alpha / rank * B A on every matrix of every layer; B is 0 at first.

    Args:
        rank: columns of B and rows of A.
        alpha: how much the adapter counts.
    """

    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of LoRA must be positive, got {getattr(self, name)}")


def add_adapters(model: Any, lora: LoRA, *, seed: int) -> None:
    """Freeze a model, or the body of one, and give the matrices of its layers adapters, drawn from `seed`."""
    body = getattr(model, "base_model", model)
    targets = {name.rsplit(".", 1)[-1] for name, m in body.layers.named_modules() if isinstance(m, nn.Linear)}
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=sorted(targets))  # type: ignore[arg-type]
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, NAME)
    model.lora = lora


def lora_policy(policy: TextPolicy, lora: LoRA, *, seed: int) -> None:
    """Let only adapters of a policy learn; saved, it is a folder of the merged model, with the adapters in `adapter`.

    To be called before engines, critics, references and learners are made of the policy.
    """
    add_adapters(policy.model, lora, seed=seed)
    policy.save_pretrained = MethodType(_save, policy)  # type: ignore[method-assign]


def lora_critic_base(
    model: Any, kind: CriticKind, lora: LoRA, *, seed: int, layers: int | None = None, dtype: Any = None
) -> Any:
    """The body of a critic, of which `kind` says what learns, from a model with adapters or without.

    Where the model is frozen but for its adapters, "lora" and "head" read its own weights: they cost no memory again.
    """
    base = critic_base(model, layers=layers, dtype=dtype, share_frozen=kind != "full")
    _strip(base)
    base.requires_grad_(kind == "full")
    if kind == "lora":
        add_adapters(base, lora, seed=seed)
    return base


def merged(model: nn.Module) -> Any:
    """A copy whose adapters are added into its matrices."""
    whole = copy.deepcopy(model)
    for layer in whole.modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
    _strip(whole)
    return whole


def adapter(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapters' tensors and configuration, as PEFT and vLLM read them from a folder.

    Of a sharded model each rank gets them whole; all must call.
    """
    tensors = {
        f"base_model.model.{name.replace(f'.{NAME}', '')}": getattr(p, "full_tensor", lambda p=p: p)().detach()
        for name, p in model.named_parameters()
        if "lora_" in name
    }
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})
    lora: LoRA = model.lora
    return tensors, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.config._name_or_path,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
    }


def save_adapter(model: Any, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; of a sharded model, on every rank, all at once."""
    tensors, config = adapter(model)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", {k: v.cpu().clone() for k, v in tensors.items()})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _save(policy: TextPolicy, folder: Path) -> None:
    TextPolicy.save_pretrained(merged(policy), folder)
    save_adapter(policy.model, folder / "adapter")


def _strip(module: nn.Module) -> None:
    """Put each adapted layer's own matrix back in its place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                setattr(parent, name, child.get_base_layer())
