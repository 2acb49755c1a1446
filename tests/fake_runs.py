"""Run folders as a comparison leaves them, made of a formula instead of training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

CARTPOLE = "sppo/PrecisionCartPole-v0"


def write_run(
    out: Path,
    agent: str,
    seed: int,
    *,
    env_id: str = CARTPOLE,
    nested: bool = False,
    half: float = 3000.0,
    top: float = 0.98,
    episodes: int = 20_000,
    success: list[float] | None = None,
    finished: bool = True,
) -> Path:
    """Success rises as top / (1 + exp(...)) around `half` episodes, or takes the values given, evenly spaced."""
    rng = np.random.default_rng([seed, len(agent), int(half)])
    folder = (out / env_id.split("/")[-1] if nested else out) / agent / f"seed{seed}"
    folder.mkdir(parents=True)
    x = np.linspace(0, episodes, 21 if success is None else len(success))
    if success is None:
        half *= rng.uniform(0.8, 1.2)
        y = np.clip(top / (1 + np.exp((half - x) / 1500)) + rng.normal(0, 0.015, len(x)), 0, 1)
    else:
        y = np.array(success)
    steps = x * 200
    config = {
        "agent": agent,
        "env_id": env_id,
        "seed": seed,
        "episodes": episodes,
        "hyper": {"learning_rate": 3e-4, "gae_lambda": 1.0, "critic": "start" if agent == "sppo" else "step"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "evals.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["episodes", "env_steps", "seconds", "success_rate", "mean_return"])
        writer.writerows(np.stack([x, steps, steps / 1e5 * rng.uniform(0.9, 1.1), y, y], axis=1).tolist())
    with (folder / "progress.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time/total_episodes", "rollout/success_rate", "train/approx_kl", "critic/auc"])
        for i, n in enumerate(np.linspace(64, episodes, 60)):
            # a metric that is not recorded at every update
            auc = 0.5 + 0.4 * n / episodes if i % 3 == 0 else ""
            writer.writerow([n, float(np.interp(n, x, y)), 0.01 * rng.random(), auc])
    if finished:
        result = {
            "success_rate": float(y[-1]),
            "episodes": episodes,
            "env_steps": steps[-1],
            "seconds": steps[-1] / 1e5,
        }
        (folder / "result.json").write_text(json.dumps(result | {"finished": True}))
    return folder
