"""`sppo plan`: the memory of four algorithms side by side, or of one run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from sppo.experiments.config import read_config
from sppo.experiments.domains import resolve
from sppo.experiments.memory import GIB, Plan, Sees, Setting, plan
from sppo.experiments.room import check_fits, table
from sppo.experiments.shapes import shape_of
from sppo.experiments.tasks import TEXT

COLUMNS: tuple[tuple[str, Sees, bool], ...] = (
    ("ppo", "steps", False),
    ("sppo", "start", False),
    ("sppo-small", "start", True),
    ("grpo", None, False),
)
"""Name, what the critic sees, and whether it is the small one."""


def run_config(name: str) -> Path | None:
    """The config.json of a run, where it or its folder is named; a model's has no task."""
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    is_json = path.suffix == ".json" and path.is_file()
    return path if is_json and "env_id" in json.loads(path.read_text()) else None


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Print what each rank's memory will hold, before anything is run."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A save_pretrained folder, a model that ships, or one of: r1-distill-qwen-1.5b, r1-distill-qwen-7b, smollm2. Or a
    run's folder or config.json, which says everything but --device-gib and --on-gpu."""
    small_critic: str | None = None
    """The model whose shape the small critic has; by default MODEL's."""
    small_critic_layers: int | None = None
    """Of its layers, how many the small critic keeps; by default a quarter of MODEL's, all of another's."""
    setting: Annotated[Setting, tyro.conf.arg(name="")] = field(default_factory=Setting)
    device_gib: float | None = None
    """Refuse what does not fit into so much."""

    def __call__(self) -> None:
        plans = [self.of_run(path)] if (path := run_config(self.model)) else self.of_model()
        print(table(plans))
        if self.device_gib is not None:
            for made in plans:
                check_fits(made, int(self.device_gib * GIB))

    def of_run(self, path: Path) -> Plan:
        """Of the run that a config describes."""
        from sppo.experiments.text_memory import memory_plan

        asked = replace(self, model="", device_gib=None, setting=replace(self.setting, on_gpu=False))
        if asked != PlanCommand(model=""):
            raise ValueError(f"{path} says how the run is: with it only --device-gib and --on-gpu may be given")
        config = read_config(path)
        if not config.env_id.startswith(TEXT):
            raise ValueError(f"{path} must be of a run on text to have a memory plan, got {config.env_id}")
        if config.text.get("ranks") is None:  # what torchrun started is resolved, and cannot be without it
            config = resolve(config)
        return memory_plan(config, on_gpu=self.setting.on_gpu or None)

    def of_model(self) -> list[Plan]:
        """Of each algorithm."""
        policy = shape_of(self.model)
        small = shape_of(self.small_critic) if self.small_critic else policy
        layers = self.small_critic_layers or (small.layers if self.small_critic else max(1, policy.layers // 4))
        small = replace(small, layers=min(small.layers, layers))
        plans = []
        for name, sees, reduced in COLUMNS:
            setting = replace(self.setting, other_body=self.small_critic is not None) if reduced else self.setting
            plans.append(plan(policy, setting, sees, small if reduced else None, name=name))
        return plans
