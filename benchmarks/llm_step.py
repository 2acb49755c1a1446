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
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from llm_case import SHAPES, TINY, Case, small_critic
from llm_measures import PARTS, matmul_rate, measure, step_flops
from matplotlib.figure import Figure

from sppo.experiments.plots import COLOURS, STYLE
from sppo.experiments.shapes import Shape

GIB = 2**30
ALGORITHMS = {"ppo": "PPO", "sppo": "SPPO", "sppo-small": "SPPO, small critic", "grpo": "GRPO, N = 8"}


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
