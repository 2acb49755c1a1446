"""How fast continuations run, on one thread: what VinePPO samples against PPO's rollout, per environment step.

Precision CartPole from its shipped start policy, 64 episodes; VinePPO with K = 9 continuations from every tenth step.
Its time has everything before the update in it: episodes with their states kept, restoring, continuations and credit.
The two take turns, and the median over the rounds of the ratio is given. Above 1.3 the exit status is 1.

    python benchmarks/continuation_speed.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from sppo.experiments.config import RunConfig
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.process import tune_process

BAR = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    tune_process()
    settings = {"vineppo": {"num_continuations": 9, "stride": 10}}
    ppo, vineppo = (
        make_agents(
            [resolve(RunConfig(agent=name, env_id="sppo/PrecisionCartPole-v0", settings=settings.get(name, {})))]
        )[0]
        for name in ("ppo", "vineppo")
    )

    def sample(agent: Any, collect: Any) -> float:
        """Nanoseconds per environment step."""
        before, started = agent.sampler.counts["env_steps"], time.perf_counter()
        collect(agent)
        return 1e9 * (time.perf_counter() - started) / (agent.sampler.counts["env_steps"] - before)

    contenders = {
        "PPO's rollout": (ppo, lambda agent: agent.sampler.rollout(agent.starts())),
        "VinePPO's collect": (vineppo, lambda agent: agent.collect(agent.sampler, agent.starts())),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(args.rounds + 1):
        for name, (agent, collect) in contenders.items():
            nanoseconds = sample(agent, collect)
            if i:  # the first round warms up
                taken[name].append(nanoseconds)
    print(f"{'ns per env step':24s}{'median':>10s}{'least':>10s}{'most':>10s}")
    for name, times in taken.items():
        print(f"{name:24s}{statistics.median(times):10,.0f}{min(times):10,.0f}{max(times):10,.0f}")
    theirs, ours = taken.values()
    ratio = statistics.median(b / a for a, b in zip(theirs, ours, strict=True))
    print(json.dumps({"vineppo_vs_ppo_rollout": round(ratio, 2), "bar": BAR, "rounds": args.rounds}))
    sys.exit(ratio > BAR)


if __name__ == "__main__":
    main()
