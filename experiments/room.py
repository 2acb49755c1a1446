"""Plans of memory as a table, and beside what there is."""

from __future__ import annotations

import os
from pathlib import Path

from sppo.experiments.memory import GIB, Plan

PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "critic",
    "engine",
    "activations",
    "logits",
    "KV cache",
    "gathered",
    "copy",
)


def table(plans: list[Plan]) -> str:
    """Parts by plan in GiB; of what comes and goes the most that any phase has, so that columns exceed their peak."""
    rows = [["GiB per rank", *(p.name for p in plans)]]
    for part in PARTS:
        values = [p.held.get(part, 0) + p.most(part) for p in plans]
        if any(values):
            rows.append([part, *(f"{v / GIB:.2f}" for v in values)])
    rows.append(["peak", *(f"{p.peak / GIB:.2f}" for p in plans)])
    rows.append(["in", *(max(p.phases, key=lambda name, p=p: sum(p.phases[name].values())) for p in plans)])  # type: ignore[misc]
    if any(p.host for p in plans):
        rows.append(["beside the GPU", *(f"{p.host / GIB:.2f}" for p in plans)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(lines)


def check_fits(made: Plan, device_bytes: int, host_bytes: int | None = None) -> None:
    """Refuse a plan that needs more than a device has, or, of what is offloaded, than a rank's share of the machine.

    Raises:
        ValueError: with the numbers, and what helps.
    """
    if host_bytes is not None and made.host > host_bytes:
        raise ValueError(
            f"{made.name} offloads {made.host / GIB:.1f} GiB per rank and the machine has {host_bytes / GIB:.1f} GiB "
            "of memory for each: more machines, a smaller critic or LoRA would help"
        )
    if made.peak <= device_bytes:
        return
    parts = {name: made.held.get(name, 0) + made.most(name) for name in PARTS}
    largest = sorted((name for name in parts if parts[name]), key=lambda name: -parts[name])[:4]
    raise ValueError(
        f"{made.name} needs {made.peak / GIB:.1f} GiB per rank and the device has {device_bytes / GIB:.1f} GiB: "
        + ", ".join(f"{name} {parts[name] / GIB:.1f}" for name in largest)
        + "; more ranks, a smaller microbatch, checkpointing, bfloat16, a smaller critic, LoRA or offload would help"
    )


def device_bytes(ranks_here: int = 1) -> int:
    """Memory of this process's GPU, or, without one, its share of the machine's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return machine_bytes(ranks_here)


def machine_bytes(ranks_here: int = 1) -> int:
    """This process's share of the machine's memory, or of what a container may take of it."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    container = Path("/sys/fs/cgroup/memory.max")
    if container.exists() and (limit := container.read_text().strip()).isdigit():
        there = min(there, int(limit))
    return there // ranks_here
