"""The interface of every agent: prediction, budgets, callbacks, settings, what it refuses."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_agents import CHAIN, SMALL, chain
from stable_baselines3.common.evaluation import evaluate_policy

from sppo.agents import AGENTS, PPO, SPPO, Agent, AgentConfig, ControlSampler
from sppo.agents.callbacks import CallbackList, CheckpointCallback, EvalCallback, StopTrainingOnSuccess
from sppo.envs import episodes


@pytest.mark.parametrize("name", AGENTS)
def test_evaluate_policy_of_stable_baselines3(name: str) -> None:
    agent = AGENTS[name](episodes("sppo/PrecisionCartPole-v0", horizon=20, tolerance=8.0), **SMALL)
    agent.learn(total_episodes=16)
    env = gym.make("sppo/PrecisionCartPole-v0", horizon=20, tolerance=8.0)
    for deterministic in (True, False):
        mean, spread = evaluate_policy(agent, env, n_eval_episodes=5, deterministic=deterministic, warn=False)  # type: ignore[arg-type]
        assert 0 <= mean <= 1 and spread >= 0


@pytest.mark.parametrize(("env_id", "limit"), [("CartPole-v1", 30), ("Pendulum-v1", 20)])
def test_evaluate_policy_on_environments_of_gymnasium(env_id: str, limit: int) -> None:
    agent = PPO(episodes(env_id, max_episode_steps=limit), **SMALL)
    agent.learn(total_episodes=8)
    env = gym.make(env_id, max_episode_steps=limit)
    rewards, lengths = evaluate_policy(agent, env, n_eval_episodes=4, return_episode_rewards=True, warn=False)  # type: ignore[arg-type]
    assert isinstance(lengths, list) and max(lengths) <= limit and len(rewards) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(("env_id", "shape", "dtype"), [(CHAIN, (), np.int64), ("sppo/Pendulum-v0", (1,), np.float32)])
def test_predict(env_id: str, shape: tuple[int, ...], dtype: type) -> None:
    agent = PPO(episodes(env_id), **SMALL)
    space = agent.sampler.env.single_observation_space
    state = ("anything",)
    for observation, expected in ((space.sample(), shape), (np.stack([space.sample()] * 3), (3, *shape))):
        action, same = agent.predict(observation, state=state, deterministic=True)
        assert np.shape(action) == expected and np.asarray(action).dtype == dtype and same is state
    again = agent.predict(observation.astype(np.float64).tolist(), deterministic=True)[0]
    np.testing.assert_array_equal(action, again)
    batch = np.stack([space.sample()] * 200)
    assert np.ptp(agent.predict(batch)[0]) > 0.5
    assert np.ptp(agent.predict(batch, deterministic=True)[0]) < 1e-6


def test_budgets() -> None:
    agent = PPO(chain(), **SMALL)
    assert agent.learn(total_episodes=20) is agent
    assert (agent.num_episodes, agent.n_updates, agent.num_steps) == (24, 3, 24 * 8)
    agent.learn(total_episodes=20)
    assert agent.n_updates == 3, "episodes seen before count"
    agent.learn(total_steps=200)
    assert (agent.num_steps, agent.n_updates) == (256, 4)
    agent.learn(total_episodes=10**6, total_steps=300)
    assert agent.n_updates == 5, "whichever is spent first"
    agent.learn(total_episodes=0)
    assert agent.n_updates == 5
    with pytest.raises(ValueError, match="learn needs total_episodes, total_steps or total_seconds"):
        agent.learn()


def test_progress_bar(capsys: Any) -> None:
    PPO(chain(), **SMALL).learn(total_episodes=16, progress_bar=True)
    assert "100%" in capsys.readouterr().err


def test_a_callback_ends_learning() -> None:
    calls: list[tuple[int, float]] = []

    def callback(agent: Agent, metrics: dict[str, float]) -> bool:
        calls.append((agent.n_updates, metrics["time/total_episodes"]))
        return agent.n_updates < 2

    PPO(chain(), **SMALL).learn(total_episodes=80, callback=callback)
    assert calls == [(1, 8), (2, 16)]
    calls.clear()
    other: list[int] = []
    PPO(chain(), **SMALL).learn(total_episodes=80, callback=[callback, lambda a, m: other.append(a.n_updates)])
    assert len(calls) == 2 and other == [1, 2], "those behind the one that stops are still told"
    assert CallbackList([]).on_update(PPO(chain(), **SMALL), {})


def test_eval_callback_looks_outside_the_budget() -> None:
    env, records = chain(), []
    agent = PPO(env, **SMALL)
    evaluation = EvalCallback(
        ControlSampler(chain(), policy=agent.policy), np.arange(32), eval_freq=16, on_eval=records.append
    )
    seen: list[dict[str, float]] = []
    agent.learn(total_episodes=40, callback=[evaluation, lambda a, m: seen.append(dict(m))])
    assert [record["episodes"] for record in records] == [0, 16, 32]
    assert ["eval/success_rate" in metrics for metrics in seen] == [False, True, False, True, False]
    assert agent.num_episodes == 40 and agent.sampler.counts["env_steps"] == 320
    plain = PPO(env, **SMALL)
    plain.learn(total_episodes=40)
    assert torch.equal(plain.learner.flat, agent.learner.flat), "evaluation changes nothing"
    again = evaluation.evaluate(agent)
    assert again["success_rate"] == evaluation.evaluate(agent)["success_rate"], "the same action noise every time"


def test_stop_on_success_and_checkpoints() -> None:
    env = chain(goal=2)  # the random policy succeeds nearly always
    agent = PPO(env, **SMALL)
    evaluation = EvalCallback(ControlSampler(env, policy=agent.policy), np.arange(32), eval_freq=16)
    saved: list[int] = []
    checkpoints = CheckpointCallback(lambda a: saved.append(a.n_updates), save_freq=2)
    agent.learn(total_episodes=800, callback=[evaluation, StopTrainingOnSuccess(evaluation, 0.5), checkpoints])
    assert agent.n_updates == 1, "the evaluation at the start is enough"
    assert saved == [1], "and the end is saved"
    agent.learn(total_episodes=40, callback=checkpoints)
    assert saved == [1, 2, 4, 5]


def test_metrics_of_an_update() -> None:
    metrics = SPPO(chain(), seed=1, **SMALL).train_once()
    assert metrics["rollout/ep_len_mean"] == 8 and metrics["rollout/truncated"] == 0
    assert metrics["rollout/success_rate"] == metrics["rollout/ep_rew_mean"]
    assert metrics["time/total_timesteps"] == metrics["time/steps_this_update"] == 64
    assert metrics["train/n_updates"] == 16
    wanted = "train/approx_kl train/clip_fraction train/policy_gradient_loss train/entropy_loss train/value_loss "
    wanted += "train/explained_variance train/grad_norm train/critic_grad_norm credit/advantage_std critic/brier "
    wanted += "credit/rows_without_signal time/fps"
    assert set(wanted.split()) <= metrics.keys()


@pytest.mark.parametrize("kind", AGENTS.values())
def test_settings_that_are_not_there_or_out_of_range(kind: type[Agent]) -> None:
    with pytest.raises(ValueError, match="unknown setting 'learning_rat'; did you mean 'learning_rate'"):
        kind(chain(), learning_rat=1e-3)
    with pytest.raises(ValueError, match="unknown setting 'qqq'; known: learning_rate, critic_learning_rate"):
        kind(chain(), qqq=1)
    for name in ("learning_rate", "episodes_per_update", "n_epochs", "clip_range", "n_steps", "target_kl"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            kind(chain(), **{name: 0})
    assert {field.name for field in fields(AgentConfig)} <= {field.name for field in fields(kind.Config)}


@pytest.mark.parametrize("name", AGENTS)
def test_only_a_critic_of_every_state_can_value_parts_of_episodes(name: str) -> None:
    if AGENTS[name].critic_sees == "steps":
        assert AGENTS[name](chain(), n_steps=5).stream is not None
    else:
        with pytest.raises(ValueError, match=f"{AGENTS[name].__name__} gives credit by the outcome of whole ones"):
            AGENTS[name](chain(), n_steps=5)


def test_aggregation_is_checked_before_anything_is_sampled() -> None:
    with pytest.raises(ValueError, match="aggregation must be one of token_mean, .* got 'mean'"):
        SPPO(chain(), aggregation="mean")
    sampler = ControlSampler(chain())
    sampler.horizon = None
    with pytest.raises(ValueError, match="aggregation='constant_horizon' needs a task with a horizon"):
        SPPO(sampler, aggregation="constant_horizon")
    with pytest.raises(ValueError, match="ent_coef must not be negative, got -1"):
        SPPO(chain(), ent_coef=-1)


def test_ppo_settings_out_of_range() -> None:
    for settings in ({"gamma": 1.5}, {"gae_lambda": -0.1}):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
            PPO(chain(), **settings)
    with pytest.raises(ValueError, match="value_loss must be 'squared_error' or 'bce', got 'mse'"):
        PPO(chain(), value_loss="mse")


def test_an_environment_of_the_wrong_kind() -> None:
    with pytest.raises(
        ValueError, match=r"got OrderEnforcing: wrap the id with sppo.envs.episodes\(id\)|got \w+: wrap"
    ):
        PPO(gym.make("CartPole-v1"))  # type: ignore[arg-type]


def test_a_sampler_may_be_handed_in() -> None:
    sampler = ControlSampler(chain(), seed=3, net_arch=(8,))
    agent = PPO(sampler, episodes_per_update=8)
    assert agent.sampler is sampler and agent.policy is sampler.policy
    agent.train_once()
    assert sampler.counts["episodes"] == 8


def test_a_policy_to_start_from() -> None:
    start = ControlSampler(chain(), seed=9, net_arch=(16,)).policy
    start.obs_mean.fill_(0.5)
    agent = SPPO(chain(), policy=start, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), start.parameters(), strict=True))
    before = [p.clone() for p in start.parameters()]
    agent.train_once()
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True)), "others may start from it"
    assert agent.critic.net_arch == (16,)
    assert torch.equal(agent.critic.obs_mean, start.obs_mean), "critics see observations as the policy does"


def test_seeds_matter_and_repeat() -> None:
    def weights(seed: int) -> torch.Tensor:
        agent = PPO(chain(), seed=seed, **SMALL)
        agent.learn(total_episodes=16)
        return agent.learner.flat

    torch.manual_seed(0)
    first = weights(1)
    torch.manual_seed(1)
    assert torch.equal(weights(1), first), "no global generator is read"
    assert not torch.equal(weights(2), first)


def test_a_huge_reward_names_the_network() -> None:
    inner = chain()
    step = inner.step

    def huge(actions: Any) -> Any:
        obs, rewards, *ends = step(actions)
        return obs, rewards * 1e38, *ends

    inner.step = huge
    with pytest.raises(FloatingPointError, match="the gradient of CategoricalPolicy is not finite"):
        PPO(inner, seed=0, **SMALL).train_once()


def test_action_spaces_that_are_not_supported() -> None:
    env = chain()
    env.single_action_space = spaces.MultiDiscrete([2, 2])
    with pytest.raises(ValueError, match="the action space must be Discrete"):
        PPO(env)


def test_nine_of_ten_successes_reach_a_threshold_of_nine_tenths() -> None:
    """In single precision 0.9 would be a little less."""

    class Sampler:
        generators: dict[str, np.random.Generator] = {}

        def rollout(self, starts: Any, greedy: bool) -> Any:
            success = torch.tensor([True] * 9 + [False])
            return SimpleNamespace(success=success, outcomes=success.float(), lengths=torch.ones(10))

    counters: Any = SimpleNamespace(num_episodes=0, num_steps=0, n_updates=0, seconds=0.0, cpu_seconds=0.0)
    evaluation = EvalCallback(Sampler(), range(10), eval_freq=1)
    assert evaluation.evaluate(counters)["success_rate"] >= 0.9
    assert StopTrainingOnSuccess(evaluation, 0.9).on_update(counters, {}) is False
