"""Methods with a loss of their own, by hand: GSPO, RestEM, DPO."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import SMALL, chain, grouped, told
from torch import Tensor

from sppo.agents import DPO, GRPO, GSPO, RestEM
from sppo.agents.batch import Experience
from sppo.agents.credit import preference_pairs
from sppo.agents.dpo import PreferenceLoss
from sppo.agents.gspo import SequenceLoss, mean_over_steps
from sppo.agents.losses import aggregation_weights
from sppo.agents.minibatches import minibatches
from sppo.agents.restem import LikelihoodLoss


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
    for part in minibatches(data, agent.policy_loss(agent.policy), 1, 5, np.random.default_rng(0)):
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
