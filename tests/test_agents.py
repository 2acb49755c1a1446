"""The algorithms: their credit by hand, the identities between them, learning, prediction, budgets and callbacks."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from sppo.agents import (
    AGENTS,
    GRPO,
    PPO,
    PPOBCE,
    RLOO,
    SPPO,
    Agent,
    AgentConfig,
    ControlSampler,
    Reinforce,
    Tracker,
    Trajectories,
)
from sppo.agents.callbacks import CallbackList, CheckpointCallback, EvalCallback, StopTrainingOnSuccess
from sppo.agents.tracker import BetaTable
from sppo.agents.update import ValueLoss, minimise
from sppo.envs import episodes

CHAIN = "sppo/SparseChain-v0"
SMALL: dict[str, Any] = {"episodes_per_update": 8, "net_arch": (16,)}


def chain(**dials: Any) -> Any:
    return episodes(CHAIN, **dials)


def told(outcomes: list[float], lengths: list[int] | None = None, keys: list[int] | None = None) -> Trajectories:
    """Episodes with these outcomes, paid at their ends."""
    b = len(outcomes)
    length = torch.tensor(lengths or [2] * b)
    t = int(length.max())
    rewards, never = torch.zeros(b, t), torch.zeros(b, dtype=torch.bool)
    rewards[torch.arange(b), length - 1] = torch.tensor(outcomes, dtype=torch.float)
    return Trajectories(
        inputs=torch.rand(b, t + 1, 2, generator=torch.Generator().manual_seed(0)),
        actions=torch.zeros(b, t, dtype=torch.int64),
        logprobs=torch.zeros(b, t),
        valid=torch.arange(t) < length[:, None],
        rewards=rewards,
        terminated=~never,
        truncated=never,
        group=torch.arange(b),
        start_key=torch.tensor(keys or [-1] * b),
        success=rewards.sum(1) > 0,
    )


# Credit.


def test_reinforce_takes_off_the_mean_of_the_batch() -> None:
    experience = Reinforce(chain(), **SMALL).credit(told([1, 0, 0, 1, 1], [2, 1, 2, 2, 2]))
    # Five episodes, three successes: each counts once, whatever its length.
    expected = [[0.4, 0.4], [-0.6, 0], [-0.6, -0.6], [0.4, 0.4], [0.4, 0.4]]
    assert experience.advantages is not None
    assert experience.advantages.flatten().tolist() == pytest.approx(np.ravel(expected).tolist())
    assert Reinforce(chain(), **SMALL).critic is None


def test_beta_counts_by_hand() -> None:
    table = BetaTable(forgetting=0.5, prior_count=2)
    keys = torch.tensor([3, 3, 3, 5])
    assert table.value(keys).tolist() == [0.5] * 4
    table.observe(keys, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    # Start 3: s = 1/2 + 2, f = 1/2 + 1, p = 2.5 / 4. Start 5: s = 1/2, f = 1/2 + 1, p = 1/4.
    assert table.value(torch.tensor([3, 5, 7])).tolist() == [0.625, 0.25, 0.5]
    table.observe(torch.tensor([3]), torch.tensor([0.5]))
    # s = 5/4 + 1/2 = 7/4, f = 3/4 + 1/2 = 5/4; the outcome 1/2 counts half either way.
    assert table.value(torch.tensor([3, 5])).tolist() == pytest.approx([1.75 / 3, 0.25])


def test_tracker_uses_the_rate_before_the_batch() -> None:
    agent = Tracker(chain(), forgetting=1.0, prior_count=2, **SMALL)
    first = agent.credit(told([1, 1, 0, 1], keys=[1, 1, 2, -1]))
    assert first.advantages is not None and first.advantages[:, 0].tolist() == [0.5, 0.5, -0.5, 0.5]
    # Start 1: 3 of 4; start 2: 1 of 3; the shared entry: 2 of 3.
    again = agent.credit(told([0, 1, 0], keys=[1, 2, -1]))
    assert again.advantages is not None
    assert again.advantages[:, 0].tolist() == pytest.approx([-0.75, 2 / 3, -2 / 3])
    with pytest.raises(ValueError, match=r"Tracker needs outcomes in \[0, 1\], got \[0, 2\]; use Reinforce"):
        agent.credit(told([0, 2]))
    for settings in ({"forgetting": 0.0}, {"forgetting": 1.5}, {"prior_count": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Tracker(chain(), **settings)


def test_groups_by_hand() -> None:
    """Groups 7: 1, 0, 0, 0 and 9: 1, 1, among one another; group 8 alike."""
    traj = replace(told([1, 1, 0, 0, 0, 1, 0, 0]), group=torch.tensor([7, 9, 7, 7, 8, 9, 7, 8]))
    grpo, rloo = (kind(chain(), num_generations=4, **SMALL).credit(traj).advantages for kind in (GRPO, RLOO))
    assert grpo is not None and rloo is not None
    # Group 7: mean 1/4, standard deviation sqrt(3)/4 with divisor 4: 3/4 and -1/4 over it; groups all alike: 0.
    high, low = 3**0.5, -(3**-0.5)
    assert grpo[:, 0].tolist() == pytest.approx([high, 0, low, low, 0, 0, low, 0], abs=1e-5)
    # The siblings' mean: of the success 0, of each failure 1/3.
    assert rloo[:, 0].tolist() == pytest.approx([1, 0, -1 / 3, -1 / 3, 0, 0, -1 / 3, 0], abs=1e-6)


def test_groups_share_a_start() -> None:
    agent = GRPO(chain(slip=0.1), num_generations=4, **SMALL)
    traj = agent.sampler.rollout(agent.starts())
    assert torch.unique(traj.group, return_counts=True)[1].tolist() == [4, 4]
    for group in traj.group.unique():
        assert (traj.inputs[traj.group == group][:, 0] == traj.inputs[traj.group == group][:1, 0]).all()
    for settings in ({"num_generations": 1}, {"num_generations": 3}, {"n_steps": 5, "num_generations": 4}):
        with pytest.raises(ValueError, match="num_generations|groups need whole episodes"):
            GRPO(chain(), **SMALL | settings)


def test_sppo_credits_every_step_with_the_start_states_surprise() -> None:
    agent = SPPO(chain(), **SMALL)
    traj = told([1, 0], [2, 1])
    with torch.no_grad():
        for p in agent.critic.parameters():
            p.zero_()
        agent.critic.biases[-1].fill_(np.log(3))  # V = sigmoid(log 3) = 3/4 everywhere
    experience = agent.credit(traj)
    assert experience.advantages is not None and experience.value_targets is not None
    assert experience.advantages.flatten().tolist() == pytest.approx([0.25, 0.25, -0.75, 0])
    assert experience.value_targets.tolist() == [[1], [0]]
    moved = replace(traj, inputs=traj.inputs.clone())
    moved.inputs[:, 1:] = 7
    torch.testing.assert_close(agent.credit(moved).advantages, experience.advantages)


def test_ppo_without_values_is_the_outcome() -> None:
    agent = PPO(chain(), **SMALL)
    with torch.no_grad():
        for p in agent.critic.parameters():
            p.zero_()
    experience = agent.credit(told([1, 0], [2, 1]))
    assert experience.advantages is not None and experience.advantages.tolist() == [[1, 1], [0, 0]]


def test_whitening_is_of_the_batch() -> None:
    experience = Reinforce(chain(), normalize_advantage=True, **SMALL).credit(told([1, 0, 0, 1]))
    assert experience.advantages is not None
    assert float(experience.advantages.std()) == pytest.approx(1) and abs(float(experience.advantages.mean())) < 1e-6


# Identities.


@pytest.mark.parametrize(
    "settings", [{}, {"n_epochs": 2, "n_minibatches": 1}, {"aggregation": "sequence_mean"}], ids=str
)
def test_one_step_makes_ppo_with_cross_entropy_and_sppo_the_same(settings: dict[str, Any]) -> None:
    """T = 1 turns both into the same contextual bandit: equal in advantages, losses, weights, and what follows."""
    one_step = chain(horizon=1, goal=3)  # start 2 wins by action 1, starts 3 and 4 always, 0 and 1 never
    a, b = (kind(one_step, seed=4, learning_rate=0.01, **SMALL | settings) for kind in (PPOBCE, SPPO))
    assert torch.equal(a.critic_learner.flat, b.critic_learner.flat), "same seed, same critic"
    before = a.learner.flat.clone(), a.critic_learner.flat.clone()
    for _ in range(3):
        metrics, others = a.train_once(), b.train_once()
        for name in metrics:
            if "seconds" not in name and "fps" not in name:
                assert metrics[name] == pytest.approx(others[name], abs=1e-6, nan_ok=True), name
    torch.testing.assert_close(a.learner.flat, b.learner.flat, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.critic_learner.flat, b.critic_learner.flat, atol=1e-6, rtol=0)
    assert (a.learner.flat - before[0]).abs().max() > 0.01 and (a.critic_learner.flat - before[1]).abs().max() > 1e-3
    traj = a.sampler.rollout(np.arange(20))
    torch.testing.assert_close(a.credit(traj).advantages, b.credit(traj).advantages, atol=1e-6, rtol=0)


def test_more_steps_tell_them_apart() -> None:
    a, b = (kind(chain(), seed=4, learning_rate=0.01, **SMALL) for kind in (PPOBCE, SPPO))
    a.train_once(), b.train_once()
    assert not torch.allclose(a.learner.flat, b.learner.flat, atol=1e-4)


def test_sppo_refuses_outcomes_that_are_no_probabilities() -> None:
    env = episodes("CartPole-v1")
    with pytest.raises(ValueError, match=r"StartCritic with binary cross-entropy needs returns in \[0, 1\], got \[\d"):
        SPPO(env, **SMALL).train_once()
    with pytest.raises(ValueError, match="use value_loss='squared_error' instead"):
        PPOBCE(env, **SMALL).train_once()
    agent = SPPO(env, value_loss="squared_error", critic_learning_rate=0.05, n_epochs=10, **SMALL)
    errors = [agent.train_once()["train/value_loss"] for _ in range(6)]
    assert errors[-1] < errors[0], "the start critic learns returns of any size"


def test_cross_entropy_bears_rounded_targets() -> None:
    """A_t + V(s_t) is R but for rounding, which a network that is sure of failure carries below 0."""
    agent = PPOBCE(chain(), **SMALL)
    for bias in (-20.0, -3.0, 3.0, 20.0):
        with torch.no_grad():
            agent.critic.biases[-1].fill_(bias)
        agent.train_once()


# Critics against values known in closed form, under a fixed policy.


def fitted(agent: Agent, n: int, n_epochs: int, n_minibatches: int) -> Trajectories:
    """Fit the critic to n episodes of the random policy; nothing else learns."""
    with torch.no_grad():
        agent.policy.weights[-1].zero_()
        agent.critic.obs_mean.copy_(torch.tensor([[0.5, 0.5]]))  # inputs near 0 and 1 are quicker to fit
        agent.critic.obs_std.copy_(torch.tensor([[0.25, 0.25]]))
    traj = agent.sampler.rollout(agent.sampler.starts(n))
    data = agent.critic_experience(agent.credit(traj))
    for learning_rate in (0.01, 0.001):
        agent.critic_learner.optimizer.param_groups[0]["lr"] = learning_rate
        minimise(
            agent.critic_learner,
            ValueLoss(agent.critic),
            data,
            n_epochs=n_epochs,
            n_minibatches=n_minibatches,
            generator=np.random.default_rng(0),
        )
    return traj


@pytest.mark.parametrize("value_loss", ["bce", "squared_error"])
def test_start_critic_finds_the_values_of_the_chain(value_loss: str) -> None:
    env = chain()
    agent = SPPO(env, value_loss=value_loss, net_arch=(32,))
    traj = fitted(agent, 4000, 60, 8)
    position = (traj.inputs[:, 0, 0] * env.goal).round().long()
    values = agent.critic.value(traj)
    for x in range(5):
        truth = float(env.value(0.5, x, 0))
        here = position == x
        standard_error = (truth * (1 - truth) / int(here.sum())) ** 0.5
        error = float(values[here].mean()) - truth
        # Four standard errors of the mean that it was fitted to, and 0.01 for what the fit itself leaves.
        assert abs(error) < 4 * standard_error + 0.01, (
            f"V({x}) is off by {error:+.3f}, standard error {standard_error:.3f}"
        )
        assert float(values[here].std()) < 1e-6


@pytest.mark.parametrize("value_loss", ["bce", "squared_error"])
def test_step_critic_finds_the_values_of_the_chain(value_loss: str) -> None:
    env = chain()
    agent = PPO(env, value_loss=value_loss, net_arch=(32, 32))
    traj = fitted(agent, 4000, 15, 32)
    values = agent.critic.values(traj)[:, :-1]
    position = (traj.inputs[:, :-1, 0] * env.goal).round().long().numpy()
    t = np.broadcast_to(np.arange(env.horizon), position.shape)
    error = values.numpy() - env.value(0.5, position, t)
    counts = np.unique(position * 100 + t, return_counts=True)[1]
    typical = float(np.sqrt(0.25 / np.median(counts)))
    rms = float(np.sqrt((error**2).mean()))
    assert rms < 0.035, f"root mean square error {rms:.3f}; a state's own mean would have about {typical:.3f}"
    assert abs(error.mean()) < 4 * (0.25 / 4000) ** 0.5


# Learning.


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


# The interface.


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
    with pytest.raises(ValueError, match="learn needs total_episodes or total_steps"):
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
