"""SPO-tree: segments that branch again at their ends, so that siblings value one another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience
from sppo.agents.config import AgentConfig
from sppo.agents.plans import grow_tree
from sppo.agents.segments import sibling_advantage, tree_values


@dataclass(frozen=True, kw_only=True)
class SPOTreeConfig(AgentConfig):
    """Settings of SPO-tree; the paper branches 6-6-6, here 2-2-2 has as many leaves as GRPO has siblings.

    Args:
        branching: segments from each state, level by level; an update has episodes_per_update / their product starts.
        segment_length: M, steps of a segment; those of the last level run to the end. None: the horizon / levels, for
            episodes that last about that long; where they end earlier, trees have few leaves.
        scale_by_std: divide advantages by the spread among siblings.
        mask_threshold: as for every agent, here on by default.
    """

    branching: tuple[int, ...] = (2, 2, 2)
    segment_length: int | None = None
    scale_by_std: bool = False
    mask_threshold: float | None = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "branching", tuple(self.branching))  # JSON has lists
        if not self.branching or min(self.branching) < 2:
            raise ValueError(f"branching must be at least 2 at every level, got {self.branching}")
        if self.segment_length is not None and self.segment_length < 1:
            raise ValueError(f"segment_length must be at least 1 step or None, got {self.segment_length}")
        leaves, n = math.prod(self.branching), self.episodes_per_update
        if n % leaves:
            raise ValueError(f"episodes_per_update must be a multiple of a tree's {leaves} leaves, got {n}")


class SPOTree(Agent):
    """A(node) = V(node) - mean of its siblings' V, itself included; V(node) = mean of its children's, V(leaf) = R.

    Each node is a row of the batch, its segment trained with its own advantage; a node that ends early is a leaf.
    Nodes without advantage are left out of the loss and of its divisor. Leaves count as episodes: an update has at most
    `episodes_per_update` of them, fewer where nodes end early.

    Source: Segment Policy Optimization, arXiv 2505.23564, section 4.2.
    """

    Config = SPOTreeConfig

    def starts(self) -> Any:
        return self.sampler.starts(self.config.episodes_per_update // math.prod(self.config.branching))

    def collect(self, sampler: Any, starts: Any) -> Experience:
        c = self.config
        tree = grow_tree(sampler, starts, c.branching, self.segment_length())
        values = tree_values(tree.parent, tree.returns)
        advantages = sibling_advantage(values, tree.parent, scale_by_std=c.scale_by_std)
        self.of_leaves = {
            "rollout/success_rate": float(tree.traj.success[tree.leaf].float().mean()),
            "rollout/ep_rew_mean": float(tree.returns[tree.leaf].mean()),
            "rollout/ep_len_mean": float(tree.lengths[tree.leaf].float().mean()),
            "rollout/truncated": float((tree.traj.truncated & tree.leaf).float().sum() / tree.leaf.sum()),
        }
        return self.experience(tree.traj, advantages[:, None] * tree.traj.valid, keep=advantages != 0)

    def segment_length(self) -> int:
        """M, steps."""
        if self.config.segment_length is not None:
            return int(self.config.segment_length)
        if self.sampler.horizon is None:
            raise ValueError("segment_length must be given where the environment has no horizon")
        return -(-int(self.sampler.horizon) // len(self.config.branching))

    def account(self, experience: Experience, *measured: Any) -> dict[str, float]:
        """See `Agent.account`; what is said of episodes is said of the leaves."""
        return super().account(experience, *measured) | self.of_leaves
