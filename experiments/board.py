"""What TensorBoard shows of runs beside their scalars: one page of charts, settings with final results, a video."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from sppo.agents import AGENTS

CHARTS = {
    "success": {
        "success on held-out starts [share]": "eval/success_rate",
        "success while training [share]": "rollout/success_rate",
        "episode length [steps]": "rollout/ep_len_mean",
    },
    "critic": {
        "squared error of V(s0), Brier": "critic/brier",
        "V(s0) tells success from failure, AUC [share]": "critic/auc",
        "explained variance": "train/explained_variance",
    },
    "credit": {
        "spread of advantages, standard deviation": "credit/advantage_std",
        "rows without signal [share]": "credit/rows_without_signal",
        "change of the policy, KL [nat]": "train/approx_kl",
    },
    "cost": {
        "seconds so far [s]": "time/seconds",
        "steps per second [1/s]": "time/fps",
        "sampling per update [s]": "time/rollout_seconds",
    },
}
"""The Custom Scalars tab: category -> chart -> tag. TensorBoard shows the same charts of many runs once."""
LAYOUT = {category: {title: ["Multiline", [f"{tag}$"]] for title, tag in of.items()} for category, of in CHARTS.items()}

FIRST_COLUMNS = ("agent", "critic_learning_rate", "env_id", "learning_rate", "seed")
"""Of the HPARAMS tab, which shows five unasked."""
VIDEO = "video"


@cache
def _columns() -> dict[str, float | str]:
    """All settings of all agents, each with any value of its type.

    TensorBoard takes the columns for all runs from one of them, which must then name other agents' settings too.
    """
    columns: dict[str, float | str] = {"agent": "", "env_id": ""}
    for agent in AGENTS.values():
        hints = typing.get_type_hints(agent.Config)
        for field in dataclasses.fields(agent.Config):
            kinds = {hints[field.name], *typing.get_args(hints[field.name])}
            columns[field.name] = 0.0 if kinds & {bool, int, float} else ""
    return columns


def session(settings: Mapping[str, Any], results: Mapping[str, float]) -> list[Any]:
    """A run's settings and final results as summaries for the HPARAMS tab; a setting of None is left blank."""
    values = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in settings.items()
        if value is not None
    }
    columns = {**{name: "" if isinstance(value, str) else 0.0 for name, value in values.items()}, **_columns()}
    experiment, _, _ = hparams(columns, dict(results))
    _, start, end = hparams(values, {})
    content = experiment.value[0].metadata.plugin_data
    described = HParamsPluginData.FromString(content.content)
    for info in described.experiment.hparam_infos:
        info.differs = info.name in FIRST_COLUMNS  # those come first
    content.content = described.SerializeToString()
    return [experiment, start, end]


def show_video(run: Path, gif: Path, size: tuple[int, int], step: int) -> None:
    """Put an animated GIF among a run's images, in the place of an earlier one."""
    ending = f".{VIDEO}"
    for earlier in run.glob(f"events.out.tfevents.*{ending}"):
        earlier.unlink()
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=gif.read_bytes())
    with SummaryWriter(str(run), filename_suffix=ending) as writer:
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=VIDEO, image=image)]), step)
