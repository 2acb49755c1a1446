"""A critic behind the policy's hidden layers: what learns from what, and that all else is as with two networks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_agents import SMALL, chain, learned_together_and_alone, learns_values_and_goes_on

from sppo.agents import GRPO, PPO, PPOBCE, SPPO, ControlSampler, Tracker
from sppo.agents.batch import Experience
from sppo.agents.storage import load_policy, save_policy
from sppo.agents.update import ValueLoss

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


@pytest.mark.parametrize("kind", [PPO, SPPO])
@pytest.mark.parametrize("cut", [{"batch_size": 10}, {"n_minibatches": 12}])
def test_both_see_all_their_rows_once_in_each_pass(
    kind: Any, cut: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPPO has 8 starts for 12 minibatches."""
    agent = shared(kind, n_epochs=3, **cut)
    experience = agent.credit(agent.sampler.rollout(agent.sampler.starts(8)))
    targets = torch.linspace(0, 1, experience.value_targets.numel()).view_as(experience.value_targets)
    experience = replace(experience, value_targets=targets)  # which say the row
    taken, step, loss = [Counter[float]()], agent.learner.step, ValueLoss.__call__

    def noted(self: ValueLoss, batch: Experience) -> Any:
        assert batch.value_targets is not None
        taken[-1].update(batch.value_targets[batch.share > 0].tolist())
        return loss(self, batch)

    monkeypatch.setattr(ValueLoss, "__call__", noted)
    monkeypatch.setattr(agent.learner, "step", lambda *learns: (taken.append(Counter()), step(*learns))[1])
    assert agent.update(experience)["train/n_updates"] == len(taken) - 1
    valid = experience.traj.valid
    n = -(-int(valid.sum()) // 10) if "batch_size" in cut else 12
    assert len(taken) - 1 == 3 * n
    every = Counter(targets[valid].tolist() if kind is PPO else targets.flatten().tolist())
    for one_pass in range(3):
        assert sum(taken[one_pass * n : (one_pass + 1) * n], Counter()) == every


@pytest.mark.parametrize("kind", [PPO, SPPO])
@pytest.mark.parametrize("rows", [0, 1])
def test_values_are_learned_where_no_choice_carries_loss(kind: Any, rows: int) -> None:
    """With one step of one episode left of all, or none: one of its four minibatches at most moves the choice."""
    agent = shared(kind, n_epochs=3)
    experience = agent.credit(agent.sampler.rollout(agent.sampler.starts(8)))
    kept = torch.zeros_like(experience.weight)
    kept[:rows, 0] = 1
    before = agent.policy.value_weight.detach().clone()
    metrics = agent.update(replace(experience, weight=kept, share=kept))
    assert metrics["train/n_updates"] == 3 * (4 if rows else 1) and metrics["train/value_loss"] > 0
    assert not torch.equal(agent.policy.value_weight, before)


def adam_steps(learner: Any) -> int:
    return int(learner.optimizer.state[learner.flat]["step"])


@pytest.mark.parametrize("kind", KINDS)
def test_target_kl_stops_a_critic_in_the_policys_layers_and_no_other(kind: Any) -> None:
    """Of 16 minibatches."""
    settings = {"target_kl": 1e-9, "learning_rate": 0.01}
    agents = [shared(kind, **settings), kind(chain(), **SMALL | settings)]
    for agent in agents:
        metrics = agent.train_once()
        assert metrics["train/early_stop"] == 1
        assert 0 < adam_steps(agent.learner) == metrics["train/n_updates"] < 16
    assert agents[0].critic_learner is None and adam_steps(agents[1].critic_learner) == 16


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_values_and_goes_on_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    learns_values_and_goes_on(shared(kind, learning_rate=3e-3), chain(), tmp_path)


@pytest.mark.parametrize("kind", [PPO, SPPO])
def test_seeds_side_by_side_learn_what_each_learns_alone(kind: Any) -> None:
    env = chain()
    made: dict[str, Any] = SMALL | {"shared_network": True, "learning_rate": 3e-3}
    learned_together_and_alone(lambda seed: kind(env, seed=seed, **made))


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
    with pytest.raises(ValueError, match="critic_n_epochs needs a critic that learns by itself, and SPPO has the pol"):
        shared(SPPO, critic_n_epochs=2)
    for kind in (PPO, GRPO):
        with pytest.raises(ValueError, match=rf"in a shared_network, and {kind.__name__} has none: .* 0\.5, got 1"):
            kind(chain(), vf_coef=1.0, **SMALL)
