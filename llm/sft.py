"""Supervised fine-tuning on a task's demonstrations: how the model that ships for arithmetic is made.

python -m sppo.llm.sft --out llm/models/arithmetic
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from sppo.agents.batch import Choices, Experience
from sppo.agents.learners import LocalLearner
from sppo.agents.losses import aggregation_weights
from sppo.agents.update import LogLikelihoodLoss, minimise
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import Prefixes, TextPolicy, tiny_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sources import MODELS
from sppo.llm.tasks import make_task
from sppo.llm.tokenizer import character_tokenizer, encode_prompt


@dataclass(frozen=True, kw_only=True)
class TextSFTConfig:
    """How a small model is taught a task's demonstrations."""

    task: str = "arithmetic"
    terms: tuple[int, int] = (2, 5)
    """Fewest and most operands of a chain."""
    operands: tuple[int, int] = (1, 20)
    """Smallest and greatest operand."""
    p_wrong: dict[str, float] = field(default_factory=lambda: {"+": 0.05, "-": 0.5})
    """Share of wrong additions and subtractions in the last demonstrations: a model that knows how learns to miss,
    which reinforcement learning can mend, and to miss what can be foreseen from the prompt."""
    wrong_steps: int = 400
    """The last gradient steps, those on demonstrations with wrong steps."""
    gradient_steps: int = 2000
    learning_rate: float = 1e-3
    """At its peak: it rises over the first `warmup` gradient steps, and falls to nothing with the last."""
    warmup: int = 100
    batch_size: int = 64
    """Demonstrations per gradient step, of like length."""
    check_every: int = 500
    """Gradient steps between two looks at the success rate."""
    check_prompts: int = 512
    max_completion_length: int = 56
    """Token budget of a response, stop token included."""
    seed: int = 0


def as_demonstrations(policy: TextPolicy, prompts: Sequence[Any], responses: Sequence[str]) -> Experience:
    """What the log-likelihood loss reads; each response is followed by the stop token."""
    tokenizer = policy.tokenizer
    prefixes = [torch.tensor(encode_prompt(tokenizer, prompt.prompt)) for prompt in prompts]
    ids = [tokenizer(response, add_special_tokens=False)["input_ids"] for response in responses]
    actions = [torch.tensor([*one, tokenizer.eos_token_id]) for one in ids]
    lengths = torch.tensor([len(one) for one in actions])
    padded = pad_sequence(actions, batch_first=True)
    valid = torch.arange(padded.shape[1]) < lengths[:, None]
    weight, share = aggregation_weights(valid)
    traj = Choices(inputs=Prefixes.of(prefixes), actions=padded, logprobs=torch.zeros(valid.shape), valid=valid)
    return Experience(traj=traj, weight=weight, share=share)


def fine_tune(config: TextSFTConfig, out: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, and write the model as a save_pretrained folder with sft.json, what it was made by and can do, inside."""
    task: Any = make_task(config.task, terms=config.terms, operands=config.operands)
    policy = TextPolicy(*_new(task.alphabet, config.seed))
    learner = LocalLearner(policy, learning_rate=config.learning_rate, max_grad_norm=1.0, adam_eps=1e-8)
    loss, generator = LogLikelihoodLoss(policy), np.random.default_rng(config.seed)
    prompts = task.prompts("train")
    held_out = TextSampler(
        task,
        policy,
        HFEngine(policy),
        max_completion_length=config.max_completion_length,
        prompts=task.prompts("test")[: config.check_prompts],
    )
    everyone = np.arange(len(held_out.prompts))
    success, steps = 0.0, 0
    while steps < config.gradient_steps:
        for chosen in _like_lengths(prompts, config.batch_size, generator)[: config.gradient_steps - steps]:
            p_wrong = config.p_wrong if steps >= config.gradient_steps - config.wrong_steps else None
            responses = [task.demonstration(prompt, generator, p_wrong) for prompt in chosen]
            learner.optimizer.param_groups[0]["lr"] = config.learning_rate * _schedule(config, steps)
            data = as_demonstrations(policy, chosen, responses)
            metrics = minimise(learner, loss, data, n_epochs=1, n_minibatches=1, generator=generator)
            steps += 1
            if steps % config.check_every == 0 or steps == config.gradient_steps:
                success = float(held_out.rollout(everyone).success.float().mean())
                report(f"{steps:5d} gradient steps, loss {metrics['train/loss']:.3f}, success {success:.3f}")
    about = {
        "config": dataclasses.asdict(config),
        "success_rate": success,
        "greedy_success_rate": float(held_out.rollout(everyone, greedy=True).success.float().mean()),
        "success_rate_prompts": len(everyone),
        "parameters": sum(p.numel() for p in policy.parameters()),
    }
    policy.save_pretrained(out)
    (out / "sft.json").write_text(json.dumps(about, indent=1) + "\n")
    return about


def _schedule(config: TextSFTConfig, step: int) -> float:
    """The share of the peak learning rate that a gradient step takes."""
    return min((step + 1) / config.warmup, (config.gradient_steps - step) / config.gradient_steps)


def _new(alphabet: str, seed: int) -> tuple[Any, Any]:
    tokenizer = character_tokenizer(alphabet)
    return tiny_model(len(tokenizer), seed=seed), tokenizer


def _like_lengths(prompts: Sequence[Any], batch_size: int, generator: np.random.Generator) -> list[list[Any]]:
    """A pass over a random part of the prompts, in batches of like length (little padding) in random order."""
    if len(prompts) < batch_size:
        raise ValueError(f"a batch of {batch_size} needs as many prompts, got {len(prompts)}")
    n = min(16 * batch_size, len(prompts) // batch_size * batch_size)
    part = sorted(generator.choice(len(prompts), n, replace=False).tolist(), key=lambda i: len(prompts[i].prompt))
    batches = [[prompts[i] for i in part[first : first + batch_size]] for first in range(0, n, batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


if __name__ == "__main__":
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Main(TextSFTConfig):
        """Make a model."""

        out: Path = MODELS / "arithmetic"
        """The folder to write."""

    main = tyro.cli(Main)
    torch.set_num_threads(1)
    settings = {f.name: getattr(main, f.name) for f in dataclasses.fields(TextSFTConfig)}
    print(json.dumps(fine_tune(TextSFTConfig(**settings), main.out), indent=1))
