"""Flipped outcomes: how many, whose, and that nothing else sees them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import SMALL, chain, learned_together_and_alone, told

from sppo.agents import AGENTS, DPO, GRPO, PPO, SPPO, Reinforce, ReMax, RestEM, Trajectories, VinePPO
from sppo.agents.callbacks import EvalCallback
from sppo.agents.control import ControlSampler
from sppo.agents.groups import GroupAgent
from sppo.agents.noise import flip_outcomes

SUCCESS = ("restem", "dpo")


def noisy(kind: Any, share: float = 0.25, **settings: Any) -> Any:
    groups = {"num_generations": 4} if issubclass(kind, GroupAgent) else {}
    return kind(chain(), reward_noise=share, **SMALL | groups | settings)


def learned_from(agent: Any) -> Any:
    """The experience of one update."""
    update, taken = agent.update, []
    agent.update = lambda experience: (taken.append(experience), update(experience))[1]
    agent.train_once()
    agent.update = update
    return taken[0]


def test_all_are_flipped_where_they_ended() -> None:
    """At p = 1, a success of 2 steps gets 0 and a failure of 1 step gets 1 there; what is cut was not judged."""
    traj = told([1, 0, 0], lengths=[2, 1, 2])
    traj = replace(traj, terminated=torch.tensor([True, True, False]), truncated=torch.tensor([False, False, True]))
    flipped = flip_outcomes(traj, 1.0, np.random.default_rng(0))
    assert flipped.rewards.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert flipped.success.tolist() == [True, False, False] and traj.outcomes.tolist() == [1, 0, 0]


def test_the_share_of_flips_is_that_asked_for_in_success_and_failure_alike() -> None:
    """Of 20 000 coins of 0.2, the standard error is 0.0028; E[R'] = 0.2 + 0.6 x 0.25 = 0.35 at success 1/4."""
    outcomes = [1.0, 0.0, 0.0, 0.0] * 20_000
    seen = flip_outcomes(told(outcomes), 0.2, np.random.default_rng(0)).outcomes
    of_success, of_failure = seen.view(-1, 4)[:, 0], seen.view(-1, 4)[:, 1:]
    assert 1 - float(of_success.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(of_failure.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(seen.mean()) == pytest.approx(0.35, abs=0.01)


def test_siblings_are_flipped_apart() -> None:
    """Greedy episodes of one start are all alike, and at p = 1/2 about half of eight are seen to fail."""
    agent = noisy(GRPO, 0.5, num_generations=8)
    start = agent.sampler.starts(1).repeat(8)
    seen = [agent.as_seen(agent.sampler.rollout(start, greedy=True)) for _ in range(40)]
    assert all(len(set(traj.success.tolist())) == 1 for traj in seen)
    assert np.mean([float(traj.outcomes.mean()) for traj in seen]) == pytest.approx(0.5, abs=0.1)
    assert len({tuple(traj.outcomes.tolist()) for traj in seen}) > 30, "each rollout has flips of its own"


def test_the_greedy_twin_is_seen_flipped() -> None:
    """At p = 1 ReMax's baseline is 1 - R, and credit is that of a learner who wants failure."""
    agent = noisy(ReMax, 1.0, episodes_per_update=64)
    starts = agent.starts()
    agent.starts = lambda: starts
    greedy = agent.sampler.rollout(starts, greedy=True).success.float()
    seen = learned_from(agent)
    won = seen.traj.success.float()
    assert 0 < float(won.mean()) < 1
    assert torch.equal(seen.traj.outcomes, 1 - won) and torch.equal(seen.values[:, 0], 1 - greedy)
    assert torch.equal(seen.advantages[:, 0], greedy - won)


def test_continuations_are_seen_flipped() -> None:
    """At p = 1 the mean of K outcomes is 1 - that of the same ones unflipped, and what won now loses as much."""
    plain, seen = (learned_from(noisy(VinePPO, share, stride=2, num_continuations=4)) for share in (0.0, 1.0))
    valid = plain.traj.valid
    assert torch.equal(plain.traj.actions, seen.traj.actions) and float(plain.values[valid].std()) > 0.1
    torch.testing.assert_close(seen.values[valid], 1 - plain.values[valid])
    torch.testing.assert_close(seen.advantages, -plain.advantages)


def test_episodes_that_are_cut_to_go_on_are_not_flipped_yet() -> None:
    """At p = 1 each is seen flipped in the update in which it ends; on the chain nothing is paid before."""
    agent = noisy(PPO, 1.0, n_steps=7)
    parts = [learned_from(agent).traj for _ in range(4)]
    over, won, outcomes = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("terminated", "success", "outcomes")
    )
    assert 0 < int(over.sum()) < len(over) and 0 < int(won.sum()) < int(over.sum())
    assert torch.equal(outcomes[over], 1 - won[over].float())
    assert not any(part.rewards[~part.terminated].any() for part in parts)


def test_evaluation_sees_the_truth() -> None:
    """At p = 1 the learner sees failure where there is success, and learns it; evaluations count true success."""
    agent = noisy(Reinforce, 1.0, learning_rate=0.01)
    evaluation = EvalCallback(ControlSampler(chain(), policy=agent.policy), np.arange(200), eval_freq=1000)
    first = evaluation.evaluate(agent)
    agent.learn(total_episodes=400)
    last = evaluation.evaluate(agent)
    for record in (first, last):
        assert record["success_rate"] == pytest.approx(record["mean_return"])
    assert first["success_rate"] > 0.2 and last["success_rate"] < 0.05


@pytest.mark.parametrize("name", AGENTS.keys() - set(SUCCESS))
def test_every_agent_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    agent = noisy(AGENTS[name], learning_rate=0.01)
    agent.train_once()
    agent.save(tmp_path)
    loaded = AGENTS[name].load(tmp_path, chain())
    for one in (agent, loaded):
        one.train_once()
    assert torch.equal(agent.learner.flat, loaded.learner.flat)


def test_seeds_side_by_side_see_what_each_sees_alone() -> None:
    env = chain()
    learned_together_and_alone(lambda seed: PPO(env, seed=seed, reward_noise=0.3, **SMALL))


def test_without_noise_nothing_is_touched() -> None:
    agent = noisy(SPPO, 0.0)
    traj = agent.sampler.rollout(agent.sampler.starts(8))
    assert agent.as_seen(traj) is traj


def test_what_it_may_be() -> None:
    with pytest.raises(ValueError, match=r"reward_noise must be in \[0, 1\], got 1.5"):
        noisy(PPO, 1.5)
    for kind in (RestEM, DPO):
        with pytest.raises(ValueError, match="reward_noise flips outcomes, and this method learns from success"):
            noisy(kind)
    with pytest.raises(ValueError, match=r"flips outcomes that are 0 or 1, got 0\.5$"):
        flip_outcomes(told([0.0, 0.5, 1.0, -1.0]), 0.1, np.random.default_rng(0))


def test_a_language_model_sees_its_verifier_err() -> None:
    pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
    from fake_text import toy_sampler

    seen: list[Trajectories] = []
    agent = SPPO(toy_sampler(), episodes_per_update=16, reward_noise=1.0)
    credit = agent.credit
    agent.credit = lambda traj: (seen.append(traj), credit(traj))[1]  # type: ignore[method-assign]
    agent.train_once()
    assert torch.equal(seen[0].outcomes, 1 - seen[0].success.float())
