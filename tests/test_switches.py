"""Switches that every algorithm has: the probability mask, what the loss is told, critic warm-up, all together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_agents import SMALL, chain, grouped, learned_together_and_alone, small, told

from sppo.agents import AGENTS, GRPO, PPO, SPPO, Reinforce, Tracker
from sppo.agents.diagnostics import credit_metrics
from sppo.agents.stack import can_stack
from sppo.agents.update import minimise_all
from sppo.envs import episodes

WITH_CRITIC = [name for name, kind in AGENTS.items() if kind.critic_sees is not None]


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


def test_a_warm_up_is_no_shorter_than_none() -> None:
    with pytest.raises(ValueError, match="critic_warmup must not be negative, got -1"):
        small(PPO, critic_warmup=-1)


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
    with pytest.raises(ValueError, match="critic_width must be positive or None, got 0"):
        small(PPO, critic_width=0)


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
