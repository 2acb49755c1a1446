"""Methods over groups from one start: credit by hand, identities, the penalty for length, dynamic sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import SMALL, chain, grouped, told
from torch import Tensor

from sppo.agents import DAPO, DPO, GRPO, GSPO, RLOO, DrGRPO, RestEM, Trajectories
from sppo.agents.batch import Experience
from sppo.agents.credit import group_statistics, overlong_penalty
from sppo.agents.diagnostics import credit_metrics

GROUPED = [GRPO, DrGRPO, DAPO, GSPO, RLOO, RestEM, DPO]


def advantages(kind: Any, traj: Trajectories, **settings: Any) -> Tensor:
    """(B,) at the first step."""
    found = kind(chain(), **SMALL | {"num_generations": 4} | settings).credit(traj).advantages
    assert found is not None and bool((found == found[:, :1] * traj.valid).all())
    return found[:, 0]


# Credit.


def test_advantages_by_hand() -> None:
    # Group 7: mean 1/4, standard deviation sqrt(3)/4 with divisor 4: 3/4 and -1/4 over it; groups all alike: 0.
    high, low = 3**0.5, -(3**-0.5)
    expected = pytest.approx([high, 0, low, low, 0, 0, low, 0], abs=1e-5)
    for kind in (GRPO, DAPO, GSPO):
        assert advantages(kind, grouped()).tolist() == expected
    # With divisor 3 the standard deviation is 1/2.
    assert advantages(GRPO, grouped(), std_correction=1).tolist() == pytest.approx(
        [1.5, 0, -0.5, -0.5, 0, 0, -0.5, 0], abs=1e-5
    )
    assert advantages(DrGRPO, grouped()).tolist() == pytest.approx([0.75, 0, -0.25, -0.25, 0, 0, -0.25, 0], abs=1e-6)
    # The siblings' mean: of the success 0, of each failure 1/3.
    assert advantages(RLOO, grouped()).tolist() == pytest.approx([1, 0, -1 / 3, -1 / 3, 0, 0, -1 / 3, 0], abs=1e-6)


@pytest.mark.parametrize("outcome", [0.7, 100.1])
def test_equal_outcomes_give_nothing_whatever_their_rounding(outcome: float) -> None:
    """Neither is a float32: the mean of several is off by an ulp, which a spread of ulps would blow up."""
    for kind in (GRPO, DrGRPO, RLOO):
        for n in (3, 5, 8):
            found = advantages(kind, grouped([outcome] * n, [0] * n))
            assert found.dtype == torch.float32 and not found.any()
    assert advantages(GRPO, grouped([outcome, outcome, 0.0], [0, 0, 1])).tolist() == [0, 0, 0]


def test_small_differences_are_differences() -> None:
    sampler = Scripted([1e-7, 0, 0, 0, 1, 1, 1, 1], [1, 0, 0, 0])
    experience = collected(GRPO, sampler, dynamic_sampling=1)
    assert experience.share.any(1).nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_start_that_is_drawn_twice_makes_two_groups() -> None:
    agent = GRPO(chain(), **SMALL | {"num_generations": 4})
    experience = agent.collect(Scripted([1, 1, 1, 1, 0, 0, 0, 0]), np.repeat([3, 3], 4))
    assert experience.traj.group.tolist() == [0] * 4 + [1] * 4 and not experience.advantages.any()


@pytest.mark.parametrize("kind", [RestEM, DPO])
def test_methods_that_read_success_refuse_what_charges_the_outcome(kind: Any) -> None:
    for wrong, message in (
        ({"overlong_buffer": 0.2}, "overlong_buffer lowers outcomes"),
        ({"kl_coef": 0.1, "kl_in": "reward"}, "kl_in='reward' lowers outcomes"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(chain(), **SMALL | wrong)


def test_episodes_count_once_whatever_their_length() -> None:
    long, short = (grouped([1, 0], [0, 0], lengths=lengths) for lengths in ([5, 1], [1, 5]))
    for kind in (GRPO, DrGRPO, RLOO):
        assert advantages(kind, long).tolist() == advantages(kind, short).tolist()


@given(outcomes=st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_leave_one_out_is_the_centred_outcome_scaled(outcomes: list[float]) -> None:
    """RLOO = centred GRPO x G / (G - 1), here with G = 4."""
    traj = grouped(outcomes, [0, 0, 0, 0])
    torch.testing.assert_close(advantages(RLOO, traj), advantages(DrGRPO, traj) * 4 / 3, atol=1e-5, rtol=1e-5)


def test_large_groups_of_zeros_and_ones_have_a_closed_form() -> None:
    """p = 1/10: sqrt((1 - p) / p) = 3 for a success, -sqrt(p / (1 - p)) = -1/3 for a failure."""
    success = (torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    found = advantages(GRPO, grouped(success.tolist(), [0] * len(success)))
    assert found[success == 1][0] == pytest.approx(3, abs=0.1)
    assert found[success == 0][0] == pytest.approx(-1 / 3, abs=0.01)


def test_groups_share_a_start() -> None:
    agent = GRPO(chain(slip=0.1), num_generations=4, **SMALL)
    traj = agent.sampler.rollout(agent.starts())
    assert torch.unique(traj.group, return_counts=True)[1].tolist() == [4, 4]
    for group in traj.group.unique():
        assert (traj.inputs[traj.group == group][:, 0] == traj.inputs[traj.group == group][:1, 0]).all()


@pytest.mark.parametrize("kind", GROUPED)
def test_group_settings_out_of_range(kind: Any) -> None:
    for wrong, message in (
        ({"num_generations": 1}, "num_generations must be at least 2 to have siblings, got 1"),
        ({"num_generations": 3}, "episodes_per_update must be a multiple of num_generations = 3, got 8"),
        ({"dynamic_sampling": -1}, "dynamic_sampling must not be negative, got -1"),
        ({"dynamic_sampling": 1, "kl_coef": 0.1, "kl_in": "reward"}, "dynamic_sampling looks for equal outcomes"),
        ({"overlong_buffer": 1.0}, r"overlong_buffer must be in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(chain(), **SMALL | wrong)
    with pytest.raises(ValueError, match="std_correction must be 0"):
        GRPO(chain(), std_correction=2, **SMALL)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        DPO(chain(), beta=0, **SMALL)


def test_group_statistics_by_hand() -> None:
    # 1, 3 and 8: mean 4, squared deviations 9 + 1 + 16 = 26.
    mean, std, size = group_statistics(torch.tensor([1.0, 3.0, 8.0]), torch.zeros(3, dtype=torch.int64))
    assert mean.tolist() == [4] * 3 and size.tolist() == [3] * 3
    assert std[0] == pytest.approx((26 / 3) ** 0.5)
    one_less = group_statistics(torch.tensor([1.0, 3.0, 8.0]), torch.zeros(3, dtype=torch.int64), 1)[1]
    assert one_less[0] == pytest.approx(13**0.5)


# The penalty for length.


def test_overlong_penalty_by_hand() -> None:
    # L = 20, C = 4: nothing up to 16, then a quarter more with every step.
    lengths = torch.tensor([3, 16, 17, 18, 19, 20])
    assert overlong_penalty(lengths, 20, 4).tolist() == [0, 0, -0.25, -0.5, -0.75, -1]


def test_the_penalty_is_a_switch_of_any_group_method() -> None:
    """The chain's horizon is 8, so C = 4: lengths 4, 6, 8 lose 0, 1/2, 1; outcomes 1, 1/2, 0 have mean 1/2."""
    traj = grouped([1, 1, 1], [0, 0, 0], lengths=[4, 6, 8])
    assert advantages(DrGRPO, traj).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert advantages(DrGRPO, traj, overlong_buffer=0.5).tolist() == pytest.approx([0.5, 0, -0.5], abs=1e-6)
    # Deviation sqrt(1/6); less the mean of the other two: 1 - 1/4, 1/2 - 1/2, 0 - 3/4.
    assert advantages(GRPO, traj, overlong_buffer=0.5).tolist() == pytest.approx([1.224745, 0, -1.224745], abs=1e-4)
    assert advantages(RLOO, traj, overlong_buffer=0.5).tolist() == pytest.approx([0.75, 0, -0.75], abs=1e-6)
    agent = GRPO(chain(), overlong_buffer=0.5, **SMALL)
    agent.sampler.horizon = None
    with pytest.raises(ValueError, match="overlong_buffer needs a task with a horizon"):
        agent.credit(traj)


