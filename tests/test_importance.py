"""Actions drawn from a copy of the policy that is a little off: what is recomputed, logged and made up for."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from fake_text import ToyTask, toy_policy

from sppo.agents import SPPO
from sppo.agents.losses import truncated_importance
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, critic_base
from sppo.llm.sampler import TextSampler

SETTINGS = {"episodes_per_update": 16, "n_epochs": 1, "n_minibatches": 1}


class StaleEngine(HFEngine):
    """Samples from weights that are not quite the policy's."""

    copies_weights = True

    def __init__(self, policy: TextPolicy, *, spread: float = 1.3) -> None:
        stale = copy.deepcopy(policy)
        with torch.no_grad():
            stale.model.get_input_embeddings().weight.mul_(spread)
        super().__init__(stale)


def sampler(spread: float = 1.3) -> TextSampler:
    policy = toy_policy()
    return TextSampler(
        ToyTask(),
        policy,
        StaleEngine(policy, spread=spread),
        max_completion_length=8,
        critic=lambda: critic_base(policy.model, layers=1),
    )


def test_weights_by_hand() -> None:
    # Row 0: ratios 1/2, 3, 4, of which the last is no step; row 1: 2, 1, 1/2.
    behaviour = torch.tensor([[0.4, 0.1, 0.1], [0.3, 0.5, 0.6]]).log()
    own = torch.tensor([[0.2, 0.3, 0.4], [0.6, 0.5, 0.3]]).log()
    valid = torch.tensor([[True, True, False], [True, True, True]])
    token = truncated_importance(own, behaviour, valid, "token", 2.5)
    torch.testing.assert_close(token, torch.tensor([[0.5, 2.5, 1.0], [2.0, 1.0, 0.5]]))
    # Products: 1/2 * 3 = 1.5, and 2 * 1 * 1/2 = 1.
    sequence = truncated_importance(own, behaviour, valid, "sequence", 2.5)
    torch.testing.assert_close(sequence, torch.tensor([[1.5, 1.5, 1.0], [1.0, 1.0, 1.0]]))
    capped = truncated_importance(own, behaviour, valid, "sequence", 1.25)
    torch.testing.assert_close(capped, torch.tensor([[1.25, 1.25, 1.0], [1.0, 1.0, 1.0]]))


def test_the_policys_own_logprobs_are_in_the_rollout_and_the_copys_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = sampler()
    whole = text.rollout(np.arange(10))
    assert whole.behaviour_logprobs is not None
    for policy, got in ((text.policy, whole.logprobs), (text.engine.policy, whole.behaviour_logprobs)):
        with torch.no_grad():
            torch.testing.assert_close(policy.evaluate(whole)[0], got, atol=1e-5, rtol=0)
    assert (whole.logprobs - whole.behaviour_logprobs).abs().max() > 0.01
    monkeypatch.setattr("sppo.llm.passes.TOKENS", 25)  # a few rows at a time
    again = sampler().rollout(np.arange(10))
    torch.testing.assert_close(again.logprobs, whole.logprobs, atol=1e-5, rtol=0)


def test_greedy_tokens_are_not_drawn() -> None:
    traj = sampler().rollout(np.arange(4), greedy=True)
    assert traj.behaviour_logprobs is traj.logprobs


def test_the_mismatch_is_logged_and_is_nothing_where_the_copy_is_exact() -> None:
    stale, exact = (SPPO(sampler(spread), **SETTINGS).train_once() for spread in (1.3, 1.0))
    assert stale["sampling/logprob_difference"] > 0.01
    assert stale["sampling/importance_min"] < stale["sampling/importance_mean"] < stale["sampling/importance_max"]
    assert exact["sampling/logprob_difference"] < 1e-5
    assert exact["sampling/importance_max"] == pytest.approx(1, abs=1e-5)
    own = TextSampler(ToyTask(), toy_policy(), HFEngine(toy_policy()), max_completion_length=8)
    assert not [name for name in SPPO(own, **SETTINGS).train_once() if name.startswith("sampling/")]


def test_truncated_weights_reach_the_loss() -> None:
    """Before the first update r_t = 1, so the loss is -mean(w A), and the weights of the gradient are w."""
    plain, weighted = (SPPO(sampler(), importance_sampling=level, **SETTINGS) for level in (None, "sequence"))
    experience = weighted.collect(weighted.sampler, weighted.starts())
    traj = experience.traj
    ratio = (traj.logprobs - traj.behaviour_logprobs).sum(1).exp().clamp(max=2.0)
    assert ratio.min() < 0.95
    torch.testing.assert_close(experience.weight, traj.valid * ratio[:, None])
    assert torch.equal(experience.share, traj.valid.float())
    without = plain.collect(plain.sampler, plain.starts())
    assert torch.equal(without.weight, without.traj.valid.float())


def test_on_average_the_weights_make_up_for_the_copy() -> None:
    """E_mu[w A] = E_pi[A] where nothing is cut: mean outcomes of one token, copy against policy."""
    text = sampler(spread=2.0)
    text.horizon = 1
    traj = text.rollout(np.zeros(20_000, int))
    weights = truncated_importance(traj.logprobs, traj.behaviour_logprobs, traj.valid, "sequence", math.inf)[:, 0]
    exact = TextSampler(ToyTask(), text.policy, HFEngine(text.policy), max_completion_length=1, seed=1)
    want = exact.rollout(np.zeros(20_000, int)).outcomes
    plain, corrected = float(traj.outcomes.mean()), float((weights * traj.outcomes).mean())
    error = 4 * float(want.std()) * math.sqrt(2 / 20_000)
    assert abs(plain - float(want.mean())) > error
    assert abs(corrected - float(want.mean())) < 2 * error


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"importance_sampling": "tokens"}, "importance_sampling must be one of token, sequence, None, got 'tokens'"),
        ({"importance_cap": 0.5}, "importance_cap must be at least 1, got 0.5"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPPO(sampler(), **setting)
