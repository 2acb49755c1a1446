"""Time, peak memory and FLOPs of a training step on text, part by part."""

from __future__ import annotations

import contextlib
import gc
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from llm_case import Case, make_agent

from sppo.agents import Agent
from sppo.experiments.shapes import Shape

PARTS = ("rollout", "old log-probabilities", "values", "update")


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
