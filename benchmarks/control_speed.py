"""How fast control runs, on one thread, as ratios within one run.

The training loops of PPO and SPPO against stable-baselines3's PPO: 64 parallel CartPole episodes of 200 steps, 64x64
networks of the same activation, 4 epochs of 4 minibatches of 3200 steps, five seeds side by side and the time per seed;
rollouts with policy and sampling against
EnvPool's bare CartPole with 64 environments. Gravity and force are turned down on both sides, so that every episode
lasts 200 steps whatever the policy. The contenders take turns, and medians over the rounds are compared.

    python benchmarks/control_speed.py [--rounds 9] [--activation relu]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.env_util import make_vec_env

from sppo.agents import PPO, SPPO
from sppo.agents.stack import Stack
from sppo.envs import episodes
from sppo.experiments.process import tune_process

N, T, SEEDS = 64, 200, 5
THEIRS = ("stable-baselines3 PPO", "EnvPool stepping")
CALM = {"gravity": 1e-6, "force": 0.01, "start_spread": 0.02}


def calm_cartpole() -> gym.Env:
    env = gym.make("CartPole-v1", max_episode_steps=T)
    env.unwrapped.gravity, env.unwrapped.force_mag = CALM["gravity"], CALM["force"]
    env.unwrapped.theta_threshold_radians = 1.0
    return env


def sb3(activation: str) -> Callable[[], None]:
    module = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[activation]
    model = SB3PPO(
        "MlpPolicy",
        make_vec_env(calm_cartpole, N),
        n_steps=T,
        batch_size=N * T // 4,
        n_epochs=4,
        policy_kwargs={"net_arch": [64, 64], "activation_fn": module},
        device="cpu",
    )
    return lambda: model.learn(N * T)


def stack(kind: type, activation: str) -> Stack:
    env = episodes("sppo/PrecisionCartPole-v0", **CALM)
    return Stack([kind(env, episodes_per_update=N, activation=activation, seed=seed) for seed in range(SEEDS)])


def ours(kind: type, activation: str) -> Callable[[], None]:
    agents = stack(kind, activation)

    def once() -> None:
        before = sum(agent.num_steps for agent in agents.agents)
        agents.train_once()
        assert sum(agent.num_steps for agent in agents.agents) - before == SEEDS * N * T, "an episode ended early"

    return once


def our_rollout(activation: str) -> Callable[[], None]:
    agents = stack(PPO, activation)
    return lambda: agents.rollout() and None


def envpool_steps() -> Callable[[], None]:
    import envpool

    env = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=N, num_threads=1)
    env.reset()
    actions = np.zeros(N, np.int32)

    def once() -> None:
        for _ in range(T):
            env.step(actions)

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--activation", choices=["relu", "tanh"], default="relu")
    args = parser.parse_args()
    tune_process()
    contenders = {
        "stable-baselines3 PPO": sb3(args.activation),
        "PPO": ours(PPO, args.activation),
        "SPPO": ours(SPPO, args.activation),
        "EnvPool stepping": envpool_steps(),
        "rollout": our_rollout(args.activation),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(args.rounds + 1):
        for name, once in contenders.items():
            started = time.perf_counter()
            once()
            if i:  # the first round warms up
                share = 1 if name in THEIRS else SEEDS
                seconds[name].append((time.perf_counter() - started) / share)
    print(f"{'':24s}{'steps/s':>10s}{'fastest':>10s}{'slowest':>10s}")
    for name, times in seconds.items():
        rates = [N * T / s for s in (statistics.median(times), min(times), max(times))]
        print(f"{name:24s}" + "".join(f"{rate:10,.0f}" for rate in rates))

    def ratio(ours: str, theirs: str) -> float:
        return round(statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)), 2)

    print(
        json.dumps(
            {
                "ppo_vs_sb3": ratio("PPO", "stable-baselines3 PPO"),
                "sppo_vs_sb3": ratio("SPPO", "stable-baselines3 PPO"),
                "rollout_vs_envpool": ratio("rollout", "EnvPool stepping"),
                "rounds": args.rounds,
                "activation": args.activation,
            }
        )
    )


if __name__ == "__main__":
    main()
