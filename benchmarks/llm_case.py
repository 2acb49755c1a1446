"""What a benchmark of a training step on text trains: agents on models of random weights, whose responses have one
length."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sppo.agents import AGENTS, Agent
from sppo.experiments.shapes import SHAPES as PUBLISHED
from sppo.experiments.shapes import Shape
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, checkpoint_layers, critic_base
from sppo.llm.sampler import TextSampler
from sppo.llm.tasks.base import Prompt, Score
from sppo.llm.tokenizer import character_tokenizer

TINY = Shape(hidden=128, layers=4, heads=4, kv_heads=4, head_dim=32, intermediate=341, vocab=512, tied=True)
SHAPES = {
    "tiny": TINY,
    "10m": Shape(hidden=256, layers=8, heads=8, kv_heads=8, head_dim=32, intermediate=688, vocab=8192, tied=True),
    "135m": PUBLISHED["smollm2"],
    "1.5b": PUBLISHED["r1-distill-qwen-1.5b"],
    "7b": PUBLISHED["r1-distill-qwen-7b"],
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One algorithm's step."""

    algorithm: str
    policy: Shape
    critic: Shape  # of the small critic; others have the policy's
    responses: int = 64
    prompt_length: int = 32
    completion_length: int = 64
    generation_batch: int = 256
    microbatch: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    sharded: bool = False
    checkpointing: bool = False
    offload: bool = False
    rounds: int = 5

    @property
    def body(self) -> Shape | None:
        """Of the critic."""
        return {"grpo": None, "sppo-small": self.critic}.get(self.algorithm, self.policy)


class SameLength:
    """Prompts of so many random digits; every other response is right."""

    def __init__(self, length: int, n: int) -> None:
        digits = np.random.default_rng(0).integers(0, 10, (n, length))
        self._prompts = [Prompt(key=i, prompt="".join(map(str, row)), answer="") for i, row in enumerate(digits)]

    def prompts(self, split: str) -> list[Prompt]:
        return self._prompts

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        return [Score(float(i % 2), "ok" if i % 2 else "wrong") for i in range(len(responses))]


def make_agent(case: Case) -> Agent:
    """An agent on models of random weights."""
    tokenizer, dtype = character_tokenizer("0123456789"), getattr(torch, case.dtype)
    ranks = _one_rank() if case.sharded else None
    policy = TextPolicy(new_model(case.policy, case.device), tokenizer, dtype=dtype)
    generate = partial(HFEngine, stop_token_ids=[-1], batch_size=case.generation_batch)
    if ranks is None:
        engine: Any = generate(policy)
    else:
        from sppo.llm.shared import SharedEngine

        replica = TextPolicy(new_model(case.policy, case.device).to(dtype), tokenizer, dtype=dtype)
        engine = SharedEngine(generate(replica), policy, ranks, replica)

    def critic() -> Any:
        assert case.body is not None
        model = policy.model if case.body == case.policy else new_model(case.body, case.device)
        base = critic_base(model, dtype=dtype)
        if case.checkpointing and ranks is None:
            checkpoint_layers(base)
        return base

    sampler = TextSampler(
        SameLength(case.prompt_length, case.responses),
        policy,
        engine,
        max_completion_length=case.completion_length,
        critic=critic,
    )
    if ranks is not None:
        from sppo.llm.fsdp import FSDPLearner, ShardConfig

        config = ShardConfig(
            dtype=case.dtype,  # type: ignore[arg-type]
            checkpointing=case.checkpointing,
            offload=case.offload,
            rows=case.microbatch,
        )
        sampler.learner = partial(FSDPLearner, ranks=ranks, config=config)  # type: ignore[attr-defined]
    agent = AGENTS[case.algorithm.split("-")[0]](
        sampler,
        episodes_per_update=case.responses,
        n_epochs=1,
        n_minibatches=1,
        microbatch_size=case.microbatch,
        learning_rate=1e-6,
        critic_learning_rate=1e-5,
        max_grad_norm=1.0,
    )
    if case.checkpointing and ranks is None:  # after the critic was copied
        checkpoint_layers(policy.model.base_model)
    return agent


def new_model(shape: Shape, device: str) -> Any:
    """A causal language model of a shape, with random weights and no stop token."""
    kind, config = (Qwen2ForCausalLM, Qwen2Config) if shape.biases else (LlamaForCausalLM, LlamaConfig)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return kind(
            config(
                vocab_size=shape.vocab,
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                tie_word_embeddings=shape.tied,
                max_position_embeddings=2**17,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


def _one_rank() -> Any:
    """A run of one process, set up as `torchrun` sets up many."""
    from sppo.llm.fsdp import Ranks, join

    if torch.distributed.is_initialized():
        return Ranks(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return join()


def small_critic(shape: str, named: str | None) -> Shape:
    """The small critic's shape; it reads the policy's tokens, so it has the policy's vocabulary."""
    policy, named = SHAPES[shape], named or {"7b": "1.5b"}.get(shape)
    if named is None:
        return replace(policy, layers=max(1, policy.layers // 4))
    return replace(SHAPES[named], vocab=policy.vocab)
