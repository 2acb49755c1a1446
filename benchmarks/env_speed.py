"""Stepping speed of our environments against EnvPool and Gymnasium's SyncVectorEnv, on one thread.

    python benchmarks/env_speed.py                     # ratios, medians over interleaved repeats
    python benchmarks/env_speed.py --random 2000       # success rate of the uniformly random policy over 2000 episodes

`vector`: the three vector environments do the same work, random actions with automatic resets. `lockstep`: our
`Episodes.step` alone, as a training rollout uses it while all rows run. Prints a table and, last, one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from sppo.envs import episodes

# Task, Gymnasium's id, EnvPool's id, rows, steps per repeat, a factor on random actions that keeps all rows alive.
TASKS = [
    ("PrecisionCartPole", "CartPole-v1", "CartPole-v1", 64, 400, None),
    ("MountainCar", "MountainCar-v0", "MountainCar-v0", 64, 400, None),
    ("Pendulum", "Pendulum-v1", "Pendulum-v1", 64, 400, 1.0),
    ("Hopper", "Hopper-v5", "Hopper-v5", 8, 200, 0.2),
    ("LunarLander", "LunarLander-v3", "LunarLander-v3", 16, 200, None),
]


def stepper(env: Any, actions: Any) -> Callable[[], None]:
    """One repeat of a vector environment."""

    def run() -> None:
        for a in actions:
            env.step(a)

    return run


def lockstep(env_id: str, actions: Any, rows: int) -> Callable[[], None]:
    """One repeat of our batch: started again every 20 steps, before a balanced CartPole falls."""
    batch = episodes(env_id)
    batch.begin(np.arange(rows))
    start = batch.snapshot()

    def run() -> None:
        for t, a in enumerate(actions):
            if t % 20 == 0:
                batch.restore(start)
            batch.step(a[: len(batch.running)])

    return run


def measure(repeats: int) -> list[dict[str, Any]]:
    """Microseconds per step of all rows, and ratios to ours, for each task."""
    table = []
    for name, theirs, pool_id, rows, steps, scale in TASKS:
        ours = gym.make_vec(f"sppo/{name}-v0", num_envs=rows)
        ours.reset(seed=0)
        rng = np.random.default_rng(0)
        space: Any = ours.unwrapped.single_action_space
        if isinstance(space, gym.spaces.Discrete):
            actions: Any = rng.integers(space.n, size=(steps, rows))
            calm = np.broadcast_to(np.arange(steps)[:, None] % 2, (steps, rows)) if "CartPole" in name else actions
        else:
            actions = rng.uniform(space.low, space.high, (steps, rows, *space.shape)).astype(np.float32)
            calm = (actions * scale).astype(np.float32)
        sync = gym.make_vec(theirs, num_envs=rows, vectorization_mode="sync")
        sync.reset(seed=0)
        runs = {
            "lockstep": lockstep(f"sppo/{name}-v0", calm, rows),
            "vector": stepper(ours, actions),
            "gymnasium": stepper(sync, actions),
        }
        if pool := make_pool(pool_id, rows):
            pool.reset()
            runs["envpool"] = stepper(pool, actions)
        times: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(repeats):  # interleaved, so that a busy machine slows all alike
            for key, run in runs.items():
                started = time.perf_counter()
                run()
                times[key].append((time.perf_counter() - started) / steps * 1e6)
        medians = {key: float(np.median(values)) for key, values in times.items()}
        row = {"task": name, "rows": rows, **{f"{k}_us": round(v, 1) for k, v in medians.items()}}
        for other in ("envpool", "gymnasium"):
            if other in medians:
                row[f"vector_vs_{other}"] = round(medians[other] / medians["vector"], 2)
                row[f"lockstep_vs_{other}"] = round(medians[other] / medians["lockstep"], 2)
        table.append(row)
        print("  ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    return table


def make_pool(pool_id: str, rows: int) -> Any:
    """EnvPool's environment on one thread, or None where EnvPool or the id is missing."""
    try:
        import envpool
    except ImportError:
        return None
    if pool_id not in envpool.list_all_envs():
        return None
    return envpool.make_gymnasium(pool_id, num_envs=rows, num_threads=1, seed=0)


def random_success(n: int) -> list[dict[str, Any]]:
    """Success rate of uniformly random actions over episodes 0, ..., n - 1."""
    table = []
    for name in [*(t[0] for t in TASKS), "SparseChain"]:
        batch = episodes(f"sppo/{name}-v0")
        rng = np.random.default_rng(0)
        won = steps = 0
        for first in range(0, n, 500):
            batch.begin(np.arange(first, min(first + 500, n)))
            space: Any = batch.single_action_space
            while m := len(batch.running):
                discrete = isinstance(space, gym.spaces.Discrete)
                batch.step(
                    rng.integers(space.n, size=m) if discrete else rng.uniform(space.low, space.high, (m, *space.shape))
                )
                steps += m
            won += int(batch.success.sum())
        row = {"task": name, "episodes": n, "successes": won, "rate": won / n, "mean_length": round(steps / n, 1)}
        table.append(row)
        print("  ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    return table


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="measure the random policy instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(random_success(options.random) if options.random else measure(options.repeats)))


if __name__ == "__main__":
    main()
