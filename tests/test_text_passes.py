"""How rows pass through a language model: whatever is beside them, in parts, short or long, the values are the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import ToyPrompt, toy_policy, toy_sampler

from sppo.agents import SPPO
from sppo.agents.batch import Experience
from sppo.agents.learners import LocalLearner
from sppo.agents.losses import aggregation_weights
from sppo.agents.update import PolicyLoss, minimise
from sppo.llm import policy as policy_module
from sppo.llm.policy import TextPolicy, products
from sppo.llm.tokenizer import encode_prompt


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("batch_size", [256, 3])
def test_recomputed_logprobs_equal_the_sampled_ones(temperature, batch_size, monkeypatch):
    monkeypatch.setattr(policy_module, "LOGITS", 7 * 7)  # 7 tokens of the 7 in the vocabulary, the last chunk short
    sampler = toy_sampler(toy_policy(temperature=temperature, spread=3), batch_size=batch_size)
    traj = sampler.rollout(sampler.starts(16))
    assert len(set(traj.lengths.tolist())) > 1, "rows of unequal length, or padding goes untested"
    logprobs, _ = sampler.policy.evaluate(traj)
    assert torch.allclose(logprobs, traj.logprobs, atol=1e-5)
    assert traj.logprobs[traj.valid].std() > 0.1


def test_evaluation_does_not_depend_on_the_rows_beside():
    sampler = toy_sampler(toy_policy(spread=30))
    traj = sampler.rollout(sampler.starts(16))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    whole, entropy = sampler.policy.evaluate(traj, entropy=True)
    parts = [sampler.policy.evaluate(traj[order[i : i + 3]], entropy=True) for i in range(0, 16, 3)]
    assert torch.allclose(torch.cat([p[0] for p in parts]), whole[order], atol=1e-5)
    assert torch.allclose(torch.cat([p[1] for p in parts]), entropy[order], atol=1e-5)
    assert (entropy[traj.valid] > 0).all() and (entropy[~traj.valid] == 0).all()


def long_prompts() -> list[ToyPrompt]:
    """Nine tokens that all rows begin with, and one to three of their own."""
    return [ToyPrompt("ab=;abab=" + "ab;"[: 1 + i % 3], i) for i in range(12)]


def test_a_beginning_that_rows_share_may_be_read_once_or_once_per_row(monkeypatch):
    def all_of_it() -> list[torch.Tensor]:
        sampler = toy_sampler(toy_policy(spread=30), prompts=long_prompts(), max_completion_length=12)
        traj = sampler.rollout(np.arange(12))
        greedy = sampler.rollout(np.arange(12), greedy=True)
        logprobs, _ = sampler.policy.evaluate(traj)
        logprobs.sum().backward()
        start, step = sampler.start_critic("bce"), sampler.step_critic("bce")
        for critic in (start, step):
            torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
        gradient = torch.cat([p.grad.flatten() for p in sampler.policy.parameters()])
        values = [start.value(traj), step.values(traj)]
        return [traj.actions, greedy.actions, traj.logprobs, logprobs.detach(), gradient, *values]

    inputs = long_prompts()[:2]
    ids = torch.tensor([encode_prompt(toy_policy().tokenizer, p.prompt)[:10] for p in inputs])
    assert policy_module.shared_columns(ids, 9) == 9 and policy_module.shared_columns(ids[:1], 9) == 0
    once = all_of_it()
    monkeypatch.setattr(policy_module, "SHARED", 1000)
    for shared, own in zip(once, all_of_it(), strict=True):
        assert torch.allclose(shared.float(), own.float(), atol=1e-4, rtol=1e-4)
    assert torch.allclose(once[2], once[3], atol=1e-5)


def test_products_in_bfloat16_leave_weights_and_gradients_in_float32():
    exact = toy_policy(spread=3)
    policy = TextPolicy(copy.deepcopy(exact.model), exact.tokenizer, dtype=torch.bfloat16)
    sampler = toy_sampler(policy, prompts=long_prompts())
    traj = sampler.rollout(np.arange(12))
    logprobs, _ = policy.evaluate(traj)
    logprobs.sum().backward()
    # bfloat16 has 8 significant bits: the two differ by rounding, as does float32 from both.
    assert torch.allclose(logprobs, traj.logprobs, atol=0.1)
    assert 1e-5 < (exact.evaluate(traj)[0] - logprobs).abs().max() < 0.1
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in policy.parameters())
    critic = sampler.start_critic("bce")
    with products(critic.base):
        assert torch.is_autocast_enabled("cpu"), "a critic's body computes as its policy does"


def test_plain_attention_is_of_short_rows_outside_autograd_and_gives_the_same_values(monkeypatch):
    sampler = toy_sampler(toy_policy(spread=3))
    traj = sampler.rollout(np.arange(16))
    config = sampler.policy.model.config

    @torch.no_grad()
    def outside():
        return sampler.policy.evaluate(traj)[0]

    short = outside()
    assert config._attn_implementation == "eager"
    differentiable, _ = sampler.policy.evaluate(traj)
    assert config._attn_implementation == "sdpa"
    outside()
    monkeypatch.setattr(policy_module, "SHORT", 4)
    long = outside()
    assert config._attn_implementation == "sdpa"
    assert torch.allclose(short, long, atol=1e-5) and torch.allclose(short, differentiable, atol=1e-5)


def test_a_critic_cut_from_a_model_with_plain_attention_sees_no_later_token_either():
    sampler = toy_sampler(toy_policy(spread=3), prompts=[ToyPrompt("ba=;"[i:], i) for i in range(3)])
    traj = sampler.rollout(np.arange(3))
    assert sampler.policy.model.config._attn_implementation == "eager"
    critic = sampler.start_critic("bce")
    assert critic.base.config is critic.base.layers[0].self_attn.config is not sampler.policy.model.config
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(3, 1)  # where the loss is log(1 + exp(v)), and V = 1 - exp(-loss)
    predicted = 1 - torch.exp(-critic.loss(traj, targets)).squeeze(1)
    assert critic.base.config._attn_implementation == "sdpa"
    assert torch.allclose(predicted, critic.value(traj), atol=1e-5)


def test_outside_autograd_a_bounded_number_of_tokens_goes_through_at_a_time(monkeypatch):
    sampler = toy_sampler(toy_policy(spread=30))
    traj = sampler.rollout(np.arange(16))
    start, step = sampler.start_critic("bce"), sampler.step_critic("bce")
    for critic in (start, step):
        torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    passes: list[int] = []
    for base in (sampler.policy.base, start.base, step.base):
        base.register_forward_pre_hook(
            lambda _, args, given: passes.append(given["input_ids"].numel()), with_kwargs=True
        )

    def all_of_it() -> list[torch.Tensor]:
        passes.clear()
        with torch.no_grad():
            logprobs, entropy = sampler.policy.evaluate(traj, entropy=True)
        return [logprobs, entropy, start.value(traj), step.values(traj)]

    whole = all_of_it()
    assert len(passes) == 3 and max(passes) > 100
    monkeypatch.setattr("sppo.llm.passes.TOKENS", 42)
    parts = all_of_it()
    assert len(passes) > 12 and max(passes) <= 42
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert step.values(traj).shape == (16, traj.valid.shape[1] + 1)


def test_a_budget_of_tokens_counts_prompts_and_changes_no_gradient():
    """Prompts of 2, 4 and 6 tokens by turns before responses of unequal length."""
    gradients, passes = [], []
    for budget in (None, 10, 33):
        sampler = toy_sampler(toy_policy(spread=30))
        traj = sampler.rollout(np.arange(10))
        agent = SPPO(
            sampler, episodes_per_update=10, n_epochs=1, n_minibatches=1, max_grad_norm=1e9, microbatch_steps=budget
        )
        experience = agent.credit(traj)
        for name, base in (("policy", agent.policy.base), ("critic", agent.critic.base)):
            base.register_forward_pre_hook(
                lambda _, args, given, of=(budget, name): passes.append((of, *given["input_ids"].shape)),
                with_kwargs=True,
            )
        agent.update(experience)
        gradients.append(torch.cat([agent.learner.grad, agent.critic_learner.grad]))
    assert gradients[0].norm() > 0
    for gradient in gradients[1:]:
        assert torch.allclose(gradient, gradients[0], atol=1e-5)
    for budget in (10, 33):
        sizes = [rows * columns for of, rows, columns in passes if of == (budget, "policy")]
        assert len(sizes) > 2 and max(sizes) <= max(budget, 6 + 8)
    assert len([1 for of, *_ in passes if of == (None, "policy")]) == 1
    # A start critic reads prompts alone, of which more go into a pass.
    critics = [rows * columns for of, rows, columns in passes if of == (33, "critic")]
    assert max(critics) <= 33 and len(critics) < len([1 for of, *_ in passes if of == (33, "policy")])


def test_microbatches_do_not_change_the_gradient():
    gradients = []
    for size in (None, 1, 3):
        sampler = toy_sampler(toy_policy(spread=30))
        traj = sampler.rollout(np.arange(10))
        weight, share = aggregation_weights(traj.valid)
        advantages = torch.linspace(-1, 1, 10)[:, None] * traj.valid
        data = Experience(traj=traj.choices(), weight=weight, share=share, advantages=advantages)
        learner = LocalLearner(sampler.policy, learning_rate=1e-3, max_grad_norm=1e9, adam_eps=1e-5)
        loss = PolicyLoss(sampler.policy, 0.2, 0.2)
        minimise(
            learner, loss, data, n_epochs=1, n_minibatches=1, generator=np.random.default_rng(0), microbatch_size=size
        )
        gradients.append(learner.grad.clone())
    assert gradients[0].norm() > 0
    for gradient in gradients[1:]:
        assert torch.allclose(gradient, gradients[0], atol=1e-6)
