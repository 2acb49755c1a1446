"""vLLM engines of small models, and what transformers makes of the same tokens."""

from __future__ import annotations

import numpy as np
import torch

from sppo.agents.batch import Choices
from sppo.llm.engine import Completion
from sppo.llm.engine_vllm import VLLMEngine
from sppo.llm.policy import Prefixes, TextPolicy, load_model, tiny_model
from sppo.llm.sources import find_model
from sppo.llm.tokenizer import character_tokenizer, load_tokenizer

KV = 0.05  # GiB, hundreds of rows of these models


def arithmetic(temperature: float = 0.7) -> TextPolicy:
    source = find_model("arithmetic")
    return TextPolicy(load_model(source), load_tokenizer(source), temperature=temperature)


def toy(seed: int = 0) -> TextPolicy:
    """A new model with heads as wide as vLLM's kernels want them."""
    tokenizer = character_tokenizer("ab=;")
    return TextPolicy(tiny_model(len(tokenizer), seed=seed, hidden=64, layers=2, heads=2), tokenizer)


def prompts(policy: TextPolicy, n: int) -> list[torch.Tensor]:
    texts = [f"{i + 3}-{7 * i % 20}=" for i in range(n)]  # what the model is unsure of
    return [torch.tensor(policy.tokenizer(text)["input_ids"]) for text in texts]


def generate(engine: VLLMEngine, prefixes: list[torch.Tensor], limit: int = 24, **kwargs: bool) -> list[Completion]:
    options = {"greedy": False, **kwargs}
    return engine.generate(prefixes, [limit] * len(prefixes), generator=np.random.default_rng(0), **options)


def trainers(policy: TextPolicy, prefixes: list[torch.Tensor], done: list[Completion]) -> list[torch.Tensor]:
    """Log-probabilities of the same tokens, by transformers."""
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad([c.tokens for c in done], batch_first=True)
    valid = torch.arange(tokens.shape[1]) < torch.tensor([[len(c.tokens)] for c in done])
    choices = Choices(inputs=Prefixes.of(prefixes), actions=tokens, logprobs=torch.zeros(tokens.shape), valid=valid)
    with torch.no_grad():
        logprobs, _ = policy.evaluate(choices)
    return [row[: len(c.tokens)] for row, c in zip(logprobs, done, strict=True)]


def assert_same_distribution(engine: VLLMEngine, atol: float = 1e-5) -> None:
    prefixes = prompts(engine.policy, 12)
    done = generate(engine, prefixes)
    for row, completion in zip(trainers(engine.policy, prefixes, done), done, strict=True):
        torch.testing.assert_close(completion.logprobs, row, atol=atol, rtol=0)


def perturb(policy: TextPolicy, size: float = 0.2) -> None:
    """What an optimiser does, but through the flat tensor that a learner keeps the weights in."""
    generator = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data.add_(size * p.std() * torch.randn(p.shape, generator=generator))
