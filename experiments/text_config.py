"""What a run on text has besides its agent's settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from sppo.experiments.config import RunConfig
from sppo.experiments.settings import make


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """What a run on text has besides its agent's settings."""

    max_completion_length: int = 512
    """Token budget of a response, stop token included; part of the task."""
    max_prompt_length: int | None = None
    """Longer prompts are left out, with a warning; by default those that leave no room for a response."""
    temperature: float = 1.0
    """Of sampling, in training and evaluation alike."""
    critic: str = "policy"
    """The model whose body the critic starts from: the policy's, or another that reads the same tokens."""
    critic_layers: int | None = None
    """How many of its layers the critic keeps, from the first."""
    critic_kind: Literal["full", "lora", "head"] = "full"
    """What of the critic learns: all of it, adapters and its head, or the head alone."""
    critic_start: float | None = None
    """The return that the critic predicts before it has learned; by default the mean of a first batch of responses,
    whose cost counts."""
    lora_rank: int | None = None
    """Of adapters, which then learn in place of the policy; None: all of the policy learns."""
    lora_alpha: float = 32.0
    """How much the adapters count."""
    eval_task: str | None = None
    """Evaluate on the test prompts of another task."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights and optimiser stay in float32."""
    threads: int | None = None
    """Of the process; by default one per processor. The last digits of results depend on it."""
    engine: Literal["hf", "vllm", "vllm-server"] = "hf"
    """What generates: the policy itself, or vLLM with a copy of its weights, beside it or in a process of its own."""
    generation_batch_size: int = 256
    """Responses generated side by side."""
    kv_cache_gib: float | None = None
    """Memory for vLLM's keys and values; by default 1 on a CPU, and on a GPU what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: float = 0.5
    """The share of a GPU's memory that vLLM may take; between rollouts it gives it back."""
    engine_devices: str | int | None = None
    """GPUs of vLLM's server, as in CUDA_VISIBLE_DEVICES; by default it is on the policy's."""
    n_completions: int = 8
    """Responses written to completions.jsonl at every update and evaluation."""
    ranks: int | None = None
    """Processes that share the run, as many as torchrun starts; None without it."""
    shard_over: int | None = None
    """In a shared run, neighbouring ranks that the policy is cut over; the others hold copies. By default all."""
    critic_shard_over: int | None = None
    """The same of the critic; with 1, every rank has it whole."""
    checkpointing: bool = False
    """In a shared run, keep only the inputs of layers for the backward pass."""
    offload: bool = False
    """In a shared run, keep weights, gradients and Adam's moments in the memory of the CPU."""
    shard_dtype: Literal["float32", "bfloat16"] = "float32"
    """In a shared run, of arithmetic and gathered weights. The copy that generates is of `dtype` with engine hf, narrow
    where either is with vLLM; with bfloat16 here, or with vLLM, log-probabilities are recomputed."""

    def __post_init__(self) -> None:
        for name in (
            "max_completion_length",
            "max_prompt_length",
            "critic_layers",
            "threads",
            "generation_batch_size",
            "lora_rank",
            "lora_alpha",
        ):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        if self.kv_cache_gib is not None and not self.kv_cache_gib > 0:
            raise ValueError(f"kv_cache_gib must be positive, got {self.kv_cache_gib}")
        if self.critic_start is not None and not 0 < self.critic_start < 1:
            raise ValueError(f"critic_start must be in (0, 1), got {self.critic_start}")
        if self.critic_kind == "lora" and self.lora_rank is None:
            raise ValueError("critic_kind lora needs lora_rank, which is of its adapters too")
        if self.engine_devices is not None and self.engine != "vllm-server":
            raise ValueError(f"engine_devices {self.engine_devices} are of engine vllm-server, and it is {self.engine}")
        if self.engine_devices is not None and (self.ranks or 1) > 1:
            raise ValueError(
                f"engine_devices {self.engine_devices} would have to hold a server of each of the {self.ranks} ranks: "
                "without it, each rank's is on the rank's GPU"
            )
        plain = {"shard_over": None, "critic_shard_over": None, "checkpointing": False, "offload": False}
        for name, value in (plain | {"shard_dtype": "float32"}).items():
            if self.ranks is None and getattr(self, name) != value:
                raise ValueError(f"{name} is of runs that ranks share: start this one with torchrun")
        check_over(self)

    @property
    def engine_dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the copy that generates: vLLM's is narrow where any arithmetic is."""
        return "bfloat16" if self.engine != "hf" and self.shard_dtype == "bfloat16" else self.dtype


def check_over(config: Any) -> None:
    """Of what has ranks: raise ValueError for networks cut over a number that does not divide them."""
    for name in ("shard_over", "critic_shard_over"):
        over = getattr(config, name)
        if over is not None and (over < 1 or config.ranks % over):
            raise ValueError(f"{name} must divide the number of ranks, {config.ranks}, got {over}")


def check_shared(text: TextConfig) -> None:
    """Raise ValueError for a critic of its own beside a shared_network, or a network that could not be shared."""
    alone = {"critic": "policy", "critic_layers": None, "critic_kind": "full", "lora_rank": None, "ranks": None}
    for name, value in alone.items():
        if (got := getattr(text, name)) != value:
            raise ValueError(
                f"in a shared_network the critic is a head behind all of the policy's layers, on one process: {name} "
                f"must be {json.dumps(value)}, got {got}"
            )


def text_config(config: RunConfig) -> TextConfig:
    """Of a run's config."""
    return make(TextConfig, config.text)
