"""Methods over groups from one start: credit by hand, identities, dynamic sampling, and the losses of their own."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import SMALL, chain, told
from torch import Tensor

from sppo.agents import DAPO, DPO, GRPO, GSPO, RLOO, DrGRPO, RestEM, Trajectories
from sppo.agents.batch import Experience
from sppo.agents.credit import group_statistics, overlong_penalty, preference_pairs
from sppo.agents.dpo import PreferenceLoss
from sppo.agents.gspo import SequenceLoss, mean_over_steps
from sppo.agents.losses import aggregation_weights
from sppo.agents.restem import LikelihoodLoss
from sppo.agents.update import minibatches

GROUPED = [GRPO, DrGRPO, DAPO, GSPO, RLOO, RestEM, DPO]
# Groups 7: 1, 0, 0, 0 and 9: 1, 1, among one another; group 8 alike.
OUTCOMES, GROUPS = [1, 1, 0, 0, 0, 1, 0, 0], [7, 9, 7, 7, 8, 9, 7, 8]


def grouped(outcomes: list[float] = OUTCOMES, group: list[int] = GROUPS, **told_as: Any) -> Trajectories:
    return replace(told(outcomes, **told_as), group=torch.tensor(group))


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
        ({"n_steps": 5, "num_generations": 4}, "groups need whole episodes: n_steps must be None"),
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


def test_discarded_groups_change_nothing_but_the_count() -> None:
    """The same update from a batch with a group that is discarded as from one that never held it."""
    agents = [GRPO(chain(), dynamic_sampling=n, num_generations=4, **SMALL) for n in (1, 0)]
    traj = agents[0].sampler.rollout(np.repeat([3, 5], 4))
    mixed = replace(traj, rewards=torch.zeros_like(traj.rewards))
    mixed.rewards[:5, -1] = 1  # group 0: all; group 1: one
    for agent, rows in zip(agents, (slice(0, 8), slice(4, 8)), strict=True):
        part = mixed[rows]
        agent.update(agent.credit(replace(part, group=part.group - part.group.min())))
    torch.testing.assert_close(agents[0].learner.flat, agents[1].learner.flat, rtol=0, atol=1e-7)


def test_discarded_groups_are_counted() -> None:
    agent = DAPO(chain(goal=8, start_spread=2), seed=0, **SMALL | {"num_generations": 4})
    metrics = [agent.train_once() for _ in range(4)]
    assert max(m["time/episodes_this_update"] for m in metrics) > 8
    assert sum(m["time/steps_this_update"] for m in metrics) == agent.num_steps == agent.sampler.counts["env_steps"]
    assert np.mean([m["rollout/success_rate"] for m in metrics]) < 0.2, "of all that was sampled, not of what was kept"


# Losses of their own.


class Fixed:
    """A policy whose log-probabilities are given."""

    memoryless = True

    def __init__(self, logprobs: list[list[float]]) -> None:
        self.logprobs = torch.tensor(logprobs, requires_grad=True)

    def evaluate(self, traj: Any, *, entropy: bool = False) -> Any:
        return self.logprobs, None


def experience_of(
    lengths: list[int], advantages: list[float], mask: list[list[int]] | None = None, ref: float | None = None
) -> Experience:
    """Sampled with log-probability 0, weighed by the mean over sequences."""
    traj = told([0.0] * len(lengths), lengths=lengths)
    carries = traj.valid if mask is None else traj.valid & torch.tensor(mask).bool()
    weight, share = aggregation_weights(carries, "sequence_mean")
    return Experience(
        traj=traj.choices(),
        weight=weight,
        share=share,
        advantages=torch.tensor(advantages)[:, None] * traj.valid,
        ref_logprobs=None if ref is None else torch.full(traj.valid.shape, ref),
    )


def reduced(loss: Any, data: Experience) -> Tensor:
    per_step, _ = loss(data)
    return (per_step * data.weight).sum() / data.share.sum()


def test_sequence_ratio_by_hand() -> None:
    # Log-ratios 1, 2, 6 of which the last is padding; 3, 0, 0 of which the second and third carry no loss.
    found = mean_over_steps(
        torch.tensor([[1.0, 2.0, 6.0], [3.0, 0.0, 0.0], [5.0, 5.0, 5.0]]),
        torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool(),
    )
    assert found.tolist() == [[1.5] * 3, [3] * 3, [0] * 3]


def test_sequence_loss_by_hand() -> None:
    """Ratios 4 and 1, then 2, 2 and padding: the sequences' ratio is 2 both times, far above 1.0004."""
    policy = Fixed([[log(4), 0.0], [log(2), log(2)]])
    loss = SequenceLoss(policy, 3e-4, 4e-4)
    # A = 1: clipped at 1.0004; A = -1: -min(-2, -1.0004) = 2. Mean 0.4998.
    value = reduced(loss, experience_of([2, 2], [1.0, -1.0]))
    assert float(value.detach()) == pytest.approx((2 - 1.0004) / 2)
    value.backward()
    # Clipped: none. Else d s / d log p_t = s / T = 1 at each of two steps, halved by the mean over sequences.
    assert policy.logprobs.grad is not None
    assert policy.logprobs.grad.tolist() == [pytest.approx([0, 0]), pytest.approx([0.5, 0.5])]
    stats = loss(experience_of([2, 2], [1.0, -1.0]))[1]
    assert stats["train/clip_fraction"].tolist() == [[1, 1], [1, 1]]
    # With the first step of the first sequence masked its ratio is 1, not clipped: (2 - 1) / 2.
    masked = reduced(loss, experience_of([2, 2], [1.0, -1.0], mask=[[0, 1], [1, 1]]))
    assert float(masked.detach()) == pytest.approx(0.5)
    assert not loss.memoryless, "ratios are of rows"


