"""Every algorithm learns: a chain, a task of the benchmark from its start policy, a toy text task. Slow."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from small_agents import chain
from stable_baselines3.common.evaluation import evaluate_policy

from sppo.agents import AGENTS, PPO, ControlSampler
from sppo.envs import episodes
from sppo.experiments.control import start_policy

pytestmark = pytest.mark.slow

CARTPOLE = "sppo/PrecisionCartPole-v0"
FOR_CARTPOLE: dict[str, dict[str, Any]] = {
    "remax": {"normalize_advantage": True},  # see its docstring
    "vineppo": {"stride": 50, "num_continuations": 4},  # fewer and longer segments than its defaults
    "spo-chain": {"cut_interval": 25, "num_continuations": 4},
}


def success(agent: Any, env: Any) -> float:
    """Of sampled actions from held-out starts."""
    sampler = ControlSampler(env, policy=agent.policy)
    return float(sampler.rollout(np.arange(256)).success.float().mean())


@pytest.mark.parametrize("name", AGENTS)
def test_learns_the_chain(name: str) -> None:
    """Success needs all eight moves from position 0: the random policy has 6%."""
    env = chain(goal=8, start_spread=2)
    for seed in range(3):
        agent = AGENTS[name](env, seed=seed, learning_rate=3e-3, net_arch=(32, 32))
        first = agent.train_once()["rollout/success_rate"]
        agent.learn(total_episodes=64 * 30)
        assert first < 0.2 and success(agent, env) > 0.9


@pytest.mark.parametrize("name", AGENTS)
def test_learns_precision_cartpole_from_a_start_policy(name: str) -> None:
    """The start policy succeeds in 8 % of episodes; 2560 episodes are an eighth of the published figure's."""
    env = episodes(CARTPOLE)
    agent = AGENTS[name](env, policy=start_policy(CARTPOLE), seed=0, **FOR_CARTPOLE.get(name, {}))
    assert success(agent, env) < 0.15
    agent.learn(total_episodes=2560)
    assert success(agent, env) > 0.4


def test_ppo_learns_dense_cartpole() -> None:
    agent = PPO(
        episodes("CartPole-v1"),
        n_steps=256,
        episodes_per_update=8,
        n_epochs=10,
        batch_size=256,
        learning_rate=1e-3,
        gamma=0.99,
        gae_lambda=0.95,
        normalize_advantage=True,
        activation="tanh",
    )
    agent.learn(total_steps=40_000)
    mean, _ = evaluate_policy(agent, gym.make("CartPole-v1"), n_eval_episodes=10, warn=False)  # type: ignore[arg-type]
    assert mean > 400
