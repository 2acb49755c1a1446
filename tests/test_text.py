"""Language models: what is sampled is what is evaluated, cut and resumed is whole, and the same agents learn."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import ToyPrompt, ToyScore, ToyTask, toy_policy, toy_sampler
from tokenizers import processors

from sppo.agents import AGENTS, PPO, SPPO, Tracker
from sppo.agents.batch import Experience
from sppo.agents.learners import LocalLearner
from sppo.agents.losses import aggregation_weights
from sppo.agents.update import PolicyLoss, minimise
from sppo.llm import policy as policy_module
from sppo.llm.engine import Completion, stop_tokens
from sppo.llm.engine_hf import HFEngine, _draw
from sppo.llm.policy import TextPolicy, critic_base, load_model, products, tiny_model
from sppo.llm.sources import find_model
from sppo.llm.text_env import TextEnv
from sppo.llm.tokenizer import character_tokenizer, encode_prompt, load_tokenizer


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
        for name, base in (("policy", agent.policy.base), ("critic", agent.critic.base)):
            base.register_forward_pre_hook(
                lambda _, args, given, of=(budget, name): passes.append((of, *given["input_ids"].shape)),
                with_kwargs=True,
            )
        agent.update(agent.credit(traj))
        gradients.append(torch.cat([agent.learner.grad, agent.critic_learner.grad]))
    assert gradients[0].norm() > 0
    for gradient in gradients[1:]:
        assert torch.allclose(gradient, gradients[0], atol=1e-5)
    for budget in (10, 33):
        sizes = [rows * columns for of, rows, columns in passes if of == (budget, "policy")]
        assert len(sizes) > 2 and max(sizes) <= max(budget, 6 + 8)
    assert len([1 for of, *_ in passes if of == (None, "policy")]) == 1


def test_tokens_are_drawn_with_their_probabilities():
    log_p = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0]]).log().repeat_interleave(20000, 0)
    drawn = _draw(log_p, torch.Generator().manual_seed(0)).reshape(2, 20000)
    share = torch.bincount(drawn[0], minlength=4) / 20000
    # 5 standard deviations of the share of 20000 are at most 5 sqrt(0.25 / 20000) = 0.018.
    assert torch.allclose(share, torch.tensor([0.5, 0.0, 0.3, 0.2]), atol=0.018) and share[1] == 0
    assert (drawn[1] == 1).all()


def test_the_stop_token_is_the_last_action_and_the_budget_is_terminal():
    sampler = toy_sampler(max_completion_length=5)
    traj = sampler.rollout(sampler.starts(60))
    stop = sampler.policy.tokenizer.eos_token_id
    assert traj.terminated.all() and not traj.truncated.any()
    last = traj.actions[torch.arange(60), traj.lengths - 1]
    assert ((last == stop) | (traj.lengths == 5)).all()
    assert (last == stop).any() and ((traj.lengths == 5) & (last != stop)).any()
    inner = traj.valid.clone()
    inner[torch.arange(60), traj.lengths - 1] = False
    assert not ((traj.actions == stop) & inner).any()


def test_greedy_sampling_equals_stepping_the_environment():
    sampler = toy_sampler(toy_policy(spread=30), max_completion_length=12)
    traj = sampler.rollout(np.arange(9), greedy=True)
    env = TextEnv(ToyTask(), sampler.policy.tokenizer, max_completion_length=12)
    for row in range(9):
        obs, _ = env.reset(options={"prompt": row})
        tokens, reward, over = [], 0.0, False
        while not over:
            assert reward == 0
            token = int(sampler.predict(obs, deterministic=True))
            obs, reward, over, truncated, info = env.step(token)
            assert not truncated
            tokens.append(token)
        assert tokens == traj.actions[row][: traj.lengths[row]].tolist()
        assert reward == traj.outcomes[row] and info["is_success"] == traj.success[row]


def test_cut_and_resumed_equals_whole():
    sampler = toy_sampler(toy_policy(spread=30), max_completion_length=12)
    whole = sampler.rollout(np.arange(12), greedy=True)
    limits = np.arange(12) % 5 + 1
    cut = sampler.rollout(np.arange(12), greedy=True, max_steps=limits, keep_states=True)
    rows = np.flatnonzero(cut.truncated.numpy())
    assert len(rows) > 3
    assert (cut.rewards[rows] == 0).all(), "what is cut is not scored"
    rest = sampler.rollout(cut.states.at(rows, limits[rows]), greedy=True)
    for i, row in enumerate(rows):
        joined = cut.actions[row, : limits[row]].tolist() + rest.actions[i, : rest.lengths[i]].tolist()
        assert joined == whole.actions[row, : whole.lengths[row]].tolist()
        assert rest.outcomes[i] == whole.outcomes[row]


def test_every_token_is_counted_and_starts_go_through_the_prompts():
    sampler = toy_sampler()
    starts = np.concatenate([sampler.starts(n) for n in (7, 7, 7, 19)])
    for i in (0, 20):
        assert sorted(starts[i : i + 20]) == list(range(20))
    assert starts[:20].tolist() != starts[20:].tolist()
    traj = sampler.rollout(np.repeat(starts[:4], 3))
    assert sampler.counts["env_steps"] == int(traj.valid.sum()) and sampler.counts["episodes"] == 12
    assert traj.group.unique().numel() == 4
    assert traj.start_key.tolist() == (100 + np.repeat(starts[:4], 3)).tolist()
    assert sum(sampler.reasons.values()) == 12


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


def test_a_start_critic_sees_the_prompt_alone_and_a_step_critic_every_prefix():
    sampler = toy_sampler(toy_policy(spread=30))
    traj = sampler.rollout(np.arange(6))
    start, step = sampler.start_critic("bce"), sampler.step_critic("bce")
    for critic in (start, step):
        torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    step.load_state_dict(start.state_dict())
    values = step.values(traj)
    assert values.shape == (6, traj.valid.shape[1] + 1)
    assert torch.allclose(start.value(traj), values[:, 0], atol=1e-6)
    assert (values.std(1) > 0).all()
    assert start.loss(traj, traj.outcomes[:, None]).shape == (6, 1)
    assert step.loss(traj, traj.outcomes[:, None].expand(traj.valid.shape)).shape == traj.valid.shape


def test_a_policy_is_a_save_pretrained_folder(tmp_path: Path):
    policy = toy_policy(spread=30)
    LocalLearner(policy, learning_rate=1e-3, max_grad_norm=1.0, adam_eps=1e-5)  # weights become views of one tensor
    policy.save_pretrained(tmp_path)
    again = TextPolicy(load_model(str(tmp_path)), load_tokenizer(str(tmp_path)))
    sampler = toy_sampler(policy)
    traj = sampler.rollout(np.arange(5))
    assert torch.allclose(again.evaluate(traj)[0], policy.evaluate(traj)[0], atol=1e-6)
    assert again.tokenizer.decode([3, 4, 5]) == "ab="


def test_an_agent_on_text_goes_on_bit_for_bit(tmp_path: Path):
    settings = {"episodes_per_update": 8, "n_epochs": 1, "n_minibatches": 2, "learning_rate": 1e-3}
    agent = SPPO(toy_sampler(), **settings)
    agent.learn(total_episodes=16)
    agent.save(tmp_path)
    agent.learn(total_episodes=32)
    again = SPPO.load(tmp_path, toy_sampler())
    again.learn(total_episodes=32)
    assert torch.equal(again.learner.flat, agent.learner.flat)
    assert torch.equal(again.critic_learner.flat, agent.critic_learner.flat)


def test_what_cannot_be_sampled_is_refused():
    policy = toy_policy()
    rng = np.random.default_rng(0)
    engine = HFEngine(policy)
    with pytest.raises(ValueError, match="prefix 0 is empty"):
        engine.generate([torch.zeros(0, dtype=torch.int64)], [3], greedy=True, generator=rng)
    with pytest.raises(ValueError, match=r"prefix 1 has 600 tokens and may grow by 3, more than .* 512"):
        long = torch.full((600,), 3)
        engine.generate([long[:2], long], [3, 3], greedy=True, generator=rng)
    with pytest.raises(ValueError, match="temperature must be positive"):
        TextPolicy(policy.model, policy.tokenizer, temperature=0)
    with pytest.raises(ValueError, match="the tokenizer has 30 tokens and the model knows 7"):
        TextPolicy(
            tiny_model(7, seed=0, hidden=32, layers=1, heads=2), character_tokenizer("abcdefghijklmnopqrstuvwxyz=")
        )
    with pytest.raises(ValueError, match="no prompts in its split 'test'"):
        toy_sampler(split="test")
    with pytest.raises(ValueError, match="must stand once"):
        character_tokenizer("abca")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(AGENTS))
def test_every_agent_learns_on_text(name):
    agent = AGENTS[name](
        toy_sampler(), episodes_per_update=32, learning_rate=3e-3, n_epochs=1, n_minibatches=2, microbatch_size=8
    )
    rates = []
    agent.learn(
        total_episodes=32 * 20, callback=lambda a, metrics: rates.append(metrics["rollout/success_rate"]) or True
    )
    assert np.mean(rates[:2]) < 0.5 and np.mean(rates[-4:]) > 0.85


def test_a_tokenizer_without_stop_token_is_refused_and_one_without_padding_will_do(tmp_path: Path):
    tokenizer = character_tokenizer("ab=;")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "unpadded")
    assert load_tokenizer(str(tmp_path / "unpadded")).pad_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="endless has no stop"):
        load_tokenizer(str(tmp_path / "endless"))


def test_every_stop_token_of_the_model_ends_an_answer(tmp_path: Path):
    """The generation config names another than the tokenizer, as that of a chat model does."""
    policy = toy_policy()
    policy.model.generation_config.eos_token_id = [6, 1]
    policy.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token_id == 1 and stop_tokens(tokenizer) == [1, 6]
    sampler = toy_sampler(TextPolicy(load_model(str(tmp_path)), tokenizer))
    traj = sampler.rollout(np.arange(20).repeat(4))
    last = traj.actions[torch.arange(80), traj.lengths - 1]
    assert set(last[traj.lengths < 8].tolist()) == {1, 6}
    assert not ((traj.actions[:, :-1] == 6) & traj.valid[:, 1:]).any()
    env = TextEnv(ToyTask(), tokenizer, max_completion_length=8)
    env.reset(seed=0)
    assert not env.step(3)[2] and env.step(6)[2]
    assert stop_tokens(load_tokenizer(find_model("arithmetic"))) == [1]


def test_a_plain_prompt_begins_as_the_tokenizer_begins_a_text_and_a_chat_as_its_template_does():
    tokenizer = character_tokenizer("ab^=")
    assert encode_prompt(tokenizer, "ab=") == [3, 4, 6]
    template = processors.TemplateProcessing(single="^ $A <stop>", special_tokens=[("^", 5), ("<stop>", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    assert tokenizer("ab=")["input_ids"] == [5, 3, 4, 6, 1]
    assert encode_prompt(tokenizer, "ab=") == [5, 3, 4, 6], "an answer is to come: nothing stops it"
    tokenizer.chat_template = "^{{ messages[0]['content'] }}="
    assert encode_prompt(tokenizer, [{"role": "user", "content": "ab"}]) == [5, 3, 4, 6]


def test_an_empty_response_is_scored():
    """The stop token at once: one action, trained like any other."""
    sampler = toy_sampler()
    stop = sampler.policy.tokenizer.eos_token_id
    sampler.engine.generate = lambda prefixes, limits, **kwargs: [
        Completion(tokens=torch.tensor([stop]), logprobs=torch.zeros(1), stopped=True) for _ in prefixes
    ]
    traj = sampler.rollout(np.arange(4))
    assert traj.lengths.tolist() == [1] * 4 and traj.terminated.all() and (traj.outcomes == 0).all()
    assert sampler.reasons == {"wrong": 4}


def test_no_prompts_are_drawn_where_none_are_asked_for() -> None:
    sampler = toy_sampler()
    for drawn in (0, 7, 13):  # of 20 prompts: at the beginning, within a pass, at its end
        assert len(sampler.starts(drawn)) == drawn
        assert sampler.starts(0).tolist() == [] and sampler.starts(0).dtype == np.int64
    assert sorted(sampler.starts(20).tolist()) == list(range(20))


def test_text_has_no_parts_of_episodes() -> None:
    with pytest.raises(ValueError, match="states of TextSampler differ in length: n_steps must be None"):
        PPO(toy_sampler(), n_steps=5)


def test_the_tracker_counts_by_prompt(tmp_path: Path) -> None:
    """Two prompts, each asked twice an update, one always answered rightly. Half of all counts are forgotten:
    1, 1 becomes 1/2 + 2 = 5/2, 1/2, and then 5/4 + 2 = 13/4, 1/4, so that p = 13/14."""

    def sampler():
        made = toy_sampler(prompts=[ToyPrompt("ab", 100), ToyPrompt("abab", 101)])
        made.task.score = lambda prompt, response: ToyScore(float(prompt.key == 100), "ok")
        return made

    agent = Tracker(sampler(), forgetting=0.5, prior_count=2, episodes_per_update=4, n_epochs=1, n_minibatches=1)
    agent.train_once()
    assert agent.critic.counts == {100: (2.5, 0.5), 101: (0.5, 2.5)}
    agent.train_once()
    assert agent.critic.counts == {100: (3.25, 0.25), 101: (0.25, 3.25)}
    agent.save(tmp_path)
    again = Tracker.load(tmp_path, sampler())
    assert again.critic.counts == agent.critic.counts
    experience = again.collect(again.sampler, again.starts())
    expected = torch.where(experience.traj.start_key == 100, 1 / 14, -1 / 14)
    torch.testing.assert_close(experience.advantages[:, 0], expected)


def test_a_model_with_a_table_of_positions_may_answer_to_the_end_of_its_context():
    """Rows that end early stay in the cache for a while, and must not count on beyond the table."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = character_tokenizer("ab=;")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=24, n_embd=16, n_layer=1, n_head=2)
    policy = TextPolicy(GPT2LMHeadModel(config), tokenizer)
    prefixes = [torch.full((n,), 3) for n in (4, 12, 12, 12, 12, 12, 12, 12, 12, 12)]
    limits = [20, *[12] * 9]
    engine = HFEngine(policy)
    runs = [
        engine.generate(prefixes, limits, greedy=False, generator=np.random.default_rng(seed)) for seed in range(60)
    ]
    assert max(len(done[0].tokens) for done in runs) > 15
    with pytest.raises(ValueError, match="layers of GPT2Model cannot be told apart"):
        critic_base(policy.model, layers=1)
