"""What vLLM is told, which needs no vLLM to be tested."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sppo.llm.vllm_options import engine_options


def told(max_model_len: int | None = 512, **changes: Any) -> dict[str, Any]:
    usual = {"on_gpu": True, "server": False, "devices": None, "batch_size": 8, "kv_cache_gib": None, "lora_rank": None}
    return engine_options(torch.bfloat16, max_model_len, gpu_memory_utilization=0.5, **usual | changes)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_on_a_cpu_prompts_are_read_whole_and_memory_is_a_gibibyte() -> None:
    for context, batched in ((None, 4096), (512, 4096), (8192, 8192)):
        options = told(context, on_gpu=False)
        assert options["max_num_batched_tokens"] == batched and options["enable_chunked_prefill"] is False
    assert options["enforce_eager"] and not options["enable_sleep_mode"]
    assert options["kv_cache_memory_bytes"] == 2**30 and "gpu_memory_utilization" not in options


def test_on_the_trainers_gpu_it_takes_a_share_and_sleeps() -> None:
    options = told()
    assert options == {
        "dtype": "bfloat16",
        "max_num_seqs": 8,
        "max_model_len": 512,
        "enforce_eager": False,
        "enable_sleep_mode": True,
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.5,
    }
    assert told(kv_cache_gib=0.5)["kv_cache_memory_bytes"] == 2**29


def test_on_gpus_of_its_own_it_never_sleeps() -> None:
    options = told(server=True, devices="1,2,3")
    assert options["tensor_parallel_size"] == 3 and not options["enable_sleep_mode"]


def test_ranks_start_none_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert told()["distributed_executor_backend"] == "external_launcher"
    assert "distributed_executor_backend" not in told(server=True)


def test_adapters_have_the_next_rank_that_there_are_kernels_for() -> None:
    assert [told(lora_rank=rank)["max_lora_rank"] for rank in (1, 8, 9, 512)] == [8, 8, 16, 512]
    with pytest.raises(ValueError, match="vLLM has adapters of rank 512 at most, got 513"):
        told(lora_rank=513)
