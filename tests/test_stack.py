"""Agents trained side by side are the agents trained alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sppo.agents import AGENTS, GRPO, PPO, SPPO, Agent, ControlSampler
from sppo.agents.stack import Stack, can_stack, learn
from sppo.envs import episodes

UNEQUAL = "sppo/PrecisionCartPole-v0"
# With these a fresh policy falls after 10 steps or more, and stands, in success, at the horizon now and then.
DIALS: dict[str, Any] = {UNEQUAL: {"horizon": 20, "tolerance": 8.0}}
SETTINGS: dict[str, Any] = {"episodes_per_update": 8, "n_minibatches": 3, "learning_rate": 3e-3, "net_arch": (16,)}


def made(kind: type[Agent], env_id: str, n: int = 3, **settings: Any) -> list[Agent]:
    env = episodes(env_id, **DIALS.get(env_id, {}))
    return [kind(env, seed=seed, **SETTINGS | settings) for seed in range(n)]


def assert_same(stacked: Agent, alone: Agent, atol: float = 2e-4) -> None:
    for name in ("policy", "critic"):
        ours, theirs = getattr(stacked, name), getattr(alone, name)
        if isinstance(ours, torch.nn.Module):
            for key, tensor in theirs.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[key], tensor, atol=atol, rtol=0, msg=key)
    assert stacked.sampler.counts == alone.sampler.counts
    assert (stacked.n_updates, stacked.num_steps, stacked.num_episodes) == (
        alone.n_updates,
        alone.num_steps,
        alone.num_episodes,
    )
    assert stacked.generator.bit_generator.state == alone.generator.bit_generator.state
    for name, generator in alone.sampler.generators.items():
        assert stacked.sampler.generators[name].bit_generator.state == generator.bit_generator.state


def assert_same_metrics(stacked: dict[str, float], alone: dict[str, float]) -> None:
    assert stacked.keys() == alone.keys()
    for name, value in alone.items():
        if "seconds" not in name and name != "time/fps":
            assert stacked[name] == pytest.approx(value, abs=2e-3, rel=2e-3, nan_ok=True), name


STACKABLE = [
    name for name, kind in AGENTS.items() if kind(episodes("sppo/SparseChain-v0"), **SETTINGS).collects_plainly
]


def test_most_agents_stack() -> None:
    assert {"ppo", "sppo", "tracker", "reinforce", "grpo", "drgrpo", "gspo", "rloo", "restem", "dpo"} <= {*STACKABLE}
    assert "dapo" not in STACKABLE


@pytest.mark.parametrize("name", STACKABLE)
@pytest.mark.parametrize("env_id", [UNEQUAL, "sppo/SparseChain-v0"])
def test_stacked_is_alone(name: str, env_id: str) -> None:
    stacked, alone = (made(AGENTS[name], env_id) for _ in range(2))
    before = [agent.policy.weights[0].detach().clone() for agent in stacked]
    stack = Stack(stacked)
    for _ in range(3):
        together = stack.train_once()
        for metrics, agent in zip(together, alone, strict=True):
            assert_same_metrics(metrics, agent.train_once())
    for a, b, old in zip(stacked, alone, before, strict=True):
        assert_same(a, b)
        assert (b.policy.weights[0] - old).abs().max() > 3e-3, "there was something to compare"


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 50},  # agents with more steps have more minibatches
        {"normalize_advantage": True, "ent_coef": 0.01},
        {"aggregation": "sequence_mean"},
        {"aggregation": "constant_horizon", "max_grad_norm": 1e-3},
        {"gamma": 0.99, "gae_lambda": 0.9, "value_loss": "bce", "activation": "tanh"},
    ],
    ids=str,
)
def test_stacked_is_alone_whatever_the_settings(settings: dict[str, Any]) -> None:
    stacked, alone = (made(PPO, UNEQUAL, **settings) for _ in range(2))
    stack = Stack(stacked)
    for _ in range(3):
        together = stack.train_once()
        for metrics, agent in zip(together, alone, strict=True):
            assert_same_metrics(metrics, agent.train_once())
    for a, b in zip(stacked, alone, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("env_id", ["sppo/Pendulum-v0", "sppo/SparseChain-v0"])
def test_continuous_and_discrete_actions(env_id: str) -> None:
    env = episodes(env_id, horizon=6, **({"goal": 5} if "Chain" in env_id else {}))
    stacked, alone = ([SPPO(env, seed=seed, **SETTINGS) for seed in range(2)] for _ in range(2))
    learn(stacked, total_episodes=24)
    for agent in alone:
        agent.learn(total_episodes=24)
    for a, b in zip(stacked, alone, strict=True):
        assert_same(a, b)


def test_early_stops_are_each_agents_own() -> None:
    """A target that some minibatches of some agents exceed: orders, Adam steps and what follows are as alone."""
    stacked, alone = (made(PPO, UNEQUAL, learning_rate=2e-2, target_kl=0.01, n_epochs=3) for _ in range(2))
    stack, stops, steps = Stack(stacked), [], []
    for _ in range(4):
        together = stack.train_once()
        for metrics, agent in zip(together, alone, strict=True):
            assert_same_metrics(metrics, agent.train_once())
            stops.append(metrics["train/early_stop"])
            steps.append(metrics["train/n_updates"])
    assert 1 in stops and len(set(steps)) > 2, "some stopped, at different minibatches"
    for a, b in zip(stacked, alone, strict=True):
        assert_same(a, b, atol=1e-3)


def test_an_agent_that_stopped_early_goes_on_alone() -> None:
    agents = made(PPO, UNEQUAL, n=2, learning_rate=0.1, target_kl=1e-4)
    assert Stack(agents).train_once()[0]["train/early_stop"] == 1
    before = agents[0].learner.flat.clone()
    agents[0].train_once()
    assert not torch.equal(before, agents[0].learner.flat)


def test_one_leaves_and_the_others_go_on() -> None:
    """Budgets in steps: agents whose episodes are longer are done earlier; a callback ends another."""
    budget = 1200
    updates: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def callbacks() -> list[Any]:
        return [
            lambda agent, metrics: updates[0].append(agent.n_updates),
            lambda agent, metrics: agent.n_updates < 2,
            None,
        ]

    stacked, alone = (made(PPO, UNEQUAL) for _ in range(2))
    learn(stacked, total_steps=budget, callbacks=callbacks())
    for agent, callback in zip(alone, callbacks(), strict=True):
        agent.learn(total_steps=budget, callback=callback)
    assert stacked[1].n_updates == 2 < stacked[0].n_updates
    assert updates[0] == [*range(1, stacked[0].n_updates + 1)] * 2
    assert all(agent.num_steps >= budget for agent in (stacked[0], stacked[2]))
    for a, b in zip(stacked, alone, strict=True):
        assert_same(a, b)
    # Alone again, each goes on from its own optimiser state.
    for a, b in zip(stacked, alone, strict=True):
        assert_same_metrics(a.train_once(), b.train_once())
        assert_same(a, b)


def test_agents_in_a_stack_are_whole(tmp_path: Any) -> None:
    agents = made(PPO, UNEQUAL, n=2)
    stack = Stack(agents)
    stack.train_once()
    observations = np.random.default_rng(0).normal(size=(20, 5))
    agents[1].save(tmp_path / "one")
    loaded = PPO.load(tmp_path / "one", episodes(UNEQUAL, **DIALS[UNEQUAL]))
    action, _ = agents[1].predict(observations, deterministic=True)
    np.testing.assert_array_equal(action, loaded.predict(observations, deterministic=True)[0])
    stack.train_once()  # saving did not disturb it, and the copy goes on as the original does
    loaded.train_once()
    assert_same(agents[1], loaded)


def test_each_agents_episodes_are_its_own() -> None:
    agents = made(SPPO, "sppo/SparseChain-v0", n=2)
    traj = Stack(agents).rollout()
    alone = made(SPPO, "sppo/SparseChain-v0", n=2)
    for i, agent in enumerate(alone):
        own = agent.sampler.rollout(agent.starts())
        for name in ("inputs", "actions", "rewards", "success"):
            assert torch.equal(getattr(traj, name)[8 * i : 8 * i + 8], getattr(own, name)), name


def test_what_cannot_be_stacked() -> None:
    env = episodes("sppo/SparseChain-v0")
    first = PPO(env, seed=0)
    for other in (
        PPO(env, seed=1, learning_rate=1e-2),
        PPO(env, seed=1, net_arch=(8,)),
        PPO(env, seed=1, activation="tanh"),
        SPPO(env, seed=1),
        PPO(episodes("sppo/SparseChain-v0", goal=3), seed=1),
        PPO(ControlSampler(env, seed=1, max_episode_steps=9), seed=1),
    ):
        assert not can_stack([first, other])
        with pytest.raises(ValueError, match="if they differ by seed alone, share one environment"):
            Stack([first, other])
    assert can_stack([first, PPO(env, seed=1)])
    for settings in ({"n_steps": 8}, {"microbatch_size": 2}):
        assert not can_stack([PPO(env, seed=seed, **settings) for seed in range(2)])

    assert not can_stack([GRPO(env, seed=seed, dynamic_sampling=1) for seed in range(2)])

    class Tree(PPO):
        def collect(self, sampler: Any, starts: Any) -> Any:
            return super().collect(sampler, starts)

    assert not can_stack([Tree(env, seed=seed) for seed in range(2)])


def test_one_agent_is_no_stack() -> None:
    a, b = (made(PPO, "sppo/SparseChain-v0", n=1, n_steps=8)[0] for _ in range(2))
    Stack([a]).train_once()
    b.train_once()
    assert torch.equal(a.learner.flat, b.learner.flat)


def test_learn_needs_a_callback_for_each() -> None:
    with pytest.raises(ValueError):
        learn(made(PPO, "sppo/SparseChain-v0", n=2), total_episodes=8, callbacks=[None])
