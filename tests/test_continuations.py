"""Values by continuation against closed forms, the credit made of them, text, and learning."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from fake_text import toy_sampler

from sppo.agents import ControlSampler, DrGRPO, ReMax, SPOChain, SPOTree, VinePPO
from sppo.agents.credit import outcome_advantage
from sppo.agents.plans import continuation_returns, every, grow_tree
from sppo.agents.sampling import AsSeen
from sppo.agents.segments import tree_values
from sppo.envs import episodes
from sppo.llm.tasks import make_task
from sppo.llm.tokenizer import character_tokenizer

CHAIN = "sppo/SparseChain-v0"
PLANNED = [ReMax, VinePPO, SPOChain, SPOTree]


def right_with(p: float, env: Any, seed: int = 0) -> ControlSampler:
    """A policy that goes right with this probability, wherever it is."""
    sampler = ControlSampler(env, seed=seed, net_arch=(4,))
    with torch.no_grad():
        sampler.policy.weights[-1].zero_()
        sampler.policy.biases[-1][0, :, 0] = torch.tensor([1 - p, p]).log()
    return sampler


# Against the closed form: V(x, t) of the chain under a policy that goes right with probability 0.6.


def check_estimates(estimates: np.ndarray, truth: np.ndarray, n: int, what: str) -> float:
    """Unbiased, and off by as much as the mean of n coins; returns the root mean square error."""
    error = estimates - truth
    standard_error = np.sqrt((truth * (1 - truth) / n).sum()) / len(truth)
    said = f"{what}: mean error {error.mean():+.5f}, standard error {standard_error:.5f}"
    print(said)
    assert abs(error.mean()) < 4 * standard_error, said
    rms, expected = np.sqrt((error**2).mean()), np.sqrt((truth * (1 - truth)).mean() / n)
    said = f"{what}: root mean square error {rms:.4f}, expected {expected:.4f}"
    print(said)
    assert abs(rms / expected - 1) < 0.15, said
    return float(rms)


def test_continuations_find_the_values_of_the_chain() -> None:
    env = episodes(CHAIN)
    sampler = right_with(0.6, env)
    traj = sampler.rollout(sampler.starts(300), keep_states=True)
    begins = every(2, traj.valid)
    rows, steps = begins.nonzero(as_tuple=True)
    truth = env.value(0.6, (traj.inputs[rows, steps, 0] * env.goal).round().numpy(), steps.numpy())
    rms = {}
    for k in (9, 36):
        before = sampler.counts["env_steps"]
        returns = continuation_returns(sampler, traj, begins, k)
        assert returns.shape == (1200, k)
        assert sampler.counts == {"env_steps": before + 300 * k * (8 + 6 + 4 + 2), "episodes": 300}
        rms[k] = check_estimates(returns.double().mean(1).numpy(), truth, k, f"V by {k} continuations")
    assert 1.7 < rms[9] / rms[36] < 2.3, "four times as many continuations halve the error"


def test_tree_nodes_find_the_values_of_the_chain() -> None:
    env = episodes(CHAIN)
    sampler = right_with(0.6, env)
    rms = {}
    for k in (9, 36):
        tree = grow_tree(sampler, sampler.starts(300), (2, k), 4)
        inner = (~tree.leaf).nonzero().squeeze(1)
        assert inner.tolist() == list(range(600))
        truth = env.value(0.6, (tree.traj.inputs[inner, 4, 0] * env.goal).round().numpy(), 4)
        values = tree_values(tree.parent, tree.returns)[inner].numpy()
        rms[k] = check_estimates(values, truth, k, f"V(node) by {k} leaves")
    assert 1.7 < rms[9] / rms[36] < 2.3, "four times as many children halve the error"


def test_values_of_deep_trees_are_unbiased() -> None:
    env = episodes(CHAIN)
    sampler = right_with(0.6, env)
    tree = grow_tree(sampler, sampler.starts(400), (2, 3, 4), 3)
    values = tree_values(tree.parent, tree.returns).numpy()
    ends = tree.traj.inputs[torch.arange(len(values)), tree.traj.lengths, 0]
    for length in (3, 6):
        inner = ((~tree.leaf) & (tree.lengths == length)).nonzero().squeeze(1).numpy()
        error = values[inner] - env.value(0.6, (ends[inner] * env.goal).round().numpy(), length)
        # Nodes of one start are the only ones that share leaves: starts are independent.
        by_start = error.reshape(400, -1).mean(1)
        standard_error = by_start.std() / 20
        assert abs(by_start.mean()) < 4 * standard_error < 0.05, f"{by_start.mean():+.4f}, {standard_error:.4f}"


def test_continuations_differ_by_sampling_alone() -> None:
    """Slips belong to the start: a policy without chance repeats them, another meets them again in new company."""
    sure, unsure = (right_with(p, episodes(CHAIN, slip=0.3, goal=8)) for p in (1 - 1e-7, 0.6))
    for sampler, varies in ((sure, False), (unsure, True)):
        traj = sampler.rollout(sampler.starts(40), keep_states=True)
        returns = continuation_returns(sampler, traj, every(4, traj.valid), 8)
        assert bool((returns != returns[:, :1]).any()) is varies
        if not varies:
            assert torch.equal(returns[:, 0].view(40, 2), traj.outcomes[:, None].expand(40, 2))
            assert 0 < float(traj.outcomes.mean()) < 1


# The credit made of them.


def test_one_segment_is_sppos_advantage_with_a_sampled_value() -> None:
    agent = VinePPO(episodes(CHAIN), stride=8, num_continuations=9, episodes_per_update=32)
    experience = agent.collect(agent.sampler, agent.starts())
    traj: Any = experience.traj
    assert experience.advantages is not None and experience.values is not None
    torch.testing.assert_close(
        experience.advantages, outcome_advantage(traj.outcomes, experience.values[:, 0], traj.valid)
    )
    ninths = experience.values[:, 0] * 9
    torch.testing.assert_close(ninths, ninths.round()), "each the mean of nine outcomes"


def test_an_episode_ends_with_its_outcome() -> None:
    """However many continuations, the last segment's advantage is R less the value of its start, 0 or 1 apart."""
    agent = VinePPO(episodes(CHAIN), stride=3, episodes_per_update=16)
    experience = agent.collect(agent.sampler, agent.starts())
    traj: Any = experience.traj
    assert experience.advantages is not None and experience.values is not None
    torch.testing.assert_close(experience.advantages[:, -1] + experience.values[:, -1], traj.outcomes)
    # Segments of 3, 3 and 2 steps: the advantages add up to R - V(s_0).
    total = experience.advantages[:, [0, 3, 6]].sum(1)
    torch.testing.assert_close(total, traj.outcomes - experience.values[:, 0])


