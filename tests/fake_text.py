"""A toy text task: a response is right if it holds more of 'a' than of 'b'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, critic_base, tiny_model
from sppo.llm.sampler import TextSampler
from sppo.llm.tokenizer import character_tokenizer


@dataclass(frozen=True)
class ToyPrompt:
    prompt: str
    key: int


@dataclass(frozen=True)
class ToyScore:
    reward: float
    reason: str


class ToyTask:
    def prompts(self, split: str) -> list[ToyPrompt]:
        return [ToyPrompt("ab" * (1 + i % 3), 100 + i) for i in range(20)] if split == "train" else []

    def score(self, prompt: ToyPrompt, response: str) -> ToyScore:
        right = response.count("a") > response.count("b")
        return ToyScore(float(right), "ok" if right else "wrong")

    def score_all(self, prompts: Sequence[ToyPrompt], responses: Sequence[str]) -> list[ToyScore]:
        return [self.score(p, r) for p, r in zip(prompts, responses, strict=True)]


def toy_policy(seed: int = 0, temperature: float = 1.0, spread: float = 1.0) -> TextPolicy:
    """`spread` > 1 makes the distributions less flat, so that errors of position or temperature would show."""
    tokenizer = character_tokenizer("ab=;")
    model = tiny_model(len(tokenizer), seed=seed, hidden=32, layers=2, heads=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(spread)
    return TextPolicy(model, tokenizer, temperature=temperature)


def toy_sampler(policy: TextPolicy | None = None, **kwargs: Any) -> TextSampler:
    policy = policy or toy_policy()
    options = {"max_completion_length": 8, "critic": lambda: critic_base(policy.model, layers=1), **kwargs}
    return TextSampler(ToyTask(), policy, HFEngine(policy, batch_size=options.pop("batch_size", 256)), **options)
