"""One GRPO step here against one of TRL's GRPOTrainer: tokens per second and peak memory.

    python -m venv ../venv-trl
    ../venv-trl/bin/pip install -c constraints.txt -r benchmarks/requirements-trl.txt -e '.[llm]'
    ../venv-trl/bin/python benchmarks/against_trl.py

Both start from the weights of the model of arithmetic that ships, in float32 on one thread of a CPU, and take the same
prompts, 8 responses to each, of one length (nothing stops them), every other one right, temperature 1. A step generates
them, computes advantages (standard deviation with divisor G - 1), and takes one step of Adam on the clipped surrogate,
averaged over tokens, with no KL term, in the same microbatches and with gradients clipped to norm 1. Neither computes
old log-probabilities apart: TRL sees that there is one optimizer step per batch, and here they come with the tokens.

TRL generates through transformers with a cache. Its logging, checkpoints, progress bars, bfloat16 and gradient
checkpointing are off. What differs: TRL computes the entropy of every token for its metrics, keeps the padding of
prompts in the update, and generates with torch's fused attention too (--trl-attention eager for the other).

Each side has a process of its own, and they take turns, step by step; several pairs of processes follow each other,
since the peak of one pair depends on how the allocator happens to place things. Seconds are the processor's, so that
other work on the machine counts little. Memory is the rise of the resident set over that after a step of a small model,
which loads what is loaded at first use. With --return-freed the allocator gives all that is freed back to the system,
so that the peak is of what is in use, the same in every run, and speed suffers.

The last line is one JSON object with medians over all; bars: tokens_per_s_ratio at least 1, and peak_memory_ratio at
most 1, ours over TRL's. Where one is missed, the exit status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from llm_case import SHAPES, SameLength, new_model
from llm_measures import Memory

from sppo.agents import GRPO
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, load_model, tiny_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sources import find_model
from sppo.llm.tasks import make_task
from sppo.llm.tokenizer import load_tokenizer

G = 8
Turns = Callable[[], None]
"""Called before each step and after it, in turn."""


class Arithmetic(SameLength):
    """The first prompts of the task, with outcomes that do not depend on the responses."""

    def __init__(self, n: int) -> None:
        self._prompts = make_task("arithmetic", terms=(2, 3), operands=(1, 50)).prompts("train")[:n]


def our_steps(model: Any, args: argparse.Namespace, turn: Turns, steps: int) -> None:
    """Train with the agent here."""
    policy = TextPolicy(model, load_tokenizer(find_model("arithmetic")))
    engine = HFEngine(policy, stop_token_ids=[-1])
    sampler = TextSampler(Arithmetic(args.rows // G), policy, engine, max_completion_length=args.tokens)
    agent = GRPO(
        sampler,
        num_generations=G,
        episodes_per_update=args.rows,
        n_epochs=1,
        n_minibatches=1,
        microbatch_size=args.microbatch,
        std_correction=1,
        learning_rate=1e-6,
        max_grad_norm=1.0,
        adam_eps=1e-8,
    )
    for _ in range(steps):
        turn()
        metrics = agent.train_once()
        turn()
        assert metrics["rollout/ep_len_mean"] == args.tokens


def their_steps(model: Any, args: argparse.Namespace, turn: Turns, steps: int) -> None:
    """Train with TRL's trainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Each(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turn()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        assert {len(ids) for ids in completion_ids} == {args.tokens}
        return [float(i % 2) for i in range(len(completion_ids))]

    tokenizer = load_tokenizer(find_model("arithmetic"))
    # The stop token is the first id that the model does not know, so that nothing stops it.
    tokenizer.add_tokens([f"<{i}>" for i in range(len(tokenizer), model.config.vocab_size)])
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    model.generation_config.eos_token_id = None
    model.set_attn_implementation(args.trl_attention)
    prompts = [prompt.prompt for prompt in Arithmetic(args.rows // G).prompts("train")]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=steps,
            num_generations=G,
            per_device_train_batch_size=args.microbatch,
            gradient_accumulation_steps=args.rows // args.microbatch,
            max_completion_length=args.tokens,
            temperature=1.0,
            beta=0.0,
            epsilon=0.2,
            loss_type="dapo",
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict({"prompt": prompts * steps})
        GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Each()],
        ).train()


SIDES = {"ours": our_steps, "TRL": their_steps}


