"""Supervised fine-tuning on a task's demonstrations, of any model; and how the model that ships for arithmetic is made.

python -m sppo.llm.sft --model smollm2 --task gsm8k --out runs/gsm8k-sft
python -m sppo.llm.sft --out llm/models/arithmetic
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from sppo.agents.batch import Experience
from sppo.agents.learners import LocalLearner
from sppo.agents.update import LogLikelihoodLoss, minimise
from sppo.llm.demonstrations import demonstrated, mean_loss
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, load_model, tiny_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sources import find_model
from sppo.llm.tasks import make_task
from sppo.llm.tokenizer import character_tokenizer, load_tokenizer

POOL = 16  # batches that are drawn together, to be cut into such of like length


@dataclass(frozen=True, kw_only=True)
class TextSFTConfig:
    """How a model is taught a task's demonstrations."""

    model: str | None = None
    """What to start from: a name that ships or is installed, a save_pretrained folder, a .gguf file, a hub name; by
    default new weights, 0.8 million of them, over the characters of the task."""
    task: str = "arithmetic"
    task_options: dict[str, Any] = field(default_factory=dict)
    """The task's own."""
    max_completion_length: int = 512
    """Token budget of a response, stop token included; longer demonstrations are left out."""
    gradient_steps: int = 500
    batch_size: int = 32
    """Demonstrations per gradient step, of like length."""
    microbatch_steps: int | None = 8192
    """Tokens of one forward and backward pass, padding included; no effect on the gradient."""
    learning_rate: float = 2e-5
    """At its peak: it rises over the first `warmup` gradient steps, and falls to nothing with the last."""
    warmup: int = 20
    max_grad_norm: float = 1.0
    last_steps: int = 0
    """The last gradient steps, those on demonstrations with `last_options`."""
    last_options: dict[str, Any] = field(default_factory=dict)
    """Of the task's demonstrations."""
    check_every: int = 50
    """Gradient steps between two looks at the held-out loss and success rate."""
    check_demonstrations: int = 256
    """Of the test split, whose loss is told."""
    check_prompts: int = 0
    """Prompts of the test split to answer, at temperature 1 and at the end greedily too; 0 for none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights and optimiser stay in float32."""
    threads: int | None = None
    """Of the process; by default as many as torch takes."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_completion_length", "gradient_steps", "batch_size", "learning_rate", "check_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup", "last_steps", "check_demonstrations", "check_prompts"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


RECIPES: dict[str, dict[str, Any]] = {
    # A model that knows how learns at last to miss half of the subtractions, which reinforcement learning can mend, and
    # which can be foreseen from the prompt.
    "arithmetic": {
        "task_options": {"terms": [2, 5], "operands": [1, 20]},
        "max_completion_length": 56,
        "gradient_steps": 2000,
        "batch_size": 64,
        "microbatch_steps": None,
        "learning_rate": 1e-3,
        "warmup": 100,
        "last_steps": 400,
        "last_options": {"p_wrong": {"+": 0.05, "-": 0.5}},
        "check_every": 500,
        "check_prompts": 512,
        "threads": 1,
    },
}
"""What differs from the defaults for a task."""


def fine_tune(
    config: TextSFTConfig, out: Path, report: Callable[[str], None] = print, progress_bar: bool = False
) -> dict[str, Any]:
    """Train, and write the model as a save_pretrained folder with sft.json, what it was made by and can do, inside.

    Raises:
        ValueError: for a task without demonstrations, or of which no prompt or demonstration fits.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    task = make_task(config.task, **config.task_options)
    policy = _policy(config, task).to("cuda" if torch.cuda.is_available() else "cpu")
    sampler = TextSampler(
        task,
        policy,
        HFEngine(policy),
        max_completion_length=config.max_completion_length,
        seed=config.seed,
        prompts=policy.with_room(task.prompts("train"), config.max_completion_length),
    )
    shown = policy.with_room(task.prompts("test"), config.max_completion_length)
    held_out = sampler.with_prompts(shown, seed=config.seed)
    told = _Told(config, held_out)
    learner = LocalLearner(
        policy, learning_rate=config.learning_rate, max_grad_norm=config.max_grad_norm, adam_eps=1e-8
    )
    loss, generator = LogLikelihoodLoss(policy), np.random.default_rng(config.seed)
    losses: list[float] = []
    counts, seen = Counter[str](), dict[str, float]()
    with tqdm(total=config.gradient_steps, disable=not progress_bar, unit="step") as bar:
        for step, data in enumerate(_batches(config, sampler, generator, counts)):
            learner.optimizer.param_groups[0]["lr"] = config.learning_rate * _schedule(config, step)
            metrics = minimise(
                learner,
                loss,
                data,
                n_epochs=1,
                n_minibatches=1,
                generator=generator,
                microbatch_steps=config.microbatch_steps,
            )
            losses.append(metrics["train/loss"])
            bar.update()
            if (step + 1) % config.check_every == 0 or step + 1 == config.gradient_steps:
                seen = {"loss": statistics.mean(losses)} | told.now()
                report(f"{step + 1:5d} gradient steps, " + ", ".join(f"{name} {x:.3f}" for name, x in seen.items()))
                losses.clear()
    if counts["left out"]:
        report(f"{counts['left out']} demonstrations are longer than {config.max_completion_length} tokens; left out")
    about = {
        "config": dataclasses.asdict(config),
        **{name.replace(" ", "_"): x for name, x in {**seen, **told.at_last(), **counts}.items()},
        "parameters": sum(p.numel() for p in policy.parameters()),
    }
    policy.save_pretrained(out)
    (out / "sft.json").write_text(json.dumps(about, indent=1) + "\n")
    return about


