"""`sppo plan`: the memory of four algorithms side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from sppo.experiments.memory import GIB, PARTS, Plan, Sees, Setting, check_fits, plan
from sppo.experiments.shapes import shape_of

COLUMNS: tuple[tuple[str, Sees, bool], ...] = (
    ("ppo", "steps", False),
    ("sppo", "start", False),
    ("sppo-small", "start", True),
    ("grpo", None, False),
)
"""Name, what the critic sees, and whether it is the small one."""


def table(plans: list[Plan]) -> str:
    """Parts by plan in GiB; of what comes and goes the most that any phase has, so that columns exceed their peak."""
    rows = [["GiB per rank", *(p.name for p in plans)]]
    for part in PARTS:
        values = [p.held.get(part, 0) + p.most(part) for p in plans]
        if any(values):
            rows.append([part, *(f"{v / GIB:.2f}" for v in values)])
    rows.append(["peak", *(f"{p.peak / GIB:.2f}" for p in plans)])
    rows.append(["in", *(max(p.phases, key=lambda name, p=p: sum(p.phases[name].values())) for p in plans)])  # type: ignore[misc]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Print what each rank's memory will hold, before anything is run."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A save_pretrained folder, a model that ships, or one of: r1-distill-qwen-1.5b, r1-distill-qwen-7b, smollm2."""
    small_critic: str | None = None
    """The model whose shape the small critic has; by default MODEL's."""
    small_critic_layers: int | None = None
    """Of its layers, how many the small critic keeps; by default a quarter of MODEL's, all of another's."""
    setting: Annotated[Setting, tyro.conf.arg(name="")] = field(default_factory=Setting)
    device_gib: float | None = None
    """Refuse what does not fit into so much."""

    def __call__(self) -> None:
        policy = shape_of(self.model)
        small = shape_of(self.small_critic) if self.small_critic else policy
        layers = self.small_critic_layers or (small.layers if self.small_critic else max(1, policy.layers // 4))
        small = replace(small, layers=min(small.layers, layers))
        plans = []
        for name, sees, reduced in COLUMNS:
            setting = replace(self.setting, other_body=self.small_critic is not None) if reduced else self.setting
            plans.append(plan(policy, setting, sees, small if reduced else None, name=name))
        print(table(plans))
        if self.device_gib is not None:
            for made in plans:
                check_fits(made, int(self.device_gib * GIB))