def work(side: str, args: argparse.Namespace) -> None:
    """A process of its own: one step for each line that it reads, answered with seconds and the peak so far."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    torch.set_num_threads(1)
    small = argparse.Namespace(**{**vars(args), "rows": G, "microbatch": G, "tokens": 2})
    SIDES[side](tiny_model(18, seed=0, hidden=16, layers=1, heads=1), small, lambda: None, 1)
    memory, started = Memory("cpu"), 0.0
    phases = itertools.cycle([True, False])

    def turn() -> None:
        nonlocal started
        if next(phases):
            if not sys.stdin.readline():
                os._exit(0)
            started = time.process_time()
        else:
            seconds = time.process_time() - started
            print(json.dumps({"seconds": seconds, "peak": memory.peak()}), file=answers, flush=True)

    model = load_model(find_model("arithmetic")) if args.shape is None else new_model(SHAPES[args.shape], "cpu")
    SIDES[side](model, args, turn, args.rounds + 1)


def take_turns(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Seconds and peak bytes of each side's steps after the first."""
    workers = {
        side: subprocess.Popen(
            [sys.executable, __file__, *argv, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL,
            text=True,
            env={**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if args.return_freed else {})},
        )
        for side in SIDES
    }
    told: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for i in range(args.rounds + 1):
        for side, worker in workers.items():
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
            if not answer:
                sys.exit(f"{side} has failed; --verbose shows why")
            if i:  # the first warms up; peaks are of all steps so far, so that it counts there
                told[side].append(json.loads(answer))
    for worker in workers.values():
        worker.communicate()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=64, help="responses of a step, a multiple of 8 (64)")
    parser.add_argument("--tokens", type=int, default=64, help="of a response (64)")
    parser.add_argument("--microbatch", type=int, default=16, help="rows of one forward and backward pass (16)")
    parser.add_argument("--rounds", type=int, default=5, help="steps after the one that warms up (5)")
    parser.add_argument("--pairs", type=int, default=3, help="of processes, one after the other (3)")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of a shape of llm_case.py")
    parser.add_argument("--trl-attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--return-freed", action="store_true", help="by the allocator to the system, at once (glibc)")
    parser.add_argument("--verbose", action="store_true", help="show what both sides write")
    args = parser.parse_args()
    if args.rows % G or args.rows % args.microbatch or args.rows < G:
        parser.error(f"--rows must be a multiple of {G} and of --microbatch, got {args.rows} and {args.microbatch}")
    if args.side is not None:
        work(args.side, args)
        return
    pairs = [take_turns(args, sys.argv[1:]) for _ in range(args.pairs)]
    tokens, mib = args.rows * args.tokens, 2**20
    for side in SIDES:
        rates = [tokens / step["seconds"] for pair in pairs for step in pair[side]]
        peaks = [pair[side][-1]["peak"] / mib for pair in pairs]
        print(
            f"{side:6s}{statistics.median(rates):10,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f})"
            f"{statistics.median(peaks):10,.1f} MiB ({min(peaks):,.1f} to {max(peaks):,.1f})"
        )
    faster = [b["seconds"] / a["seconds"] for pair in pairs for a, b in zip(pair["ours"], pair["TRL"], strict=True)]
    larger = [pair["ours"][-1]["peak"] / pair["TRL"][-1]["peak"] for pair in pairs]
    settings = ("rows", "tokens", "microbatch", "rounds", "pairs", "shape", "trl_attention", "return_freed")
    figures = {
        "tokens_per_s_ratio": round(statistics.median(faster), 3),
        "peak_memory_ratio": round(statistics.median(larger), 3),
        "peak_memory_ratios": [round(ratio, 3) for ratio in larger],
        "bars": {"tokens_per_s_ratio": "at least 1", "peak_memory_ratio": "at most 1"},
        **{name: getattr(args, name) for name in settings},
    }
    for missed in misses(figures):
        print(missed, file=sys.stderr)
    print(json.dumps(figures), flush=True)
    sys.exit(bool(misses(figures)))


def misses(figures: dict[str, Any]) -> list[str]:
    """The bars that the figures do not meet, in words."""
    met = {
        "tokens_per_s_ratio": figures["tokens_per_s_ratio"] >= 1,
        "peak_memory_ratio": figures["peak_memory_ratio"] <= 1,
    }
    return [f"{name} must be {figures['bars'][name]}, got {figures[name]}" for name, ok in met.items() if not ok]


if __name__ == "__main__":
    main()