class _Told:
    """How well a model does what it was not shown."""

    def __init__(self, config: TextSFTConfig, held_out: TextSampler) -> None:
        self.held_out = held_out
        n = len(held_out.prompts)
        shown, generator = range(min(config.check_demonstrations, n)), np.random.default_rng([config.seed, 1])
        self.data = demonstrated(held_out, shown, generator) if shown else None
        self.asked = np.arange(min(config.check_prompts, n))

    def now(self) -> dict[str, float]:
        told = {} if self.data is None else {"held out loss": mean_loss(self.held_out.policy, self.data)}
        return told | (self._success(greedy=False) if len(self.asked) else {})

    def at_last(self) -> dict[str, float]:
        return self._success(greedy=True) | {"success rate prompts": len(self.asked)} if len(self.asked) else {}

    def _success(self, *, greedy: bool) -> dict[str, float]:
        rate = float(self.held_out.rollout(self.asked, greedy=greedy).success.float().mean())
        return {"greedy success rate" if greedy else "success rate": rate}


def _batches(
    config: TextSFTConfig, sampler: TextSampler, generator: np.random.Generator, counts: Counter[str]
) -> Iterator[Experience]:
    """One for each gradient step: prompts in an order of their own at each pass, those of like length together."""
    step, first_of_last = 0, max(0, config.gradient_steps - config.last_steps)
    while step < config.gradient_steps:
        last = step >= first_of_last
        n = min(POOL, (config.gradient_steps if last else first_of_last) - step)
        options = config.last_options if last else {}
        starts = sampler.starts(n * config.batch_size).tolist()
        data = demonstrated(sampler, starts, generator, **options).by_length()
        counts["demonstrations"] += len(data)
        counts["left out"] += len(starts) - len(data)
        cuts = np.arange(0, len(data), config.batch_size)
        for first in generator.permutation(cuts):
            yield data[slice(int(first), int(first) + config.batch_size)]
        step += len(cuts)


def _schedule(config: TextSFTConfig, step: int) -> float:
    """The share of the peak learning rate that a gradient step takes."""
    return min((step + 1) / max(1, config.warmup), (config.gradient_steps - step) / config.gradient_steps)


def _policy(config: TextSFTConfig, task: Any) -> TextPolicy:
    dtype = getattr(torch, config.dtype)
    if config.model is not None:
        source = find_model(config.model)
        return TextPolicy(load_model(source), load_tokenizer(source), dtype=dtype)
    if not hasattr(task, "alphabet"):
        raise ValueError(
            f"the task {task.name} names no alphabet for a new model: say which to start from with --model"
        )
    tokenizer = character_tokenizer(task.alphabet)
    return TextPolicy(tiny_model(len(tokenizer), seed=config.seed), tokenizer, dtype=dtype)


if __name__ == "__main__":
    from sppo.llm.sft_command import main

    main()
