"""Trees of segments: a golden one from a scripted sampler, what its nodes teach, and where it ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_agents import chain

from sppo.agents import GRPO, RLOO, ControlSampler, DrGRPO, SPOTree, Trajectories
from sppo.agents.networks import CategoricalPolicy
from sppo.agents.plans import grow_tree
from sppo.agents.segments import tree_values
from sppo.envs import episodes


class Scripted:
    """A sampler whose rollouts are written down: a row is (steps, reward), the reward None where it is to go on."""

    horizon = 9

    def __init__(self, levels: list[list[tuple[int, float | None]]]) -> None:
        self.levels, self.asked = iter(levels), []  # type: ignore[var-annotated]
        self.policy = CategoricalPolicy(1, 2)
        self.counts = {"env_steps": 0, "episodes": 0}

    def starts(self, n: int) -> NDArray[np.int64]:
        return np.arange(100, 100 + n)

    def rollout(self, starts: Any, *, max_steps: int | None = None, keep_states: bool = False) -> Trajectories:
        rows, fresh = next(self.levels), not isinstance(starts, dict)
        self.asked.append((starts.tolist() if fresh else starts["came_from"].tolist(), max_steps))
        n, t = len(rows), max(length for length, _ in rows)
        lengths, goes_on = np.array([r[0] for r in rows]), np.array([r[1] is None for r in rows])
        rewards = torch.zeros(n, t)
        rewards[torch.arange(n), torch.from_numpy(lengths) - 1] = torch.tensor([r[1] or 0.0 for r in rows])
        level = len(self.asked) - 1

        class States:
            @staticmethod
            def running(i: Any, steps: Any) -> Any:
                return goes_on[i] & (steps == lengths[i])

            @staticmethod
            def at(i: Any, steps: Any) -> Any:
                assert (steps == lengths[i]).all()
                return {"came_from": np.array([f"{level}.{k}" for k in i])}

        self.counts["env_steps"] += int(lengths.sum())
        self.counts["episodes"] += n if fresh else 0
        over = torch.from_numpy(~goes_on)
        return Trajectories(
            inputs=torch.zeros(n, t + 1, 1),
            actions=torch.zeros(n, t, dtype=torch.int64),
            logprobs=torch.full((n, t), -1.0),
            valid=torch.arange(t) < torch.from_numpy(lengths)[:, None],
            rewards=rewards,
            terminated=over,
            truncated=~over,
            group=torch.zeros(n, dtype=torch.int64),
            start_key=torch.full((n,), -1),
            success=rewards.sum(1) > 0,
            states=States() if keep_states else None,
        )


# Two starts, segments of three steps. Row by row: the first start's two nodes, the second's; the two children of 0,
# then those of 3; the children of 4 alone. Node 2 fails at the very step at which it would have been cut.
SCRIPT: list[list[tuple[int, float | None]]] = [
    [(3, None), (2, 1), (3, 0), (3, None)],
    [(3, None), (1, 0), (2, 1), (3, 1)],
    [(3, 1), (2, 0)],
]


def test_golden_tree() -> None:
    sampler = Scripted(SCRIPT)
    tree = grow_tree(sampler, sampler.starts(2), (2, 2, 2), 3)
    assert sampler.asked == [
        ([100, 100, 101, 101], 3),
        (["0.0", "0.0", "0.3", "0.3"], 3),
        (["1.0", "1.0"], None),
    ]
    assert tree.parent.tolist() == [-1, -1, -2, -2, 0, 0, 3, 3, 4, 4]
    assert tree.leaf.int().tolist() == [0, 1, 1, 0, 0, 1, 1, 1, 1, 1]
    assert tree.traj.lengths.tolist() == [3, 2, 3, 3, 3, 1, 2, 3, 3, 2]
    assert tree.lengths.tolist() == [3, 2, 3, 3, 6, 4, 5, 6, 9, 8]
    assert tree.returns[tree.leaf].tolist() == [1, 0, 0, 1, 1, 1, 0]
    # V(4) = (1 + 0) / 2; V(0) = (1/2 + 0) / 2; V(3) = (1 + 1) / 2.
    assert tree_values(tree.parent, tree.returns).tolist() == [0.25, 1, 0, 1, 0.5, 0, 1, 1, 1, 0]
    assert sampler.counts == {"env_steps": 25, "episodes": 7}, "every step once; leaves are episodes"


def test_spo_tree_trains_each_node_with_its_own_advantage() -> None:
    sampler = Scripted(SCRIPT)
    agent = SPOTree(sampler, episodes_per_update=16, mask_threshold=None)
    experience = agent.collect(sampler, agent.starts())
    assert sampler.asked[0] == ([100, 100, 101, 101], 3), "two starts; a third of the horizon"
    assert experience.advantages is not None
    # Siblings' means: 5/8, 1/2, 1/4, 1 (nodes 6 and 7, equal: no advantage), 1/2.
    expected = [-0.375, 0.375, -0.5, 0.5, 0.25, -0.25, 0, 0, 0.5, -0.5]
    assert experience.advantages[:, 0].tolist() == expected
    steps = [3, 2, 3, 3, 3, 1, 0, 0, 3, 2]
    assert experience.weight.sum(1).tolist() == steps, "nodes 6 and 7 carry no loss"
    assert experience.share.sum(1).tolist() == steps, "nor do they count in the divisor"
    metrics = agent.account(experience, {"train/n_updates": 0.0}, 1.0, 1.0, 1.0)
    # Of seven leaves four succeed; they end at 2, 3, 4, 5, 6, 9 and 8 steps.
    assert metrics["rollout/success_rate"] == metrics["rollout/ep_rew_mean"] == pytest.approx(4 / 7)
    assert metrics["rollout/ep_len_mean"] == pytest.approx(37 / 7) and metrics["rollout/truncated"] == 0
    assert metrics["time/episodes_this_update"] == 7 and metrics["time/steps_this_update"] == 25


def test_a_tree_that_ends_early_stops_growing() -> None:
    sampler = Scripted([[(1, 1), (2, 0)]])
    tree = grow_tree(sampler, sampler.starts(1), (2, 2, 2), 3)
    assert tree.leaf.all() and sampler.counts["episodes"] == 2


def test_returns_add_up_along_a_path() -> None:
    env = chain(reward="dense")
    sampler = ControlSampler(env)
    tree = grow_tree(sampler, sampler.starts(3), (2, 3, 2), 3)
    assert (tree.lengths[tree.leaf] == 8).all() and int(tree.leaf.sum()) == 36
    first = tree.traj.inputs[:, 0, 0] * env.goal
    for i in tree.leaf.nonzero().flatten().tolist():
        root = i
        while tree.parent[root] >= 0:
            root = int(tree.parent[root])
        last = tree.traj.inputs[i, int(tree.traj.lengths[i]), 0] * env.goal
        assert float(tree.returns[i]) == pytest.approx(float(last - first[root]) / env.goal, abs=1e-5)


def test_a_tree_under_a_limit_of_the_environments_own() -> None:
    """Pendulum-v1 cut after 6 steps, segments of 3: the second level ends where the limit is, and is all leaves."""
    sampler = ControlSampler(episodes("Pendulum-v1", max_episode_steps=6))
    tree = grow_tree(sampler, sampler.starts(2), (2, 2, 2), 3)
    assert tree.leaf.tolist() == [False] * 4 + [True] * 8 and (tree.lengths[tree.leaf] == 6).all()


def test_depth_one_is_a_group() -> None:
    """From the same seed the same episodes, with the advantages of Dr.GRPO; scaled GRPO's; times G / (G - 1) RLOO's."""
    settings: dict[str, Any] = {"seed": 3, "episodes_per_update": 32, "net_arch": (8,)}
    tree = {"branching": (4,), "mask_threshold": None}

    def advantages(kind: type, **more: Any) -> torch.Tensor:
        agent = kind(chain(), **settings, **more)
        experience = agent.collect(agent.sampler, agent.starts())
        assert agent.sampler.counts == {"env_steps": 256, "episodes": 32}
        return torch.as_tensor(experience.advantages)

    mine = advantages(SPOTree, **tree)
    assert mine.std() > 0.1
    torch.testing.assert_close(mine, advantages(DrGRPO, num_generations=4))
    torch.testing.assert_close(mine * 4 / 3, advantages(RLOO, num_generations=4))
    torch.testing.assert_close(advantages(SPOTree, scale_by_std=True, **tree), advantages(GRPO, num_generations=4))


def test_a_tree_without_a_horizon() -> None:
    sampler = Scripted(SCRIPT)
    sampler.horizon = None  # type: ignore[assignment]
    agent = SPOTree(sampler, episodes_per_update=16)
    with pytest.raises(ValueError, match="segment_length must be given where the environment has no horizon"):
        agent.collect(sampler, agent.starts())
