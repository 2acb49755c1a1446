"""Time, model-FLOPs utilisation and peak memory of one training step on text, of each algorithm at one model shape.

The weights are random, every response has the same length (nothing stops it), and every other one is right, so each
step of each algorithm is the same work. A step is cut into rollout, old log-probabilities (recomputed by the policy, as
they are where an engine keeps its own copy of the weights), the critic's values, and the update of policy and critic.
Every algorithm has as many responses per step; GRPO's are groups of 8, so it sees an eighth of the prompts.

Each algorithm runs in a process of its own. On a CPU it has one thread, and seconds are the processor's, so that other
work on the machine counts little; memory is the rise of the resident set over that after a step of a model of next to
no size, which loads what is loaded at first use. On a GPU it is what torch allocated. Utilisation is the FLOPs that the
step needs (no recomputation, attention to earlier tokens alone) over the time that it takes, as a share of what one
large matrix product reaches in the same run.

    python benchmarks/llm_step.py
    python benchmarks/llm_step.py --shape 135m --device cuda --dtype bfloat16 --responses 256 --completion-length 512
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sppo.agents import AGENTS, Agent
from sppo.experiments.plots import COLOURS, STYLE
from sppo.experiments.shapes import SHAPES as PUBLISHED
from sppo.experiments.shapes import Shape
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, checkpoint_layers, critic_base
from sppo.llm.sampler import TextSampler
from sppo.llm.tasks.base import Prompt, Score
from sppo.llm.tokenizer import character_tokenizer

GIB = 2**30
TINY = Shape(hidden=128, layers=4, heads=4, kv_heads=4, head_dim=32, intermediate=341, vocab=512, tied=True)
SHAPES = {
    "tiny": TINY,
    "10m": Shape(hidden=256, layers=8, heads=8, kv_heads=8, head_dim=32, intermediate=688, vocab=8192, tied=True),
    "135m": PUBLISHED["smollm2"],
    "1.5b": PUBLISHED["r1-distill-qwen-1.5b"],
    "7b": PUBLISHED["r1-distill-qwen-7b"],
}
ALGORITHMS = {"ppo": "PPO", "sppo": "SPPO", "sppo-small": "SPPO, small critic", "grpo": "GRPO, N = 8"}
PARTS = ("rollout", "old log-probabilities", "values", "update")


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


class Memory:
    """Peaks of a device's memory, over what this process held when this was made.

    Raises:
        ValueError: where the system does not tell.
    """

    def __init__(self, device: str) -> None:
        self.cuda, self.status = device == "cuda", Path("/proc/self/status")
        if not self.cuda and not self.status.exists():
            raise ValueError(f"peak memory of a CPU is read from {self.status}, which only Linux has")
        gc.collect()
        self.before = 0 if self.cuda else self._resident("VmRSS")
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # where that is not allowed, peaks are those of all parts before too
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes, at most, since the last restart."""
        return torch.cuda.max_memory_allocated() if self.cuda else self._resident("VmHWM") - self.before

    def _resident(self, what: str) -> int:
        found = re.search(rf"{what}:\s+(\d+) kB", self.status.read_text())
        assert found
        return int(found[1]) * 1024


class Stopwatch:
    """Seconds and peak memory of named parts."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.memory.restart()
        started = self._now()
        yield
        self.seconds.setdefault(part, []).append(self._now() - started)
        self.peaks[part] = max(self.peaks.get(part, 0), self.memory.peak())

    def _now(self) -> float:
        if self.memory.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() if self.memory.cuda else time.process_time()


def step(agent: Agent, watch: Stopwatch) -> None:
    """One training step, part by part."""
    starts = agent.starts()
    with watch("rollout"):
        traj = agent.sampler.rollout(starts)
    with watch("old log-probabilities"):
        traj = agent.sampler._recomputed(traj, greedy=False)
    with watch("values"):
        experience = agent.credit(traj)
    with watch("update"):
        agent.update(experience)


def measure(case: Case) -> dict[str, Any]:
    """Median seconds and peak bytes of each part."""
    watch = Stopwatch(Memory(case.device))
    agent = make_agent(case)
    for i in range(case.rounds + 1):
        step(agent, watch)
        if i == 0:
            watch.seconds.clear()  # the first warms up; its memory counts
    return {"seconds": {p: statistics.median(watch.seconds[p]) for p in PARTS}, "peaks": watch.peaks}


def forward_flops(shape: Shape, n: int, *, outputs: int = 0) -> int:
    """FLOPs of reading n tokens of a row, each attending to itself and those before it, and of the distribution over
    next tokens at so many of them: two per weight of a matrix and token, four per query's width and pair of tokens."""
    matrices = shape.hidden * (2 * shape.queries + 2 * shape.keys + 3 * shape.intermediate)
    pairs = n * (n + 1) // 2
    return shape.layers * (2 * matrices * n + 4 * shape.queries * pairs) + 2 * shape.vocab * shape.hidden * outputs


