"""A critic behind the policy's hidden layers: what learns from what, and that all else is as with two networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_agents import SMALL, chain

from sppo.agents import GRPO, PPO, PPOBCE, SPPO, ControlSampler, Tracker
from sppo.agents.stack import can_stack, learn
from sppo.agents.storage import load_policy, save_policy

ONE_STEP = {"n_epochs": 1, "n_minibatches": 1}
KINDS = [PPO, PPOBCE, SPPO]


def shared(kind: Any, **settings: Any) -> Any:
    return kind(chain(), shared_network=True, **SMALL | settings)


@pytest.mark.parametrize("kind", KINDS)
def test_without_weight_the_policy_learns_as_with_two_networks(kind: Any) -> None:
    """With credit that no critic has a say in, and one minibatch, whose order does not matter."""
    agents = [shared(kind, vf_coef=0.0, **ONE_STEP), kind(chain(), **SMALL | ONE_STEP)]
    for agent in agents:
        traj = agent.sampler.rollout(agent.sampler.starts(8))
        experience = agent.credit(traj)
        agent.update(replace(experience, advantages=traj.outcomes[:, None] * traj.valid))
    for of_shared, of_two in zip(agents[0].policy.weights, agents[1].policy.weights, strict=True):
        torch.testing.assert_close(of_shared, of_two, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_values_move_the_hidden_layers_and_not_the_choice(kind: Any) -> None:
    """Without any advantage, the gradient is that of the values: none for the output layer of the actions."""
    agent = shared(kind, learning_rate=0.01)
    before = [w.detach().clone() for w in (*agent.policy.weights, agent.policy.value_weight)]
    experience = agent.credit(agent.sampler.rollout(agent.sampler.starts(8)))
    metrics = agent.update(replace(experience, advantages=torch.zeros_like(experience.advantages)))
    hidden, chosen, value = (
        torch.equal(old, new)
        for old, new in zip(before, (*agent.policy.weights, agent.policy.value_weight), strict=True)
    )
    assert (hidden, chosen, value) == (False, True, False)
    assert metrics["train/value_loss"] > 0 and metrics["train/n_updates"] == 16


def test_the_joint_gradient_is_the_sum_of_both() -> None:
    """Of one minibatch: that of the policy's loss and 0.3 times that of the mean cross-entropy at the 8 starts."""
    settings = ONE_STEP | {"learning_rate": 1e-12, "max_grad_norm": 1e9, "activation": "tanh"}  # relu has kinks
    agent = shared(SPPO, vf_coef=0.3, **settings)
    experience = agent.credit(agent.sampler.rollout(agent.sampler.starts(8)))
    agent.update(experience)
    joint = agent.learner.grad.clone()
    agent.learner.zero_grad()
    policy = agent.policy_experience(experience).steps()
    (agent.policy_loss(agent.policy)(policy)[0].sum() / policy.share.sum()).backward()
    logits = agent.policy.value_head(experience.traj.inputs[:, 0])
    values = torch.nn.functional.binary_cross_entropy_with_logits(logits, experience.value_targets[:, 0])
    (0.3 * values).backward()
    torch.testing.assert_close(joint, agent.learner.grad, atol=1e-6, rtol=1e-4)
    assert float(joint.norm()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_values_and_goes_on_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    agent = shared(kind, learning_rate=3e-3)
    losses = [agent.train_once()["train/value_loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    agent.save(tmp_path)
    loaded = kind.load(tmp_path, chain())
    for one in (agent, loaded):
        one.train_once()
    assert torch.equal(agent.learner.flat, loaded.learner.flat)


@pytest.mark.parametrize("kind", [PPO, SPPO])
def test_seeds_side_by_side_learn_what_each_learns_alone(kind: Any) -> None:
    env = chain()
    made: dict[str, Any] = SMALL | {"shared_network": True, "learning_rate": 3e-3}
    together, alone = ([kind(env, seed=seed, **made) for seed in range(3)] for _ in range(2))
    assert can_stack(together)
    learn(together, total_episodes=24)
    for a, b in zip(together, alone, strict=True):
        b.learn(total_episodes=24)
        torch.testing.assert_close(a.learner.flat, b.learner.flat, atol=2e-4, rtol=0)


def test_a_start_policy_needs_no_head(tmp_path: Path) -> None:
    """It keeps the head it has, and takes everything else."""
    start = ControlSampler(chain(), seed=9, net_arch=(16,)).policy
    save_policy(start, tmp_path / "start.safetensors", {})
    agent = shared(SPPO)
    head = agent.policy.value_weight.detach().clone()
    load_policy(agent.policy, tmp_path / "start.safetensors")
    assert torch.equal(agent.policy.weights[0], start.weights[0]) and torch.equal(agent.policy.value_weight, head)


def test_who_cannot_share() -> None:
    for kind in (GRPO, Tracker):
        with pytest.raises(ValueError, match=f"shared_network needs a critic, and {kind.__name__} has none"):
            shared(kind)
    with pytest.raises(ValueError, match="critic_warmup needs a critic that learns by itself, and PPO has the policy"):
        shared(PPO, critic_warmup=1)
    pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
    from fake_text import toy_sampler

    with pytest.raises(ValueError, match="shared_network is of control: critics of TextSampler are models apart"):
        SPPO(toy_sampler(), shared_network=True)