def test_one_step_makes_sequence_and_step_ratios_the_same() -> None:
    one_step = chain(horizon=1, goal=3)
    shared = {"seed": 1, "clip_range": 0.2, "clip_range_high": 0.2, "aggregation": "token_mean", "n_minibatches": 1}
    a, b = (kind(one_step, **SMALL | shared) for kind in (GRPO, GSPO))
    for _ in range(2):
        a.train_once(), b.train_once()
    torch.testing.assert_close(a.learner.flat, b.learner.flat, atol=1e-6, rtol=0)


def test_restem_keeps_successes() -> None:
    """Rows 0, 1 and 5 succeeded: five steps, each with -log p of 1, 2, ..."""
    experience = RestEM(chain(), **SMALL).credit(grouped(lengths=[1, 2, 1, 1, 1, 2, 1, 1]))
    assert experience.share.sum(1).tolist() == [1, 2, 0, 0, 0, 2, 0, 0]
    policy = Fixed([[-1.0, 9], [-2, -3], [9, 9], [9, 9], [9, 9], [-4, -5], [9, 9], [9, 9]])
    assert float(reduced(LikelihoodLoss(policy), experience).detach()) == pytest.approx(15 / 5)
    whitened = RestEM(chain(), normalize_advantage=True, **SMALL).credit(grouped())
    assert whitened.advantages is not None and whitened.advantages.sum() == 6, "there is nothing to whiten"


def test_pairs_by_hand() -> None:
    """Group 4 has successes 0, 3 and failures 1, 2, 6; group 5 successes 4, 5, 7 and failure 8; group 6 no failure."""
    success = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 0, 1]).bool()
    group = torch.tensor([4, 4, 4, 4, 5, 5, 4, 5, 5, 6])
    assert preference_pairs(success, group).tolist() == [0, 1, 3, 2, 4, 8]
    assert preference_pairs(success[:0], group[:0]).tolist() == []
    experience = DPO(chain(), **SMALL).credit(grouped([1, 0, 0, 1, 1, 1, 0, 1, 0, 1], group.tolist()))
    assert experience.share.any(1).tolist() == [True, True, True, True, True, False, False, False, True, False]


def test_preference_loss_by_hand() -> None:
    """h = log 3 + 0 for the success, -log 3 for the failure; beta (h - h') = log 3; -log sigmoid(log 3) = log(4/3)."""
    policy = Fixed([[log(3), 0.0], [-log(3), 0.0]])
    loss = PreferenceLoss(policy, beta=0.5)
    data = experience_of([2, 1], [1.0, -1.0], ref=0.0)
    value = reduced(loss, data)
    assert float(value.detach()) == pytest.approx(0.287682, abs=1e-6)
    value.backward()
    # -beta (1 - sigmoid) = -1/8 at each step of the success, 1/8 at each of the failure, which has one.
    assert policy.logprobs.grad is not None
    assert policy.logprobs.grad.flatten().tolist() == pytest.approx([-0.125, -0.125, 0.125, 0])
    assert loss(data)[1]["train/preference_accuracy"].tolist() == [[1, 1], [1, 1]]
    # Against a reference of log 3 at each step: h = 0 - log 3, and -2 log 3 in one step: beta (h - h') = (log 3) / 2.
    far = experience_of([2, 1], [1.0, -1.0], ref=log(3))
    assert float(reduced(loss, far).detach()) == pytest.approx(log(1 + 3**-0.5), abs=1e-6)
    # A masked step counts for nothing: h = 0 for the success.
    masked = experience_of([2, 1], [1.0, -1.0], mask=[[0, 1], [1, 1]], ref=0.0)
    assert float(reduced(loss, masked).detach()) == pytest.approx(log(1 + 3**-0.5), abs=1e-6)


@pytest.mark.parametrize("mask_threshold", [None, 0.5])
def test_pairs_are_never_split(mask_threshold: float | None) -> None:
    """Where the mask leaves no step of one, the other goes too."""
    agent = DPO(chain(goal=6), seed=2, mask_threshold=mask_threshold, **SMALL | {"episodes_per_update": 64})
    agent.freeze_reference()
    experience = agent.collect(agent.sampler, agent.starts())
    traj = experience.traj
    rows = torch.arange(64.0)[:, None, None].expand(64, 9, 2)  # inputs say which row this is
    data = agent.policy_experience(replace(experience, traj=replace(traj, inputs=rows)))
    found = 0
    for part in minibatches(data, agent.policy_loss(agent.policy), 1, 5, None, np.random.default_rng(0)):
        row = part.traj.inputs[:, 0, 0].long()
        success, failure = row[0::2], row[1::2]
        assert traj.success[success].all() and not traj.success[failure].any()
        assert (traj.group[success] == traj.group[failure]).all()
        assert part.share.any(1).all()
        found += len(success)
    assert found == len(data) // 2 > 3


def test_without_pairs_nothing_is_learned() -> None:
    agent = DPO(chain(goal=20, horizon=8), **SMALL)  # out of reach
    before = agent.learner.flat.clone()
    metrics = agent.train_once()
    assert torch.equal(agent.learner.flat, before) and metrics["train/n_updates"] == 0
    assert metrics["rollout/success_rate"] == 0
