"""Sampling plans: repeated starts, greedy episodes, where segments begin, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_agents import chain

from sppo.agents import AGENTS, ControlSampler, ReMax, SPOChain, SPOTree, Trajectories, VinePPO
from sppo.agents.plans import before_cut_points, continuation_returns, every, greedy_outcomes, repeat
from sppo.agents.plans import segment_starts as starts_of
from sppo.agents.presets import PRESETS
from sppo.agents.sampling import pad_and_join
from sppo.agents.stack import can_stack

PLANNED = [ReMax, VinePPO, SPOChain, SPOTree]


def bits(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


# Groups and greedy rows.


def test_repeat_keeps_copies_together() -> None:
    assert repeat(np.array([5, 3]), 3).tolist() == [5, 5, 5, 3, 3, 3]
    states = repeat({"t": np.array([1, 2]), "x": np.array([[1.0, 2], [3, 4]])}, 2)
    assert states["t"].tolist() == [1, 1, 2, 2] and states["x"].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]


def test_greedy_outcomes_are_those_of_the_mode() -> None:
    """The policy goes right with probability 0.7, so its mode always does: success from 2 on, goal 10."""
    sampler = ControlSampler(chain(goal=10))
    with torch.no_grad():
        sampler.policy.weights[-1].zero_()
        sampler.policy.biases[-1][0, :, 0] = torch.tensor([0.3, 0.7]).log()
    starts = np.arange(50)
    positions = sampler.rollout(starts, max_steps=0).inputs[:, 0, 0] * 10
    assert greedy_outcomes(sampler, starts).tolist() == (positions > 1.5).float().tolist()


def test_remax_by_hand() -> None:
    """As above: the greedy twin succeeds from 2 on, so A is R - 1 there, and R = 0 below."""
    agent = ReMax(chain(goal=10), episodes_per_update=64, net_arch=(8,))
    with torch.no_grad():
        agent.policy.weights[-1].zero_()
        agent.policy.biases[-1][0, :, 0] = torch.tensor([0.1, 0.9]).log()
    experience = agent.collect(agent.sampler, agent.starts())
    assert experience.advantages is not None and isinstance(experience.traj, Trajectories)
    ahead = experience.traj.inputs[:, 0, 0] * 10 > 1.5
    assert 3 < int(ahead.sum()) < 29
    expected = torch.where(ahead, experience.traj.outcomes - 1, 0.0)
    assert torch.equal(experience.advantages, expected[:, None].expand(32, 8)) and (expected < 0).any()
    # 32 sampled episodes of 8 steps and their 32 greedy twins.
    assert agent.sampler.counts == {"env_steps": 512, "episodes": 64}


# Segments.

VALID = bits("1111111", "1111000", "1110000")


def test_segments_of_a_stride() -> None:
    assert torch.equal(every(3, VALID), bits("1001001", "1001000", "1000000"))
    assert torch.equal(every(1, VALID), VALID)
    assert torch.equal(every(99, VALID), bits("1000000", "1000000", "1000000"))


def test_segments_of_equal_numbers_of_cut_points() -> None:
    cut_points = bits("0111011", "1111000", "0000000")
    # Two in each: before the third and the fifth cut-point of row 0, before the third of row 1.
    assert torch.equal(before_cut_points(cut_points, 2, VALID), bits("1001001", "1010000", "1000000"))
    assert torch.equal(before_cut_points(cut_points, 1, VALID), bits("1011011", "1111000", "1000000"))


def test_segments_that_a_user_marks() -> None:
    assert torch.equal(starts_of(bits("0010001", "0000100", "0000000"), VALID), bits("1010001", "1000000", "1000000"))
    with pytest.raises(ValueError, match=r"marks must be \(B, T\) = \(3, 7\) bool, got \(3, 6\)"):
        starts_of(bits("111111", "111111", "111111"), VALID)
    with pytest.raises(ValueError, match="bool, got .* torch.float32"):
        starts_of(torch.ones(3, 7), VALID)

    class Halves(VinePPO):
        def segments(self, sampler: Any, traj: Trajectories) -> torch.Tensor:
            return starts_of(torch.arange(traj.valid.shape[1]).eq(4).expand(traj.valid.shape), traj.valid)

    agent = Halves(chain(), episodes_per_update=8, num_continuations=3)
    experience = agent.collect(agent.sampler, agent.starts())
    # 8 episodes of 8 steps; from each 3 continuations of 8 steps and 3 of 4.
    assert agent.sampler.counts == {"env_steps": 8 * 8 + 8 * 3 * 12, "episodes": 8}
    assert experience.advantages is not None and experience.values is not None
    for half in (slice(0, 4), slice(4, 8)):
        assert (experience.advantages[:, half] == experience.advantages[:, half][:, :1]).all()
        assert (experience.values[:, half] == experience.values[:, half][:, :1]).all()


# Batches of several rollouts.


def test_joined_rows_are_what_they_were() -> None:
    sampler = ControlSampler(chain())
    parts = [sampler.rollout(sampler.starts(3), max_steps=2), sampler.rollout(sampler.starts(2))]
    whole = pad_and_join(parts)
    assert whole.valid.shape == (5, 8) and whole.inputs.shape == (5, 9, 2) and whole.group.tolist() == [0, 1, 2, 3, 4]
    for name in ("inputs", "actions", "logprobs", "rewards"):
        assert torch.equal(getattr(whole, name)[3:], getattr(parts[1], name))
        wide = getattr(parts[0], name)
        assert torch.equal(getattr(whole, name)[:3, : wide.shape[1]], wide)
    assert whole.truncated.tolist() == [True] * 3 + [False] * 2


# What is refused.


def test_a_policy_without_a_mode() -> None:
    agent = ReMax(chain(), episodes_per_update=8)
    agent.policy.has_mode = False
    with pytest.raises(ValueError, match="a greedy episode needs a policy with a mode, and CategoricalPolicy has none"):
        agent.train_once()


@pytest.mark.parametrize("kind", [VinePPO, SPOChain, SPOTree])
def test_an_environment_without_snapshots(kind: type) -> None:
    env = chain()

    def snapshot() -> Any:
        raise NotImplementedError

    env.snapshot = snapshot
    with pytest.raises(ValueError, match="SparseChain has no snapshots, which continuations, trees and n_steps"):
        kind(env, episodes_per_update=8).train_once()


def test_continuations_without_states() -> None:
    sampler = ControlSampler(chain())
    traj = sampler.rollout(sampler.starts(2))
    with pytest.raises(ValueError, match="continuations need the states that a rollout passed through"):
        continuation_returns(sampler, traj, every(4, traj.valid), 2)


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (VinePPO, {"num_continuations": 0}, "num_continuations must be at least 1, got 0"),
        (SPOChain, {"num_continuations": 0}, "num_continuations must be at least 1, got 0"),
        (VinePPO, {"stride": 0}, "stride must be at least 1 step, got 0"),
        (SPOChain, {"cut_threshold": 1.0}, "cut_threshold must lie strictly between 0 and 1, got 1.0"),
        (SPOChain, {"cut_threshold": 0.0}, "cut_threshold must lie strictly between 0 and 1, got 0.0"),
        (SPOChain, {"mask_threshold": 1.0}, "mask_threshold must be in"),
        (SPOTree, {"mask_threshold": 0.0}, "mask_threshold must be in"),
        (SPOChain, {"cut_interval": 0}, "cut_interval must be at least 1, got 0"),
        (SPOTree, {"branching": (4, 1)}, r"branching must be at least 2 at every level, got \(4, 1\)"),
        (SPOTree, {"branching": ()}, r"branching must be at least 2 at every level, got \(\)"),
        (SPOTree, {"branching": (6, 6)}, "episodes_per_update must be a multiple of a tree's 36 leaves, got 64"),
        (SPOTree, {"segment_length": 0}, "segment_length must be at least 1 step or None, got 0"),
        (ReMax, {"episodes_per_update": 7}, "episodes_per_update must be even, half sampled and half greedy, got 7"),
    ],
)
def test_settings_out_of_range(kind: type, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kind(chain(), **settings)


@pytest.mark.parametrize("kind", PLANNED)
def test_one_seed_at_a_time(kind: type) -> None:
    env = chain()
    assert not can_stack([kind(env, seed=seed) for seed in (0, 1)])


@pytest.mark.parametrize("name", ["spo-chain", "spo-tree"])
def test_published_settings_run(name: str) -> None:
    agent = AGENTS[name](chain(), **PRESETS[name]["gsm8k"])
    assert np.isfinite(agent.train_once()["credit/advantage_std"])
