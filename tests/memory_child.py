"""One update of a random model in a process of its own: prints the rise of its resident set over that after imports."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sppo.agents import AGENTS
from sppo.experiments.shapes import Shape
from sppo.llm.engine_hf import HFEngine
from sppo.llm.lora import LoRA, lora_critic_base, lora_policy
from sppo.llm.policy import TextPolicy, checkpoint_layers, critic_base
from sppo.llm.sampler import TextSampler
from sppo.llm.tokenizer import character_tokenizer


@dataclass(frozen=True)
class Prompt:
    prompt: str
    key: int


@dataclass(frozen=True)
class Score:
    reward: float
    reason: str = "ok"


class LongPrompts:
    """Prompts of one length; every other response is right, so that all algorithms have something to learn."""

    def __init__(self, length: int) -> None:
        self.length = length

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(("ab" if i % 2 else "ba") + "b" * (self.length - 2), i) for i in range(64)]

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        return [Score(float(i % 2)) for i, _ in enumerate(responses)]


def resident(what: str) -> int:
    """Bytes: VmRSS now, VmHWM at most so far."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main(case: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    shape, setting = Shape(**case["shape"]), case["setting"]
    before = resident("VmRSS")
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=2048,
    )
    dtype = getattr(torch, setting.get("dtype", "float32"))
    policy = TextPolicy(LlamaForCausalLM(config), character_tokenizer("ab"), dtype=dtype)
    rank = setting.get("lora")
    if rank is not None:
        lora_policy(policy, LoRA(rank=rank), seed=0)

    def critic() -> Any:
        if rank is None:
            base = critic_base(policy.model, layers=case["critic_layers"])
            if setting.get("checkpointing"):
                checkpoint_layers(base)
            return base
        return lora_critic_base(policy.model, setting["critic"], LoRA(rank=setting["critic_lora"]), seed=1)

    sampler = TextSampler(
        LongPrompts(setting["prompt"]),
        policy,
        HFEngine(policy, batch_size=setting["generated"]),
        max_completion_length=setting["response"],
        critic=critic,
    )
    if setting.get("checkpointing"):
        checkpoint_layers(policy.model.base_model)
    agent = AGENTS[case["agent"]](
        sampler, episodes_per_update=setting["value_rows"], n_minibatches=1, microbatch_size=setting["rows"], n_epochs=1
    )
    for learner in (agent.learner, agent.critic_learner):
        if learner is not None:
            learner.step()  # with gradients of 0: from here on Adam has its moments
    agent.train_once()
    print(json.dumps({"rise": resident("VmHWM") - before, "parameters": sum(p.numel() for p in policy.parameters())}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
