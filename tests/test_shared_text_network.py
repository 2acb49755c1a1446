"""A critic behind a language model's last layer: what learns from what, and what it cannot go with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import toy_sampler
from small_agents import learns_values_and_goes_on

from sppo.agents import PPO, PPOBCE, SPPO
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import resolve
from sppo.experiments.text_memory import memory_plan

KINDS = [PPO, PPOBCE, SPPO]
SMALL: dict[str, Any] = {"episodes_per_update": 16, "n_epochs": 2, "n_minibatches": 2, "learning_rate": 3e-3}
ONE_STEP: dict[str, Any] = SMALL | {"n_epochs": 1, "n_minibatches": 1}


def shared(kind: Any, **settings: Any) -> Any:
    return kind(toy_sampler(), shared_network=True, **SMALL | settings)


def experience_of(agent: Any) -> Any:
    return agent.credit(agent.sampler.rollout(agent.sampler.starts(16)))


@pytest.mark.parametrize("kind", KINDS)
def test_without_weight_the_policy_learns_as_with_two_networks(kind: Any) -> None:
    """With credit that no critic has a say in, and one minibatch, whose order does not matter."""
    agents = [shared(kind, vf_coef=0.0, **ONE_STEP), kind(toy_sampler(), **ONE_STEP)]
    for agent in agents:
        experience = experience_of(agent)
        outcomes = experience.traj.outcomes[:, None] * experience.traj.valid
        agent.update(replace(experience, advantages=outcomes))
    models = [agent.policy.model.state_dict() for agent in agents]
    for name, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_joint_gradient_is_the_sum_of_both(kind: Any) -> None:
    """Of one minibatch: that of the policy's loss and 0.3 times that of the critic's, the mean over the 16 prompts, or
    over all prefixes."""
    agent = shared(kind, vf_coef=0.3, **ONE_STEP | {"learning_rate": 1e-12, "max_grad_norm": 1e9})
    torch.nn.init.normal_(agent.policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    experience = experience_of(agent)
    agent.update(experience)
    joint = agent.learner.grad.clone()
    agent.learner.zero_grad()
    policy = agent.policy_experience(experience)
    (agent.policy_loss(agent.policy)(policy)[0].sum() / policy.share.sum()).backward()
    traj, heads, targets = experience.traj, [], []
    for i in range(16):  # a row at a time
        prompt, n = traj.inputs.ids[i, : traj.inputs.lengths[i]], 1 if kind is SPPO else int(traj.lengths[i])
        ids = torch.cat([prompt, traj.actions[i, : n - 1]])
        hidden = agent.policy.base(input_ids=ids[None]).last_hidden_state[0, len(prompt) - 1 :]
        heads.append(agent.policy.value_head(hidden).squeeze(1))
        targets.append(experience.value_targets[i, :n])
    functional = torch.nn.functional
    loss = functional.mse_loss if kind is PPO else functional.binary_cross_entropy_with_logits
    (0.3 * loss(torch.cat(heads), torch.cat(targets))).backward()
    torch.testing.assert_close(joint, agent.learner.grad, atol=1e-5, rtol=1e-3)
    assert float(joint.norm()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_values_and_goes_on_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    learns_values_and_goes_on(shared(kind), toy_sampler(), tmp_path)


def test_it_begins_where_it_is_told_and_is_no_part_of_the_model(tmp_path: Path) -> None:
    for kind in KINDS:
        agent = shared(kind)
        agent.critic.start_at(0.3)
        traj = agent.sampler.rollout(agent.sampler.starts(4))
        torch.testing.assert_close(agent.predicted(traj), torch.full((4,), 0.3))
    folders = [tmp_path / "shared", tmp_path / "apart"]
    for folder, one in zip(folders, (agent, SPPO(toy_sampler(), **SMALL)), strict=True):
        one.policy.save_pretrained(folder)
    shared_names, names = (load_file(folder / "model.safetensors").keys() for folder in folders)
    assert shared_names == names


def config(**more: Any) -> RunConfig:
    return resolve(RunConfig(env_id="text/arithmetic", settings={"shared_network": True}, **more))


def test_a_run_needs_no_second_model() -> None:
    assert config().text["critic_layers"] is None, "of the task's critic of its own"
    two = resolve(RunConfig(env_id="text/arithmetic"))
    assert "critic" not in memory_plan(config()).held and "critic" in memory_plan(two).held


@pytest.mark.parametrize(
    ("name", "value"), [("critic_layers", 2), ("critic", "elsewhere"), ("critic_kind", "head"), ("lora_rank", 4)]
)
def test_what_would_need_one_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"in a shared_network the critic is .*: {name} must be .*, got {value}"):
        config(text={name: value})
