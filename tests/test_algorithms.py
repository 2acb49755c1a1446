"""The credit that each algorithm gives, by hand, and the identities between algorithms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import SMALL, chain, told

from sppo.agents import PPO, PPOBCE, SPPO, Reinforce, Tracker
from sppo.agents.tracker import BetaTable
from sppo.envs import episodes


def test_reinforce_takes_off_the_mean_of_the_batch() -> None:
    experience = Reinforce(chain(), **SMALL).credit(told([1, 0, 0, 1, 1], [2, 1, 2, 2, 2]))
    # Five episodes, three successes: each counts once, whatever its length.
    expected = [[0.4, 0.4], [-0.6, 0], [-0.6, -0.6], [0.4, 0.4], [0.4, 0.4]]
    assert experience.advantages is not None
    assert experience.advantages.flatten().tolist() == pytest.approx(np.ravel(expected).tolist())
    assert Reinforce(chain(), **SMALL).critic is None


def test_beta_counts_by_hand() -> None:
    table = BetaTable(forgetting=0.5, prior_count=2)
    keys = torch.tensor([3, 3, 3, 5])
    assert table.value(keys).tolist() == [0.5] * 4
    table.observe(keys, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    # Start 3: s = 1/2 + 2, f = 1/2 + 1, p = 2.5 / 4. Start 5: s = 1/2, f = 1/2 + 1, p = 1/4.
    assert table.value(torch.tensor([3, 5, 7])).tolist() == [0.625, 0.25, 0.5]
    table.observe(torch.tensor([3]), torch.tensor([0.5]))
    # s = 5/4 + 1/2 = 7/4, f = 3/4 + 1/2 = 5/4; the outcome 1/2 counts half either way.
    assert table.value(torch.tensor([3, 5])).tolist() == pytest.approx([1.75 / 3, 0.25])


def test_tracker_uses_the_rate_before_the_batch() -> None:
    agent = Tracker(chain(), forgetting=1.0, prior_count=2, **SMALL)
    first = agent.credit(told([1, 1, 0, 1], keys=[1, 1, 2, -1]))
    assert first.advantages is not None and first.advantages[:, 0].tolist() == [0.5, 0.5, -0.5, 0.5]
    # Start 1: 3 of 4; start 2: 1 of 3; the shared entry: 2 of 3.
    again = agent.credit(told([0, 1, 0], keys=[1, 2, -1]))
    assert again.advantages is not None
    assert again.advantages[:, 0].tolist() == pytest.approx([-0.75, 2 / 3, -2 / 3])
    with pytest.raises(ValueError, match=r"Tracker needs outcomes in \[0, 1\], got \[0, 2\]; use Reinforce"):
        agent.credit(told([0, 2]))
    for settings in ({"forgetting": 0.0}, {"forgetting": 1.5}, {"prior_count": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Tracker(chain(), **settings)


def test_sppo_credits_every_step_with_the_start_states_surprise() -> None:
    agent = SPPO(chain(), **SMALL)
    traj = told([1, 0], [2, 1])
    with torch.no_grad():
        for p in agent.critic.parameters():
            p.zero_()
        agent.critic.biases[-1].fill_(np.log(3))  # V = sigmoid(log 3) = 3/4 everywhere
    experience = agent.credit(traj)
    assert experience.advantages is not None and experience.value_targets is not None
    assert experience.advantages.flatten().tolist() == pytest.approx([0.25, 0.25, -0.75, 0])
    assert experience.value_targets.tolist() == [[1], [0]]
    moved = replace(traj, inputs=traj.inputs.clone())
    moved.inputs[:, 1:] = 7
    torch.testing.assert_close(agent.credit(moved).advantages, experience.advantages)


def test_ppo_without_values_is_the_outcome() -> None:
    agent = PPO(chain(), **SMALL)
    with torch.no_grad():
        for p in agent.critic.parameters():
            p.zero_()
    experience = agent.credit(told([1, 0], [2, 1]))
    assert experience.advantages is not None and experience.advantages.tolist() == [[1, 1], [0, 0]]


def test_whitening_is_of_the_batch() -> None:
    experience = Reinforce(chain(), normalize_advantage=True, **SMALL).credit(told([1, 0, 0, 1]))
    assert experience.advantages is not None
    assert float(experience.advantages.std()) == pytest.approx(1) and abs(float(experience.advantages.mean())) < 1e-6


# Identities.


@pytest.mark.parametrize(
    "settings", [{}, {"n_epochs": 2, "n_minibatches": 1}, {"aggregation": "sequence_mean"}], ids=str
)
def test_one_step_makes_ppo_with_cross_entropy_and_sppo_the_same(settings: dict[str, Any]) -> None:
    """T = 1 turns both into the same contextual bandit: equal in advantages, losses, weights, and what follows."""
    one_step = chain(horizon=1, goal=3)  # start 2 wins by action 1, starts 3 and 4 always, 0 and 1 never
    a, b = (kind(one_step, seed=4, learning_rate=0.01, **SMALL | settings) for kind in (PPOBCE, SPPO))
    assert torch.equal(a.critic_learner.flat, b.critic_learner.flat), "same seed, same critic"
    before = a.learner.flat.clone(), a.critic_learner.flat.clone()
    for _ in range(3):
        metrics, others = a.train_once(), b.train_once()
        for name in metrics:
            if "seconds" not in name and "fps" not in name:
                assert metrics[name] == pytest.approx(others[name], abs=1e-6, nan_ok=True), name
    torch.testing.assert_close(a.learner.flat, b.learner.flat, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.critic_learner.flat, b.critic_learner.flat, atol=1e-6, rtol=0)
    assert (a.learner.flat - before[0]).abs().max() > 0.01 and (a.critic_learner.flat - before[1]).abs().max() > 1e-3
    traj = a.sampler.rollout(np.arange(20))
    torch.testing.assert_close(a.credit(traj).advantages, b.credit(traj).advantages, atol=1e-6, rtol=0)


def test_more_steps_tell_them_apart() -> None:
    a, b = (kind(chain(), seed=4, learning_rate=0.01, **SMALL) for kind in (PPOBCE, SPPO))
    a.train_once(), b.train_once()
    assert not torch.allclose(a.learner.flat, b.learner.flat, atol=1e-4)


def test_sppo_refuses_outcomes_that_are_no_probabilities() -> None:
    env = episodes("CartPole-v1")
    with pytest.raises(ValueError, match=r"StartCritic with binary cross-entropy needs returns in \[0, 1\], got \[\d"):
        SPPO(env, **SMALL).train_once()
    with pytest.raises(ValueError, match="use value_loss='squared_error' instead"):
        PPOBCE(env, **SMALL).train_once()
    agent = SPPO(env, value_loss="squared_error", critic_learning_rate=0.05, n_epochs=10, **SMALL)
    errors = [agent.train_once()["train/value_loss"] for _ in range(6)]
    assert errors[-1] < errors[0], "the start critic learns returns of any size"


def test_cross_entropy_bears_rounded_targets() -> None:
    """A_t + V(s_t) is R but for rounding, which a network that is sure of failure carries below 0."""
    agent = PPOBCE(chain(), **SMALL)
    for bias in (-20.0, -3.0, 3.0, 20.0):
        with torch.no_grad():
            agent.critic.biases[-1].fill_(bias)
        agent.train_once()
