"""Switches that every algorithm has: the probability mask, the divergence from the start policy, critic warm-up."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from small_agents import SMALL, chain, grouped, learned_together_and_alone, told

from sppo.agents import AGENTS, DPO, GRPO, PPO, SPPO, ControlSampler, Reinforce, ReMax, Tracker, Trajectories
from sppo.agents.diagnostics import credit_metrics
from sppo.agents.groups import GroupAgent
from sppo.agents.sampling import AsSeen
from sppo.agents.stack import can_stack
from sppo.agents.update import minimise_all
from sppo.envs import episodes

WITH_CRITIC = [name for name, kind in AGENTS.items() if kind.critic_sees is not None]


def small(kind: Any, **settings: Any) -> Any:
    groups = {"num_generations": 4} if issubclass(kind, GroupAgent) else {}
    return kind(chain(), **SMALL | groups | settings)


# The probability mask.


def masked_batch() -> Any:
    """Rows of 2, 1 and 2 steps whose actions had these probabilities."""
    traj = told([1, 0, 1], lengths=[2, 1, 2])
    return replace(traj, logprobs=torch.tensor([[0.3, 0.9], [0.9, 0.1], [0.2, 0.4]]).log())


@pytest.mark.parametrize(
    ("aggregation", "weight", "share"),
    [
        ("token_mean", [[1, 0], [0, 0], [1, 1]], [[1, 0], [0, 0], [1, 1]]),
        ("sequence_mean", [[1, 0], [0, 0], [0.5, 0.5]], [[1, 0], [0, 0], [0.5, 0.5]]),
        # The chain's horizon is 8.
        ("constant_horizon", [[1 / 8, 0], [0, 0], [1 / 8, 1 / 8]], [[1, 0], [0, 0], [0.5, 0.5]]),
    ],
)
def test_masked_steps_neither_weigh_nor_count(aggregation: str, weight: Any, share: Any) -> None:
    experience = small(Reinforce, mask_threshold=0.5, aggregation=aggregation).credit(masked_batch())
    assert experience.weight.tolist() == weight and experience.share.tolist() == share
    unmasked = small(Reinforce, aggregation=aggregation).credit(masked_batch())
    assert torch.equal(experience.advantages, unmasked.advantages), "credit is the same"


def test_rows_that_are_masked_whole_do_not_reach_the_policy() -> None:
    agent = small(Reinforce, mask_threshold=0.5)
    assert len(agent.policy_experience(agent.credit(masked_batch()))) == 2


def test_a_step_critic_learns_from_masked_steps_too() -> None:
    agent = small(PPO, mask_threshold=0.5)
    data = agent.critic_experience(agent.credit(masked_batch()))
    assert data.weight.tolist() == data.share.tolist() == [[1, 1], [1, 0], [1, 1]]


def test_a_start_critic_learns_from_every_row_whatever_is_masked() -> None:
    agent = small(SPPO, mask_threshold=0.5)
    data = agent.critic_experience(agent.credit(masked_batch()))
    assert data.weight.tolist() == data.share.tolist() == [[1], [1], [1]]


def test_masked_steps_are_counted() -> None:
    """Of five steps, those of probability 0.9 twice."""
    experience = small(Reinforce, mask_threshold=0.5).credit(masked_batch())
    assert credit_metrics(experience)["credit/masked_steps"] == pytest.approx(2 / 5)


def test_continuous_actions_are_masked_by_their_rank() -> None:
    env = episodes("sppo/Pendulum-v0", horizon=25)
    agent = Reinforce(env, mask_threshold=0.3, **SMALL)
    traj = agent.sampler.rollout(agent.starts())
    carries = agent.credit(traj).weight > 0
    assert int(carries.sum()) == 60, "30 % of 8 x 25 steps"
    assert traj.logprobs[carries].max() < traj.logprobs[~carries & traj.valid].min()


@pytest.mark.parametrize("rho", [0.0, 1.0, 1.5, -0.1])
def test_thresholds_out_of_range(rho: float) -> None:
    with pytest.raises(ValueError, match=rf"mask_threshold must be in \(0, 1\) or None, got {rho}"):
        small(PPO, mask_threshold=rho)


# The divergence from the start policy.


def uniform(agent: Any) -> Any:
    """A policy of equal probabilities in place of the reference."""
    agent.freeze_reference()
    with torch.no_grad():
        agent.reference.weights[-1].zero_()
        agent.reference.biases[-1].zero_()
    return agent


@pytest.mark.parametrize(("estimator", "per_step"), [("k1", log(2)), ("k2", log(2) ** 2 / 2), ("k3", log(2) - 0.5)])
def test_rewards_are_charged_for_each_step(estimator: str, per_step: float) -> None:
    """Two actions, taken with probability 1, of which the reference gives each 1/2: d = log 2."""
    agent = uniform(small(Reinforce, kl_coef=0.1, kl_in="reward", kl_estimator=estimator))
    traj = agent.penalised(told([1, 0], lengths=[2, 1]))
    assert traj.outcomes.tolist() == pytest.approx([1 - 0.2 * per_step, -0.1 * per_step])
    assert traj.rewards[1, 1] == 0 and traj.success.tolist() == [True, False]
    in_loss = uniform(small(Reinforce, kl_coef=0.1, kl_estimator=estimator))
    assert in_loss.penalised(traj) is traj


def test_the_estimator_suits_where_the_divergence_goes() -> None:
    """d = log 2 as above: k1 in the reward; in the loss k3."""
    traj = told([1, 0], lengths=[2, 1])
    agent = uniform(small(Reinforce, kl_coef=0.1, kl_in="reward"))
    assert agent.penalised(traj).outcomes.tolist() == pytest.approx([1 - 0.2 * log(2), -0.1 * log(2)])
    assert small(Reinforce, kl_coef=0.1).policy_loss(agent.policy).kl_estimator == "k3"


def test_all_that_is_sampled_is_charged() -> None:
    """The greedy twin's reward too. Actions are certain, d = log 2 in each of 8 steps: R is 1 or 0, less 0.8 log 2."""
    agent = uniform(ReMax(chain(), kl_coef=0.1, kl_in="reward", **SMALL))
    with torch.no_grad():
        agent.policy.weights[-1].zero_()
        agent.policy.biases[-1][0, :, 0] = torch.tensor([0.0, 30.0])
    experience = agent.collect(AsSeen(agent.sampler, agent.penalised), agent.starts())
    assert experience.values is not None and isinstance(experience.traj, Trajectories)
    for outcomes in (experience.values[:, 0], experience.traj.outcomes):
        assert set((outcomes + 0.8 * log(2)).round(decimals=3).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_keeps_its_start_policy(name: str) -> None:
    """Also one whose start weights came after it was made; and the copy shares no storage."""
    agent = small(AGENTS[name], kl_coef=0.1, learning_rate=0.01)
    other = ControlSampler(chain(), seed=9, net_arch=(16,)).policy
    agent.policy.load_state_dict(other.state_dict())
    for i in range(2):
        metrics = agent.train_once()
        assert metrics["train/reference_kl"] >= 0
        assert i == 0 or metrics["train/reference_kl"] > 1e-5
    for key, tensor in other.state_dict().items():
        assert torch.equal(agent.reference.state_dict()[key], tensor), key
    assert not torch.equal(agent.policy.weights[0], other.weights[0])
    assert not any(p.requires_grad for p in agent.reference.parameters())


@pytest.mark.parametrize(("where", "estimator"), [("loss", "k2"), ("loss", "k3"), ("reward", "k1")])
def test_a_larger_coefficient_keeps_the_policy_closer(where: str, estimator: str) -> None:
    apart = []
    for coefficient in (1e-6, 3.0):
        agent = small(Reinforce, kl_coef=coefficient, kl_in=where, kl_estimator=estimator, learning_rate=3e-3)
        agent.learn(total_episodes=400)
        traj = agent.sampler.rollout(agent.sampler.starts(64))
        apart.append(float((traj.logprobs - agent.ref_logprobs(traj))[traj.valid].mean()))
    assert apart[0] > 0.1 and abs(apart[1]) < apart[0] / 4


def test_without_a_coefficient_nothing_is_kept() -> None:
    for kind, kept in ((GRPO, False), (DPO, True)):
        agent = small(kind)
        agent.train_once()
        assert (agent.reference is not None) == kept


def test_outcomes_that_are_no_probabilities_are_refused() -> None:
    for kind, message in ((SPPO, "use value_loss='squared_error'"), (Tracker, r"needs outcomes in \[0, 1\]")):
        agent = uniform(small(kind, kl_coef=0.5, kl_in="reward"))
        with torch.no_grad():
            agent.policy.biases[-1][0, :, 0] = torch.tensor([0.0, 5.0])
        with pytest.raises(ValueError, match=message):
            agent.train_once()
    small(SPPO, kl_coef=0.5, kl_in="reward", value_loss="squared_error").train_once()


def test_what_the_divergence_may_be() -> None:
    for wrong, message in (
        ({"kl_coef": -0.1}, "kl_coef must not be negative, got -0.1"),
        ({"kl_estimator": "k4"}, "kl_estimator must be one of k1, k2, k3, None, got 'k4'"),
        ({"kl_in": "both"}, "kl_in must be one of loss, reward, got 'both'"),
        ({"critic_warmup": -1}, "critic_warmup must not be negative, got -1"),
        ({"critic_width": 0}, "critic_width must be positive or None, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            small(PPO, **wrong)


# What the loss is told.


@pytest.mark.parametrize(
    ("settings", "told_so"),
    [
        ({}, (0.2, 0.2, 0, 0, "k3")),
        ({"clip_range": 0.1}, (0.1, 0.1, 0, 0, "k3")),
        ({"clip_range": 0.1, "clip_range_high": 0.3, "ent_coef": 0.01}, (0.1, 0.3, 0.01, 0, "k3")),
        ({"kl_coef": 0.5, "kl_estimator": "k2"}, (0.2, 0.2, 0, 0.5, "k2")),
        ({"kl_coef": 0.5, "kl_in": "reward"}, (0.2, 0.2, 0, 0, "k1")),  # charged once
    ],
    ids=str,
)
def test_settings_reach_the_loss(settings: dict[str, Any], told_so: tuple[Any, ...]) -> None:
    agent = small(PPO, **settings)
    loss = agent.policy_loss(agent.policy)
    assert (loss.clip_low, loss.clip_high, loss.ent_coef, loss.kl_coef, loss.kl_estimator) == told_so


@pytest.mark.parametrize("name", AGENTS)
def test_a_small_target_ends_the_update_of_every_agent(name: str) -> None:
    agent = small(AGENTS[name], target_kl=1e-9, learning_rate=0.01)
    assert max(agent.train_once()["train/early_stop"] for _ in range(4)) == 1
    assert agent.gradient_steps < 4 * 4


@pytest.mark.parametrize("settings", [{"ent_coef": 0.1}, {"kl_coef": 1.0}], ids=str)
def test_rows_without_advantage_are_not_skipped_where_they_teach(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = [small(GRPO, learning_rate=0.01, **settings) for _ in range(2)]
    for agent in agents:
        agent.freeze_reference()
        agent.update(agent.credit(grouped()))  # of eight rows half have no advantage
        monkeypatch.setattr(
            "sppo.agents.policy_and_critic.minimise_all",
            lambda *given, **named: minimise_all(*given, **named | {"skip_silent": False}),
        )
    assert torch.equal(agents[0].learner.flat, agents[1].learner.flat)


# Critic warm-up.


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_warm_up_is_for_the_critic_alone(name: str) -> None:
    agent = small(AGENTS[name], critic_warmup=2)
    for i in range(3):
        policy, critic = agent.learner.flat.clone(), agent.critic_learner.flat.clone()
        metrics = agent.train_once()
        assert torch.equal(agent.learner.flat, policy) == (i < 2)
        assert not torch.equal(agent.critic_learner.flat, critic)
        assert ("train/approx_kl" in metrics) == (i == 2) and metrics["train/value_loss"] > 0
        assert metrics["train/n_updates"] == (0 if i < 2 else 16)


def test_warm_up_needs_a_critic() -> None:
    for kind in (GRPO, Tracker):
        with pytest.raises(ValueError, match=f"needs a critic that learns by itself, and {kind.__name__} has none"):
            small(kind, critic_warmup=1)


# The critic's size.


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_critic_may_be_narrower_or_wider_than_its_policy(name: str, tmp_path: Path) -> None:
    """On the chain's two observations: 2 x 3 + 3 weights and biases, 3 x 3 + 3, and 3 + 1 of the value."""
    agent = small(AGENTS[name], net_arch=(16, 8), critic_width=3)
    assert agent.policy.net_arch == (16, 8) and agent.critic.net_arch == (3, 3)
    assert sum(p.numel() for p in agent.critic.parameters()) == 9 + 12 + 4
    agent.train_once()
    agent.save(tmp_path)
    loaded = AGENTS[name].load(tmp_path, chain())
    agent.train_once(), loaded.train_once()
    assert torch.equal(agent.critic_learner.flat, loaded.critic_learner.flat)


def test_a_critic_as_wide_as_the_policy_is_the_usual_one() -> None:
    usual, told_so = small(SPPO), small(SPPO, critic_width=16)
    assert torch.equal(usual.critic_learner.flat, told_so.critic_learner.flat)


def test_a_width_needs_a_critic_with_layers_of_its_own() -> None:
    for kind, settings, whose in ((Tracker, {}, "none"), (PPO, {"shared_network": True}, "the policy's layers")):
        with pytest.raises(ValueError, match=f"layers of its own, and {kind.__name__} has {whose}"):
            small(kind, critic_width=3, **settings)


# Together.


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    "settings",
    [
        {"mask_threshold": 0.6, "aggregation": "sequence_mean", "ent_coef": 0.01},
        {"kl_coef": 0.1, "kl_estimator": "k2", "normalize_advantage": True, "target_kl": 0.5},
        {"mask_threshold": 0.6, "kl_coef": 0.1, "aggregation": "constant_horizon"},
    ],
    ids=str,
)
def test_every_agent_has_every_switch(name: str, settings: dict[str, Any]) -> None:
    agent = small(AGENTS[name], **settings)
    before = agent.learner.flat.clone()
    agent.learn(total_episodes=24)
    assert not torch.equal(agent.learner.flat, before)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_coef": 0.3},
        {"kl_coef": 0.3, "kl_in": "reward"},
        {"mask_threshold": 0.5, "aggregation": "sequence_mean"},
        {"critic_warmup": 1},
        {"critic_width": 3},
    ],
    ids=str,
)
def test_stacked_is_alone_whatever_the_switches(settings: dict[str, Any]) -> None:
    env = episodes("sppo/PrecisionCartPole-v0", horizon=20, tolerance=8.0)
    made: dict[str, Any] = SMALL | {"learning_rate": 3e-3} | settings
    for a, b in learned_together_and_alone(lambda seed: PPO(env, seed=seed, **made)):
        torch.testing.assert_close(a.critic_learner.flat, b.critic_learner.flat, atol=2e-4, rtol=0)


def test_warm_ups_that_end_apart_cannot_be_stacked() -> None:
    env = chain()
    agents = [PPO(env, seed=seed, critic_warmup=2, **SMALL) for seed in range(2)]
    assert can_stack(agents)
    agents[0].train_once()
    assert not can_stack(agents)
    agents[1].train_once()
    assert can_stack(agents)


def test_the_reference_is_saved(tmp_path: Path) -> None:
    agent = small(PPO, kl_coef=0.1, learning_rate=0.01)
    agent.train_once()
    agent.save(tmp_path)
    loaded = PPO.load(tmp_path, chain())
    agent.train_once(), loaded.train_once()
    assert torch.equal(agent.learner.flat, loaded.learner.flat)
    for key, tensor in agent.reference.state_dict().items():
        assert torch.equal(loaded.reference.state_dict()[key], tensor)
        assert "obs" in key or not torch.equal(tensor, agent.policy.state_dict()[key])


# Text.


@pytest.mark.parametrize("name", ["grpo", "dpo", "sppo"])
def test_a_language_model_keeps_its_start_and_goes_on(name: str, tmp_path: Path) -> None:
    """Parameters that are views of one tensor are copied, tied weights stay tied, microbatches or not."""
    pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
    from fake_text import toy_sampler

    settings = {"episodes_per_update": 16, "n_epochs": 1, "n_minibatches": 2, "learning_rate": 1e-3, "kl_coef": 0.1}
    agents = []
    for size in (None, 3):
        agent = AGENTS[name](toy_sampler(), microbatch_size=size, **settings)
        start = {key: tensor.clone() for key, tensor in agent.policy.state_dict().items()}
        agent.train_once()
        for key, tensor in start.items():
            assert torch.equal(agent.reference.state_dict()[key], tensor), key
        agent.save(tmp_path / str(size))
        agents.append(agent)
    torch.testing.assert_close(agents[0].learner.flat, agents[1].learner.flat, atol=2e-5, rtol=0)
    again = AGENTS[name].load(tmp_path / "None", toy_sampler())
    metrics, others = agents[0].train_once(), again.train_once()
    assert metrics["train/reference_kl"] == others["train/reference_kl"] > 0
    assert torch.equal(again.learner.flat, agents[0].learner.flat)


def test_text_without_pairs_teaches_nothing() -> None:
    pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
    from fake_text import toy_sampler

    sampler = toy_sampler()
    sampler.task.score = lambda prompt, response: type("Score", (), {"reward": 0.0, "reason": "wrong"})()
    for name in ("dpo", "restem", "dapo"):
        agent = AGENTS[name](sampler, episodes_per_update=16, kl_coef=0.1)
        before = agent.learner.flat.clone()
        assert agent.train_once()["train/n_updates"] == 0
        assert torch.equal(agent.learner.flat, before)