def test_spo_chain_masks_what_is_certain() -> None:
    """Going right has probability 0.95 and is no cut-point; the mask leaves the other action alone to learn from."""
    agent = SPOChain(right_with(0.95, episodes(CHAIN)), episodes_per_update=64, cut_interval=1, num_continuations=2)
    experience = agent.collect(agent.sampler, agent.starts())
    traj: Any = experience.traj
    stays = traj.actions == 0
    assert 5 < int(stays.sum()) < 100 and torch.equal(experience.weight != 0, stays)
    # One cut-point in each segment: a new one begins at every second and further step to the left.
    assert experience.values is not None
    n_segments = stays.sum(1).clamp(min=1)
    spent = agent.sampler.counts["env_steps"] - 512
    first = 64 * 8 * 2
    later = sum(2 * (8 - t) for row in stays for t in row.nonzero().flatten().tolist()[1:])
    assert spent == first + later and int(n_segments.max()) > 1
    unmasked = SPOChain(right_with(0.95, episodes(CHAIN)), episodes_per_update=8, mask_threshold=None)
    assert (unmasked.collect(unmasked.sampler, unmasked.starts()).weight == 1).all()


def test_continuous_actions_are_cut_where_they_were_least_likely() -> None:
    agent = SPOChain(episodes("sppo/Pendulum-v0", horizon=40), episodes_per_update=8, cut_threshold=0.5)
    traj = agent.sampler.rollout(agent.starts(), keep_states=True)
    begins = agent.segments(agent.sampler, traj)
    # Half of 320 steps are cut-points, five to a segment: 160 / 5 segments, more or less one for each row.
    assert 24 <= int(begins.sum()) <= 40
    assert (traj.logprobs[begins & (torch.arange(40) > 0)] <= traj.logprobs.median()).all()


