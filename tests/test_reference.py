"""The divergence from the policy as it was when learning began: where it is charged, and that the start is kept."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from small_agents import SMALL, chain, small, told

from sppo.agents import AGENTS, DPO, GRPO, PPO, SPPO, ControlSampler, Reinforce, ReMax, Tracker, Trajectories
from sppo.agents.sampling import AsSeen


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
    ):
        with pytest.raises(ValueError, match=message):
            small(PPO, **wrong)


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