def step_flops(case: Case) -> dict[str, int]:
    """FLOPs that each part needs; a backward pass needs twice its forward pass's."""
    prompt, new = case.prompt_length, case.completion_length
    policy = forward_flops(case.policy, prompt + new, outputs=new)
    values = update = 0
    if case.body is not None:
        values = forward_flops(case.body, prompt + new if case.algorithm == "ppo" else prompt)
        update = 3 * values
    rollout = forward_flops(case.policy, prompt + new - 1, outputs=new)
    each = {"rollout": rollout, "old log-probabilities": policy, "values": values, "update": 3 * policy + update}
    return {part: case.responses * n for part, n in each.items()}


def matmul_rate(device: str, dtype: str) -> float:
    """FLOPs per second of a large matrix product, the best of ten."""
    n = 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    out = torch.empty_like(a)
    best = float("inf")
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(10):
        started = clock()
        torch.mm(a, a, out=out)
        float(out[0, 0])  # waits for a GPU
        best = min(best, clock() - started)
    return 2 * n**3 / best


def work(job: dict[str, Any]) -> Any:
    """What a process of its own does."""
    torch.set_num_threads(1)
    if "matmul" in job:
        return matmul_rate(**job["matmul"])
    case = Case(**{**job, "policy": Shape(**job["policy"]), "critic": Shape(**job["critic"])})
    mini = replace(TINY, hidden=16, layers=1, heads=1, kv_heads=1, head_dim=16, intermediate=16, vocab=16)
    # Loads what is loaded at first use, code above all, before the memory of the process is taken as zero.
    measure(replace(case, policy=mini, critic=mini, responses=8, prompt_length=4, completion_length=4, rounds=1))
    return measure(case)