def test_nothing_to_learn_is_no_update() -> None:
    """Every leaf succeeds: no node has an advantage, and the policy stays as it is."""
    agent = SPOTree(episodes(CHAIN, goal=1, start_spread=0), episodes_per_update=8, seed=1)
    with torch.no_grad():
        agent.policy.biases[-1][0, :, 0] = torch.tensor([0.0, 20.0])
    before = agent.learner.flat.clone()
    metrics = agent.train_once()
    assert metrics["rollout/success_rate"] == 1 and metrics["credit/rows_without_signal"] == 1
    assert torch.equal(agent.learner.flat, before)


@pytest.mark.parametrize("kind", [VinePPO, SPOTree, DrGRPO])
def test_what_is_sampled_to_value_states_is_charged_for_moving_away_too(kind: Any) -> None:
    """Each of 8 certain steps costs c log 2 against a uniform reference, c = 1/10, and the outcome is 1: so
    V(s_t) = 1 - (8 - t) c log 2, and nothing that happens is a surprise."""
    settings = {"stride": 1, "num_continuations": 2} if kind is VinePPO else {}
    sampler = right_with(1 - 1e-12, episodes(CHAIN, goal=1))
    agent = kind(sampler, kl_coef=0.1, kl_in="reward", episodes_per_update=8, **settings)
    agent.freeze_reference()
    with torch.no_grad():
        agent.reference.biases[-1].zero_()
    experience = agent.collect(AsSeen(sampler, agent.penalised), agent.starts())
    assert experience.advantages.abs().max() < 1e-5
    if kind is VinePPO:
        expected = 1 - (8 - torch.arange(8)) * 0.1 * log(2)
        torch.testing.assert_close(experience.values, expected.expand(8, 8))
    elif kind is SPOTree:
        assert agent.of_leaves["rollout/ep_rew_mean"] == pytest.approx(1 - 0.8 * log(2))
    else:
        assert experience.traj.outcomes.tolist() == pytest.approx([1 - 0.8 * log(2)] * 8)


# Text.


TEXT: dict[str, Any] = {"episodes_per_update": 16, "n_epochs": 1, "n_minibatches": 2, "learning_rate": 3e-3}


def test_reasoning_steps_of_text() -> None:
    sampler = toy_sampler(max_completion_length=12)
    sampler.task.step_separator = ";"
    traj = sampler.rollout(sampler.starts(20), keep_states=True)
    tokenizer = sampler.policy.tokenizer
    semicolon = tokenizer.convert_tokens_to_ids(";")
    ends = sampler.step_ends(traj)
    assert torch.equal(ends, (traj.actions == semicolon) & traj.valid) and 5 < int(ends.sum()) < 100
    sampler.task.step_separator = ";a"  # of two tokens: ends at an a behind a semicolon
    a = tokenizer.convert_tokens_to_ids("a")
    pairs = (traj.actions[:, :-1] == semicolon) & (traj.actions[:, 1:] == a) & traj.valid[:, 1:]
    assert torch.equal(sampler.step_ends(traj)[:, 1:], pairs) and pairs.any()
    assert not sampler.step_ends(traj)[:, 0].any()
    del sampler.task.step_separator
    assert not sampler.step_ends(traj).any(), "lines, unless the task says otherwise"