# Dynamic sampling.


class Scripted:
    """Rollouts with given outcomes."""

    def __init__(self, *outcomes: list[float]) -> None:
        self.script, self.asked = list(outcomes), [len(o) for o in outcomes]

    def rollout(self, starts: Any) -> Trajectories:
        outcomes = self.script.pop(0)
        assert len(starts) == len(outcomes)
        return replace(told(outcomes), group=torch.from_numpy(np.unique(starts, return_inverse=True)[1]))


def collected(kind: Any, sampler: Any, **settings: Any) -> Experience:
    agent = kind(chain(), **SMALL | {"num_generations": 4} | settings)
    return agent.collect(sampler, np.repeat([3, 5], 4))


@pytest.mark.parametrize("kind", [GRPO, DrGRPO, RLOO, GSPO, DPO])
def test_groups_that_teach_nothing_are_replaced(kind: Any) -> None:
    """One of two groups is missing, its replacement too, the next one is found; told episodes have two steps."""
    sampler = Scripted([1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1])
    experience = collected(kind, sampler, dynamic_sampling=5, aggregation="token_mean")
    assert sampler.script == [] and len(experience) == 16
    kept = [4, 5, 6, 7, 12, 13, 14, 15] if kind is not DPO else [4, 5, 12, 13, 14, 15]
    assert experience.share.any(1).nonzero().squeeze(1).tolist() == kept
    assert experience.share.sum() == experience.weight.sum() == 2 * len(kept)
    assert experience.traj.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_refills_are_bounded() -> None:
    sampler = Scripted([1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1], [9, 9])
    experience = collected(GRPO, sampler, dynamic_sampling=1)
    assert sampler.script == [[9, 9]] and not experience.share.any()
    assert collected(GRPO, Scripted([1, 1, 1, 1, 0, 0, 0, 0])).share.sum() == 16, "without it, all are learned from"


