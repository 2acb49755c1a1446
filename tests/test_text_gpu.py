"""A language model on a GPU does what it does on the CPU, with rows and results where the agents keep them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs the extra sppo[lora]")

from fake_text import toy_policy, toy_sampler

from sppo.agents import PPO, SPPO
from sppo.llm.lora import LoRA, lora_critic_base, lora_policy
from sppo.llm.policy import critic_base
from sppo.llm.sampler import TextSampler

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

DEVICES = ("cpu", "cuda")
both = pytest.mark.parametrize("lora", [False, True])


def sampler_on(device: str, lora: bool) -> TextSampler:
    policy = toy_policy(spread=3).to(device)

    def critic() -> Any:
        if lora:
            return lora_critic_base(policy.model, "lora", LoRA(rank=4), seed=1, layers=1)
        return critic_base(policy.model, layers=1)

    if lora:
        lora_policy(policy, LoRA(rank=4), seed=0)
    return toy_sampler(policy, critic=critic)


@both
def test_greedy_answers_are_the_same_and_sampled_ones_have_the_policys_probabilities(lora: bool) -> None:
    one, two = (sampler_on(device, lora).rollout(np.arange(16), greedy=True) for device in DEVICES)
    assert torch.equal(one.actions, two.actions)
    torch.testing.assert_close(one.logprobs, two.logprobs, rtol=0, atol=1e-4)
    sampler = sampler_on("cuda", lora)
    traj = sampler.rollout(np.arange(16))
    assert {x.device.type for x in (traj.actions, traj.logprobs, traj.valid, traj.inputs.ids)} == {"cpu"}
    logprobs, _ = sampler.policy.evaluate(traj)
    torch.testing.assert_close(logprobs, traj.logprobs, rtol=0, atol=1e-4)


@both
@pytest.mark.parametrize("agent", [SPPO, PPO])
def test_one_update_is_the_same(agent: Any, lora: bool) -> None:
    settings = {"episodes_per_update": 16, "n_epochs": 1, "n_minibatches": 2, "microbatch_size": 4, "kl_coef": 0.1}
    made = [agent(sampler_on(device, lora), **settings) for device in DEVICES]
    traj = made[0].sampler.rollout(made[0].starts())
    told = []
    for one in made:
        one.critic.head.weight.data.copy_(torch.linspace(-1, 1, 32))
        one.freeze_reference()
        experience = one.credit(traj)
        with torch.no_grad():
            logprobs, entropy = one.policy.evaluate(traj, entropy=True)
        metrics = one.update(experience)
        told.append([logprobs, entropy, experience.values, experience.advantages])
        told[-1] += [torch.tensor(metrics[name]) for name in sorted(metrics)]
        told[-1] += [one.learner.flat.cpu(), one.critic_learner.flat.cpu()]
    for x, y in zip(*told, strict=True):
        assert x.device.type == y.device.type == "cpu"
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@both
def test_an_agent_is_saved_and_goes_on(lora: bool, tmp_path: Any) -> None:
    agent = SPPO(sampler_on("cuda", lora), episodes_per_update=8)
    agent.train_once()
    agent.save(tmp_path / "agent")
    agent.policy.save_pretrained(tmp_path / "model")
    again = SPPO.load(tmp_path / "agent", sampler_on("cuda", lora))
    for one in (agent, again):
        assert one.train_once()["time/n_updates"] == 2
    torch.testing.assert_close(again.learner.flat, agent.learner.flat, rtol=0, atol=1e-4)
