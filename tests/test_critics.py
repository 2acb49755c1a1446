"""Critics against values known in closed form, under a fixed policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_agents import chain

from sppo.agents import PPO, SPPO, Agent, Trajectories
from sppo.agents.update import ValueLoss, minimise


def fitted(agent: Agent, n: int, n_epochs: int, n_minibatches: int) -> Trajectories:
    """Fit the critic to n episodes of the random policy; nothing else learns."""
    with torch.no_grad():
        agent.policy.weights[-1].zero_()
        agent.critic.obs_mean.copy_(torch.tensor([[0.5, 0.5]]))  # inputs near 0 and 1 are quicker to fit
        agent.critic.obs_std.copy_(torch.tensor([[0.25, 0.25]]))
    traj = agent.sampler.rollout(agent.sampler.starts(n))
    data = agent.critic_experience(agent.credit(traj))
    for learning_rate in (0.01, 0.001):
        agent.critic_learner.optimizer.param_groups[0]["lr"] = learning_rate
        minimise(
            agent.critic_learner,
            ValueLoss(agent.critic),
            data,
            n_epochs=n_epochs,
            n_minibatches=n_minibatches,
            generator=np.random.default_rng(0),
        )
    return traj


@pytest.mark.parametrize("value_loss", ["bce", "squared_error"])
def test_start_critic_finds_the_values_of_the_chain(value_loss: str) -> None:
    env = chain()
    agent = SPPO(env, value_loss=value_loss, net_arch=(32,))
    traj = fitted(agent, 4000, 60, 8)
    position = (traj.inputs[:, 0, 0] * env.goal).round().long()
    values = agent.critic.value(traj)
    for x in range(5):
        truth = float(env.value(0.5, x, 0))
        here = position == x
        standard_error = (truth * (1 - truth) / int(here.sum())) ** 0.5
        error = float(values[here].mean()) - truth
        # Four standard errors of the mean that it was fitted to, and 0.01 for what the fit itself leaves.
        assert abs(error) < 4 * standard_error + 0.01, (
            f"V({x}) is off by {error:+.3f}, standard error {standard_error:.3f}"
        )
        assert float(values[here].std()) < 1e-6


@pytest.mark.parametrize("value_loss", ["bce", "squared_error"])
def test_step_critic_finds_the_values_of_the_chain(value_loss: str) -> None:
    env = chain()
    agent = PPO(env, value_loss=value_loss, net_arch=(32, 32))
    traj = fitted(agent, 4000, 15, 32)
    values = agent.critic.values(traj)[:, :-1]
    position = (traj.inputs[:, :-1, 0] * env.goal).round().long().numpy()
    t = np.broadcast_to(np.arange(env.horizon), position.shape)
    error = values.numpy() - env.value(0.5, position, t)
    counts = np.unique(position * 100 + t, return_counts=True)[1]
    typical = float(np.sqrt(0.25 / np.median(counts)))
    rms = float(np.sqrt((error**2).mean()))
    assert rms < 0.035, f"root mean square error {rms:.3f}; a state's own mean would have about {typical:.3f}"
    assert abs(error.mean()) < 4 * (0.25 / 4000) ** 0.5


def test_a_critic_may_pass_over_its_episodes_more_often() -> None:
    taken = []
    for passes in (None, 1, 5):
        agent = SPPO(chain(), n_epochs=2, n_minibatches=3, critic_n_epochs=passes)
        agent.train_once()
        states = (agent.learner.optimizer.state, agent.critic_learner.optimizer.state)  # type: ignore[union-attr]
        taken.append([int(next(iter(state.values()))["step"]) for state in states])
    assert taken == [[6, 6], [6, 3], [6, 15]]
