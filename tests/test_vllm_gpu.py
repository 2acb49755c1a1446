"""vLLM on a GPU: memory is given back, and weights arrive within the process, by CUDA IPC and by NCCL."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from launched import CLI, done, torchrun
from small_runs import records
from vllm_engines import arithmetic, generate, perturb, prompts, toy, trainers

from sppo.llm.engine_vllm import VLLMEngine
from sppo.llm.policy import TextPolicy

N_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.vllm, pytest.mark.skipif(not N_GPUS, reason="needs a GPU")]
two = pytest.mark.skipif(N_GPUS < 2, reason="needs two GPUs")

WAYS = [
    pytest.param({}, None, id="process"),
    pytest.param({"server": True}, "ipc", id="ipc"),
    pytest.param({"server": True, "devices": "1"}, "nccl", id="nccl", marks=two),
]
NATS = 0.1
"""That bfloat16 may cost a token on average, as in the engine's own probe."""


def on_gpu(policy: TextPolicy) -> TextPolicy:
    policy.model.base_model.products = torch.bfloat16
    return policy.to("cuda")


def difference(engine: VLLMEngine) -> float:
    """Of the engine's log-probabilities from transformers', on average."""
    prefixes = prompts(engine.policy, 64)
    found = generate(engine, prefixes)
    own = torch.cat([row.cpu() for row in trainers(engine.policy, prefixes, found)])
    return float((torch.cat([c.logprobs for c in found]) - own).abs().mean())


@pytest.mark.parametrize(("options", "transfer"), WAYS)
def test_new_weights_arrive_by_the_way_that_is_meant(options: dict[str, object], transfer: str | None) -> None:
    engine = VLLMEngine(on_gpu(arithmetic()), gpu_memory_utilization=0.3, **options)
    try:
        assert engine.transfer == transfer
        kept = copy.deepcopy(engine.policy.state_dict())
        first = [c.logprobs for c in generate(engine, prompts(engine.policy, 4), greedy=True)]
        assert difference(engine) < NATS
        perturb(engine.policy)
        assert difference(engine) < NATS
        engine.policy.load_state_dict(kept)
        again = [c.logprobs for c in generate(engine, prompts(engine.policy, 4), greedy=True)]
        assert max(float((a - b).abs().max()) for a, b in zip(first, again, strict=True)) < NATS
    finally:
        engine.close()


@pytest.mark.parametrize("options", [{}, {"server": True}], ids=["process", "server"])
def test_between_rollouts_the_memory_is_the_trainers(options: dict[str, object]) -> None:
    """All but what vLLM cannot let go of: its context, graphs and workspace."""
    engine = VLLMEngine(on_gpu(arithmetic()), kv_cache_gib=8, **options)
    try:
        engine.sync()
        awake = torch.cuda.mem_get_info()[0]
        generate(engine, prompts(engine.policy, 4))
        assert torch.cuda.mem_get_info()[0] - awake > 7 * 2**30
        assert difference(engine) < NATS
    finally:
        engine.close()


def test_adapters_arrive_as_adapters() -> None:
    pytest.importorskip("peft")
    from sppo.llm.lora import LoRA, lora_policy

    policy = toy()
    lora_policy(policy, LoRA(rank=4), seed=0)
    engine = VLLMEngine(on_gpu(policy), gpu_memory_utilization=0.3)
    for _ in range(2):
        assert difference(engine) < NATS
        for p in policy.parameters():
            if p.requires_grad:
                p.data.add_(0.3 * torch.randn_like(p))


@two
@pytest.mark.parametrize("engine", ["vllm", "vllm-server"])
def test_each_ranks_vllm_is_on_its_own_gpu(engine: str, tmp_path: Path) -> None:
    train = (
        "train --task arithmetic --episodes 512 --evals 1 --eval-episodes 64 --text gpu_memory_utilization 0.6 engine"
    )
    done(*torchrun(2, *CLI), *train.split(), engine, "--out", tmp_path / "run")
    for r in records(tmp_path / "run" / "progress.jsonl"):
        assert r["sampling/logprob_difference"] < NATS