def in_own_process(job: dict[str, Any], device: str) -> Any:
    """The answer of a process that does this job, or None where it fails, with the end of its errors shown."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **hidden})
    if done.returncode:
        print("\n".join(done.stderr.splitlines()[-3:]), file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def figures_of(case: Case, measured: dict[str, Any], rate: float) -> dict[str, Any]:
    """What is reported of one algorithm."""
    seconds, flops = measured["seconds"], step_flops(case)
    total = sum(seconds.values())
    return {
        "seconds": {part: round(s, 6) for part, s in seconds.items()},
        "step_seconds": round(total, 6),
        "tokens_per_s": round(case.responses * case.completion_length / total, 1),
        "mfu": round(sum(flops.values()) / total / rate, 4),
        "mfu_of_parts": {part: round(flops[part] / seconds[part] / rate, 4) for part in PARTS if flops[part]},
        "peak_gib": {part: round(n / GIB, 4) for part, n in measured["peaks"].items()},
        "step_peak_gib": round(max(measured["peaks"].values()) / GIB, 4),
    }


def table(figures: dict[str, Any]) -> str:
    """One row per algorithm."""
    rows = [["", *(f"{part}, s" for part in PARTS), "step, s", "tokens/s", "MFU", "peak, GiB", "in"]]
    for name, f in figures.items():
        peak_in = max(f["peak_gib"], key=f["peak_gib"].get)
        seconds = [f"{s:.3g}" for s in (*f["seconds"].values(), f["step_seconds"])]
        rest = [f"{f['tokens_per_s']:,.0f}", f"{f['mfu']:.1%}", f"{f['step_peak_gib']:.3g}", peak_in]
        rows.append([ALGORITHMS[name], *seconds, *rest])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)


def draw(figures: dict[str, Any], path: Path, title: str) -> None:
    """Bars of time, part upon part, and of peak memory."""
    names = [ALGORITHMS[name] for name in figures]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        time_axes, memory_axes = figure.subplots(1, 2)
        below = np.zeros(len(names))
        for part, colour in zip(PARTS, COLOURS, strict=False):
            seconds = np.array([f["seconds"][part] for f in figures.values()])
            time_axes.bar(names, seconds, bottom=below, color=colour, label=part, width=0.6)
            below += seconds
        time_axes.set_ylabel("seconds per step")
        time_axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
        peaks = [f["step_peak_gib"] for f in figures.values()]
        memory_axes.bar_label(memory_axes.bar(names, peaks, color=COLOURS[5], width=0.6), fmt="%.3g")
        memory_axes.set_ylabel("peak memory, GiB")
        for axes in (time_axes, memory_axes):
            axes.tick_params(axis="x", labelsize=8)
            axes.grid(axis="x", visible=False)
        figure.suptitle(title, fontsize=9.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=144)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument(
        "--critic-shape", choices=SHAPES, help="of the small critic: 1.5b for 7b, else a quarter of the policy's layers"
    )
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    for name, value, text in (
        ("responses", 64, "of a step, a multiple of 8"),
        ("prompt-length", 32, "tokens"),
        ("completion-length", 64, "tokens"),
        ("generation-batch", 256, "responses generated side by side"),
        ("microbatch", 16, "rows of one forward and backward pass"),
        ("rounds", 5, "steps after the one that warms up"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sharded", action="store_true", help="FSDP on one rank, as it always is on a GPU")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--offload", action="store_true", help="weights, gradients and moments rest with the CPU")
    parser.add_argument("--png", type=Path, default=Path("runs/llm_step.png"))
    args = parser.parse_args(argv)
    if args.responses % 8 or args.responses < 8:
        parser.error(f"--responses must be a multiple of 8, got {args.responses}")
    args.sharded |= args.device == "cuda"
    if args.offload and not args.sharded:
        parser.error("--offload needs --sharded")
    return args


def small_critic(shape: str, named: str | None) -> Shape:
    """The small critic's shape; it reads the policy's tokens, so it has the policy's vocabulary."""
    policy, named = SHAPES[shape], named or {"7b": "1.5b"}.get(shape)
    if named is None:
        return replace(policy, layers=max(1, policy.layers // 4))
    return replace(SHAPES[named], vocab=policy.vocab)


def main() -> None:
    args = parse()
    if args.job is not None:
        print(json.dumps(work(json.loads(args.job))))
        return
    settings = {name: value for name, value in vars(args).items() if name in Case.__dataclass_fields__}
    shapes = {"policy": SHAPES[args.shape], "critic": small_critic(args.shape, args.critic_shape)}
    rate = in_own_process({"matmul": {"device": args.device, "dtype": args.dtype}}, args.device)
    if rate is None:
        sys.exit(f"no matrix product on {args.device}")
    figures, failed = {}, []
    for name in args.algorithms:
        case = Case(algorithm=name, **shapes, **settings)
        measured = in_own_process(asdict(case), args.device)
        if measured is None:
            failed.append(name)
        else:
            figures[name] = figures_of(case, measured, rate)
    about = (
        f"{args.shape}, {shapes['policy'].weights / 1e6:,.3g}M weights, on {args.device}, {args.dtype}: "
        f"{args.responses} responses of {args.completion_length} tokens to prompts of {args.prompt_length}"
    )
    if figures:
        print(f"{about}\n{table(figures)}")
        print(f"100% of MFU: {rate / 1e9:,.0f} GFLOP/s, the best of ten large {args.dtype} matrix products")
        draw(figures, args.png, about)
    options = {k: v for k, v in vars(args).items() if k not in ("job", "png", "algorithms")}
    print(json.dumps({**options, "matmul_gflops": round(rate / 1e9, 1), "algorithms": figures, "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
