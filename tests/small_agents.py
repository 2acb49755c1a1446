"""Small agents on the chain, and episodes made up for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sppo.agents import Trajectories
from sppo.agents.groups import GroupAgent
from sppo.agents.stack import can_stack, learn
from sppo.envs import episodes

CHAIN = "sppo/SparseChain-v0"
SMALL: dict[str, Any] = {"episodes_per_update": 8, "net_arch": (16,)}
# Groups 7: 1, 0, 0, 0 and 9: 1, 1, among one another; group 8 alike.
OUTCOMES, GROUPS = [1, 1, 0, 0, 0, 1, 0, 0], [7, 9, 7, 7, 8, 9, 7, 8]


def chain(**dials: Any) -> Any:
    return episodes(CHAIN, **dials)


def small(kind: Any, **settings: Any) -> Any:
    """Any algorithm's agent; in groups of 4 where it learns from groups."""
    groups = {"num_generations": 4} if issubclass(kind, GroupAgent) else {}
    return kind(chain(), **SMALL | groups | settings)


def learned_together_and_alone(make: Callable[[int], Any]) -> list[tuple[Any, Any]]:
    """Three seeds' agents that learned side by side, each with its twin that learned alone, of the same policy."""
    together, alone = ([make(seed) for seed in range(3)] for _ in range(2))
    assert can_stack(together)
    learn(together, total_episodes=24)
    pairs = list(zip(together, alone, strict=True))
    for a, b in pairs:
        b.learn(total_episodes=24)
        torch.testing.assert_close(a.learner.flat, b.learner.flat, atol=2e-4, rtol=0)
    return pairs


def learns_values_and_goes_on(agent: Any, env: Any, folder: Path) -> None:
    """The loss of values falls, and an agent loaded with this environment goes on bit for bit."""
    losses = [agent.train_once()["train/value_loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    agent.save(folder)
    loaded = type(agent).load(folder, env)
    for one in (agent, loaded):
        one.train_once()
    assert torch.equal(agent.learner.flat, loaded.learner.flat)


def told(outcomes: list[float], lengths: list[int] | None = None, keys: list[int] | None = None) -> Trajectories:
    """Episodes with these outcomes, paid at their ends."""
    b = len(outcomes)
    length = torch.tensor(lengths or [2] * b)
    t = int(length.max())
    rewards, never = torch.zeros(b, t), torch.zeros(b, dtype=torch.bool)
    rewards[torch.arange(b), length - 1] = torch.tensor(outcomes, dtype=torch.float)
    return Trajectories(
        inputs=torch.rand(b, t + 1, 2, generator=torch.Generator().manual_seed(0)),
        actions=torch.zeros(b, t, dtype=torch.int64),
        logprobs=torch.zeros(b, t),
        valid=torch.arange(t) < length[:, None],
        rewards=rewards,
        terminated=~never,
        truncated=never,
        group=torch.arange(b),
        start_key=torch.tensor(keys or [-1] * b),
        success=rewards.sum(1) > 0,
    )


def grouped(outcomes: list[float] = OUTCOMES, group: list[int] = GROUPS, **told_as: Any) -> Trajectories:
    return replace(told(outcomes, **told_as), group=torch.tensor(group))
