"""The command line of supervised fine-tuning."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm.auto import tqdm

from sppo.llm.sft import RECIPES, TextSFTConfig, fine_tune


def _pairs(words: list[str]) -> dict[str, Any]:
    """NAME VALUE ..., values as JSON where they are such."""
    if len(words) % 2:
        raise ValueError(f"names and values must come in pairs, got {' '.join(words)}")
    options: dict[str, Any] = {}
    for name, word in zip(words[::2], words[1::2], strict=True):
        try:
            options[name] = json.loads(word)
        except json.JSONDecodeError:
            options[name] = word
    return options


Options = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME VALUE ...",
        instance_from_str=_pairs,
        is_instance=lambda x: isinstance(x, dict),
        str_from_instance=lambda x: [word for name, value in x.items() for word in (name, json.dumps(value))],
    ),
]


@dataclass(frozen=True, kw_only=True)
class Command(TextSFTConfig):
    """Teach a model a task's demonstrations. Defaults are the task's."""

    out: Path
    """The folder to write: `sppo train --model FOLDER` starts from it."""
    task_options: Options = field(default_factory=dict)
    """The task's own (docs/TASKS.md), such as: terms [2,5] operands [1,20]"""
    last_options: Options = field(default_factory=dict)
    """Of the task's demonstrations."""


def main() -> None:
    """Run it."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--task", default="arithmetic")
    task = first.parse_known_args()[0].task
    try:
        command = tyro.cli(Command, default=Command(out=tyro.MISSING, **{"task": task, **RECIPES.get(task, {})}))
        settings = {f.name: getattr(command, f.name) for f in dataclasses.fields(TextSFTConfig)}
        settings["task_options"] = RECIPES.get(task, {}).get("task_options", {}) | command.task_options
        config = TextSFTConfig(**settings)
        about = fine_tune(config, command.out, report=tqdm.write, progress_bar=True)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"sft: {error}")
    print(json.dumps(about, indent=1))