def test_discarded_groups_are_not_whitened_with_the_others() -> None:
    """Kept: 3/4, -1/4, -1/4, -1/4 on two steps each, mean 0, variance 2 (9 + 1 + 1 + 1) / 16 / 7 = 3/14."""
    sampler = Scripted([1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1])
    experience = collected(DrGRPO, sampler, dynamic_sampling=1, normalize_advantage=True)
    assert experience.advantages is not None
    spread = (3 / 14) ** 0.5
    expected = [0] * 4 + [0.75 / spread] + [-0.25 / spread] * 3 + [0] * 4
    assert experience.advantages[:, 1].tolist() == pytest.approx(expected, abs=1e-5)
    assert credit_metrics(experience)["credit/masked_steps"] == pytest.approx(16 / 24)


def test_discarded_groups_change_nothing_but_the_count() -> None:
    """The same update from a batch with a group that is discarded as from one that never held it."""
    agents = [GRPO(chain(), dynamic_sampling=n, num_generations=4, **SMALL) for n in (1, 0)]
    traj = agents[0].sampler.rollout(np.repeat([3, 5], 4))
    mixed = replace(traj, rewards=torch.zeros_like(traj.rewards))
    mixed.rewards[:5, -1] = 1  # group 0: all; group 1: one
    before = agents[0].learner.flat.clone()
    for agent, rows in zip(agents, (slice(0, 8), slice(4, 8)), strict=True):
        part = mixed[rows]
        agent.update(agent.credit(replace(part, group=part.group - part.group.min())))
    torch.testing.assert_close(agents[0].learner.flat, agents[1].learner.flat, rtol=0, atol=1e-7)
    assert (agents[0].learner.flat - before).abs().max() > 1e-4


def test_discarded_groups_are_counted() -> None:
    agent = DAPO(chain(goal=8, start_spread=2), seed=0, **SMALL | {"num_generations": 4})
    metrics = [agent.train_once() for _ in range(4)]
    assert max(m["time/episodes_this_update"] for m in metrics) > 8
    assert sum(m["time/steps_this_update"] for m in metrics) == agent.num_steps == agent.sampler.counts["env_steps"]
    assert np.mean([m["rollout/success_rate"] for m in metrics]) < 0.2, "of all that was sampled, not of what was kept"
