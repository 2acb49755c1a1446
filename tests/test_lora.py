"""Adapters: they start as nothing, alone learn, share the frozen model with the critic, and are saved both ways."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs the extra sppo[lora]")

from fake_text import toy_policy, toy_sampler
from peft import PeftModel
from safetensors.torch import load_file

from sppo.agents import PPO, SPPO
from sppo.llm.lora import CriticKind, LoRA, lora_critic_base, lora_policy
from sppo.llm.policy import TextPolicy, load_model
from sppo.llm.sampler import TextSampler
from sppo.llm.tokenizer import load_tokenizer

SMALL = LoRA(rank=4, alpha=8)
KINDS: tuple[CriticKind, ...] = ("full", "lora", "head")


def sampler_of(kind: CriticKind = "lora", seed: int = 0) -> TextSampler:
    policy = toy_policy(seed, spread=4.0)
    lora_policy(policy, SMALL, seed=seed)
    return toy_sampler(policy, critic=lambda: lora_critic_base(policy.model, kind, SMALL, seed=seed, layers=1))


def test_a_new_adapter_changes_no_probability() -> None:
    plain, adapted = toy_policy(spread=4.0), toy_policy(spread=4.0)
    sampler = toy_sampler(plain)
    traj = sampler.rollout(sampler.starts(6))
    lora_policy(adapted, SMALL, seed=0)
    assert torch.equal(adapted.evaluate(traj)[0], plain.evaluate(traj)[0])
    # 2 layers with 7 matrices: q, k, v, o of 32 x 32, gate and up of 85 x 32, down of 32 x 85
    per_layer = 4 * 4 * (32 + 32) + 3 * 4 * (32 + 85)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 2 * per_layer == 4856


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("agent", [PPO, SPPO])
def test_only_what_should_learns(agent: Any, kind: CriticKind) -> None:
    sampler = sampler_of(kind)
    made = agent(sampler, episodes_per_update=8, learning_rate=1e-2)
    before = {
        (network, name): p.clone()
        for network, module in (("policy", made.policy), ("critic", made.critic))
        for name, p in module.named_parameters()
    }
    made.train_once()
    moved = {key for key, p in before.items() if not torch.equal(getattr(made, key[0]).get_parameter(key[1]), p)}
    assert {name for network, name in moved if network == "policy"} == {
        name for network, name in before if network == "policy" and "lora_" in name
    }
    learns = {
        "full": lambda name: True,
        "lora": lambda name: "lora_" in name or name.startswith("head"),
        "head": lambda name: name.startswith("head"),
    }[kind]
    named = {name for network, name in before if network == "critic"}
    read = {name for name in named if learns(name)}
    assert {name for network, name in moved if network == "critic"} == read
    assert made.critic_learner.flat.numel() == sum(made.critic.get_parameter(name).numel() for name in read)


def test_three_critics_are_three_points_on_one_axis_of_memory() -> None:
    """Weights of the critic's own, and those with gradients and moments."""
    own, learn = [], []
    for kind in KINDS:
        sampler = sampler_of(kind)
        critic = sampler.start_critic("bce")
        policys = {p.data_ptr() for p in sampler.policy.parameters()}
        own.append(sum(p.numel() for p in critic.parameters() if p.data_ptr() not in policys))
        learn.append(sum(p.numel() for p in critic.parameters() if p.requires_grad))
    assert own == learn, "what does not learn is the policy's own"
    body = 8 * 32 + 4 * 32 * 32 + 3 * 32 * 85 + 3 * 32  # embeddings, one layer, three norms
    per_layer = 4 * 4 * (32 + 32) + 3 * 4 * (32 + 85)
    vocabulary = sampler_of().policy.model.config.vocab_size
    assert own == [body + (vocabulary - 8) * 32 + 33, per_layer + 33, 33]


def test_an_unadapted_policy_lends_its_critic_nothing() -> None:
    """Its weights move: features of a critic that shared them would move too."""
    policy = toy_policy()
    base = lora_critic_base(policy.model, "head", SMALL, seed=0)
    assert not any(p.requires_grad for p in base.parameters())
    assert all(p.requires_grad for p in policy.parameters())
    assert not {p.data_ptr() for p in base.parameters()} & {p.data_ptr() for p in policy.parameters()}


def test_saved_merged_and_as_an_adapter(tmp_path: Path) -> None:
    sampler = sampler_of()
    agent = SPPO(sampler, episodes_per_update=8, learning_rate=1e-2)
    agent.train_once()
    traj = sampler.rollout(sampler.starts(6))
    want = agent.policy.evaluate(traj)[0]
    agent.policy.save_pretrained(tmp_path)
    assert torch.equal(agent.policy.evaluate(traj)[0], want), "saving changes nothing"
    tokenizer = load_tokenizer(str(tmp_path))
    merged = TextPolicy(load_model(str(tmp_path)), tokenizer)
    torch.testing.assert_close(merged.evaluate(traj)[0], want, rtol=0, atol=1e-5)
    plain = toy_policy(spread=4.0)
    assert (plain.evaluate(traj)[0] - want).abs().max() > 1e-3
    adapted: Any = PeftModel.from_pretrained(plain.model, str(tmp_path / "adapter"))
    again = TextPolicy(adapted.base_model.model, tokenizer)
    torch.testing.assert_close(again.evaluate(traj)[0], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_bit_for_bit_from_small_files(kind: CriticKind, tmp_path: Path) -> None:
    one = SPPO(sampler_of(kind), episodes_per_update=8, kl_coef=0.01)
    one.train_once()
    one.save(tmp_path)
    saved = load_file(tmp_path / "agent.safetensors")
    frozen = [name for name, p in one.policy.named_parameters() if not p.requires_grad]
    assert frozen and not [name for name in frozen if f"policy/{name}" in saved or f"reference/{name}" in saved]
    two = SPPO.load(tmp_path, sampler_of(kind))
    for agent in (one, two):
        agent.train_once()
    assert torch.equal(one.learner.flat, two.learner.flat)
    assert torch.equal(one.critic_learner.flat, two.critic_learner.flat)


def test_a_reference_is_the_policy_before_it_learned() -> None:
    sampler = sampler_of()
    agent = SPPO(sampler, episodes_per_update=8, learning_rate=1e-2, kl_coef=0.01)
    traj = sampler.rollout(sampler.starts(6))
    with torch.no_grad():
        before = agent.policy.evaluate(traj)[0]
    for _ in range(2):
        agent.train_once()
    assert torch.equal(agent.ref_logprobs(traj), before)
    assert (agent.policy.evaluate(traj)[0] - before).abs().max() > 1e-3


def test_copies_are_saved_as_copies(tmp_path: Path) -> None:
    """A policy copied before it learns is saved with its own adapters, not with those of the first."""
    policy = sampler_of().policy
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.fill_(1.0)
    twin.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    plain = toy_policy(spread=4.0).model.state_dict()
    assert all(torch.equal(saved[name], plain[name]) for name in saved)


def test_bad_settings_are_told() -> None:
    with pytest.raises(ValueError, match="rank of LoRA must be positive, got 0"):
        LoRA(rank=0)


@pytest.mark.slow
def test_reward_rises() -> None:
    """More of 'a' than of 'b', by adapters alone."""
    sampler = sampler_of()
    agent = SPPO(sampler, episodes_per_update=32, learning_rate=1e-2, critic_learning_rate=1e-2)
    success: list[float] = []
    agent.learn(total_episodes=32 * 40, callback=lambda _, metrics: success.append(metrics["rollout/success_rate"]))
    assert np.mean(success[-5:]) > np.mean(success[:3]) + 0.3
