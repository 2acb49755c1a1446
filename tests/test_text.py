"""Language models: what is sampled is what is evaluated, cut and resumed is whole, and the same agents learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import ToyPrompt, ToyScore, ToyTask, toy_policy, toy_sampler
from tokenizers import processors

from sppo.agents import AGENTS, PPO, SPPO, Tracker
from sppo.agents.learners import LocalLearner
from sppo.llm.engine import Completion, stop_tokens
from sppo.llm.engine_hf import HFEngine, _draw
from sppo.llm.policy import TextPolicy, critic_base, load_model, tiny_model
from sppo.llm.sources import find_model
from sppo.llm.text_env import TextEnv
from sppo.llm.tokenizer import character_tokenizer, encode_prompt, load_tokenizer


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
