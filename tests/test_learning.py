"""Every algorithm learns: slow."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from small_agents import chain
from stable_baselines3.common.evaluation import evaluate_policy

from sppo.agents import AGENTS, PPO, ControlSampler
from sppo.envs import episodes


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_learns_the_chain(name: str) -> None:
    """Success needs all eight moves from position 0: the random policy has 6%."""
    env = chain(goal=8, start_spread=2)
    for seed in range(3):
        agent = AGENTS[name](env, seed=seed, learning_rate=3e-3, net_arch=(32, 32))
        first = agent.train_once()["rollout/success_rate"]
        agent.learn(total_episodes=64 * 30)
        held_out = ControlSampler(env, policy=agent.policy).rollout(np.arange(256))
        assert first < 0.2 and float(held_out.success.float().mean()) > 0.9


@pytest.mark.slow
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