def test_demonstrated_steps_end_where_the_task_says() -> None:
    for task in (make_task("arithmetic", train_size=1), make_task("arithmetic", train_size=1, reward=no_reward)):
        sampler = toy_sampler(max_completion_length=64)
        tokens = torch.tensor(character_tokenizer("0123456789+-*=;")("17+5=22;22-9=13")["input_ids"])
        traj = sampler.rollout(sampler.starts(1))
        traj = replace(traj, actions=tokens[None], valid=torch.ones(1, len(tokens)).bool(), logprobs=torch.zeros(1, 15))
        sampler.policy.tokenizer = character_tokenizer("0123456789+-*=;")
        sampler.task = task
        assert sampler.step_ends(traj).nonzero().tolist() == [[0, 7]]


def no_reward(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def test_vineppo_on_text_values_each_reasoning_step() -> None:
    sampler = toy_sampler(max_completion_length=10)
    sampler.task.step_separator = ";"
    agent = VinePPO(sampler, num_continuations=3, **TEXT)
    told: list[int] = []
    generate = sampler.engine.generate
    sampler.engine.generate = lambda prefixes, *a, **k: told.append(len(prefixes)) or generate(prefixes, *a, **k)  # type: ignore[method-assign]
    experience = agent.collect(sampler, agent.starts())
    traj: Any = experience.traj
    inside = sampler.step_ends(traj)[:, :-1] & traj.valid[:, 1:]
    assert told == [16, 3 * (16 + int(inside.sum()))], "all continuations in one batch"
    assert sampler.counts["episodes"] == 16
    assert experience.advantages is not None
    changes = (experience.advantages[:, 1:] != experience.advantages[:, :-1]) & traj.valid[:, 1:]
    assert changes.any() and not (changes & ~inside).any(), "the credit changes behind a separator alone"


def test_states_of_text_that_are_not_there() -> None:
    sampler = toy_sampler()
    traj = sampler.rollout(sampler.starts(12), max_steps=2, keep_states=True)
    lengths = traj.lengths.numpy()
    assert traj.states.running(np.arange(12), lengths).tolist() == traj.truncated.tolist()
    assert traj.states.running(np.arange(12), lengths - 1).all()
    ended = int(traj.terminated.nonzero()[0])
    with pytest.raises(ValueError, match=f"row {ended} has no running state at step {lengths[ended]}"):
        traj.states.at(np.array([ended]), lengths[[ended]])
    some = traj[torch.tensor([3, ended])].states
    assert some.running(np.array([1]), lengths[[ended]]).tolist() == [False]


@pytest.mark.parametrize("kind", PLANNED)
def test_updates_on_text(kind: type) -> None:
    sampler = toy_sampler()
    agent = kind(sampler, **TEXT)
    before = agent.learner.flat.clone()
    for _ in range(3):
        metrics = agent.train_once()
    assert not torch.equal(agent.learner.flat, before) and bool(agent.learner.flat.isfinite().all())
    assert 0 < metrics["rollout/success_rate"] < 1 and 1 < metrics["rollout/ep_len_mean"] <= 8


def test_nodes_of_text_are_evaluated_where_they_stand() -> None:
    """Log-probabilities of joined rows, recomputed from their own prefixes, are those of sampling."""
    sampler = toy_sampler()
    tree = grow_tree(sampler, sampler.starts(4), (2, 2, 2), 3)
    assert len(tree.traj) > 12 and len(set(tree.traj.inputs.lengths.tolist())) > 2
    with torch.no_grad():
        logprobs, _ = sampler.policy.evaluate(tree.traj)
    valid = tree.traj.valid
    torch.testing.assert_close(logprobs[valid], tree.traj.logprobs[valid], atol=1e-4, rtol=0)


# Learning, from first to last. Of the chain and of Precision CartPole: tests/test_learning.py, for every agent.


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANNED)
def test_learns_a_text_task(kind: type) -> None:
    sampler = toy_sampler()
    agent = kind(sampler, **TEXT | {"episodes_per_update": 64})
    first = agent.train_once()["rollout/success_rate"]
    for _ in range(30):
        last = agent.train_once()["rollout/success_rate"]
    assert first < 0.6 and last > 0.9, f"{kind.__name__}: {first:.2f} to {last:.2f}"
