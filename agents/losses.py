"""Per-step losses, without reduction, and the weights that reduce them."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Aggregation = Literal["token_mean", "sequence_mean", "constant_horizon"]
ValueLossName = Literal["squared_error", "bce"]
KLEstimator = Literal["k1", "k2", "k3"]
ImportanceLevel = Literal["token", "sequence"]
_ROUNDING = 1e-4


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """The negated clipped policy objective of each step.

    L_t = -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t),  r_t = exp(logprobs_t - old_logprobs_t)

    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; separate bounds as in DAPO, arXiv 2503.14476, eq. 10.

    Args:
        logprobs: (B, T) of the policy being trained.
        old_logprobs: (B, T) of the policy that sampled.
        advantages: (B, T).
        clip_low: how far below 1 the ratio may lower the objective.
        clip_high: how far above 1 the ratio may raise it.

    Returns:
        (B, T).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def squared_error(values: Tensor, targets: Tensor) -> Tensor:
    """(v - target)^2, elementwise, as stable-baselines3 has it (no factor 1/2)."""
    return (values - targets).square()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-R log sigmoid(v) - (1 - R) log(1 - sigmoid(v)), elementwise; targets in [0, 1]."""
    return binary_cross_entropy_with_logits(logits, targets, reduction="none")


def known_value_loss(name: str) -> ValueLossName:
    """The name, if it is one of the two."""
    if name not in get_args(ValueLossName):
        raise ValueError(f"value_loss must be 'squared_error' or 'bce', got {name!r}")
    return cast(ValueLossName, name)


def in_units_of_return(head: Tensor, loss: ValueLossName) -> Tensor:
    """What a critic's scalar head predicts: the return itself, or, for "bce", the logit of a return in [0, 1]."""
    return head.sigmoid() if loss == "bce" else head


def from_units_of_return(value: float, loss: ValueLossName) -> float:
    """The inverse of `in_units_of_return` for one number; for "bce" it must lie in (0, 1)."""
    return math.log(value / (1 - value)) if loss == "bce" else value


def value_loss(head: Tensor, targets: Tensor, loss: ValueLossName, critic: str) -> Tensor:
    """A critic's loss, elementwise; `critic` is its name, for errors.

    Raises:
        ValueError: for binary cross-entropy against targets outside [0, 1].
    """
    if loss == "squared_error":
        return squared_error(head, targets)
    low, high = float(targets.min()), float(targets.max())
    # A step's target is its advantage plus its value: rounding may carry it out of [0, 1] by a hair.
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"{critic} with binary cross-entropy needs returns in [0, 1], got [{low:g}, {high:g}]; "
            "use value_loss='squared_error' instead"
        )
    return binary_cross_entropy(head, targets.clamp(0, 1))


def approximate_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """(B, T) estimates of KL(old || new): r - 1 - log r with r = exp(logprobs - old_logprobs), never negative.

    Source: Schulman 2020, "Approximating KL divergence", where it is called k3.
    """
    log_ratio = logprobs - old_logprobs
    return torch.expm1(log_ratio) - log_ratio


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimates of KL(policy || reference) from each action taken, with d = logprobs - ref_logprobs.

    k1 = d;  k2 = d^2 / 2;  k3 = exp(-d) - 1 + d

    k1 is unbiased and may be negative; k2 is biased and never negative; k3 is unbiased and never negative. As a loss
    to differentiate, k2 has the gradient of the divergence, k3 that of the reverse divergence, and k1 none on average.
    In the reward k1 alone has the divergence's gradient: k2 and k3 charge an action that has become rare more than the
    one that has replaced it, and may drive the policy further away.

    Source: Schulman 2020, "Approximating KL divergence".

    Args:
        logprobs: (B, T) of the policy that sampled the actions.
        ref_logprobs: (B, T) of the reference.
        estimator: one of the three.

    Returns:
        (B, T), in nats.
    """
    if estimator == "k1":
        return logprobs - ref_logprobs
    if estimator == "k2":
        return 0.5 * (logprobs - ref_logprobs).square()
    return approximate_kl(ref_logprobs, logprobs)


def probability_mask(logprobs: Tensor, valid: Tensor, threshold: float, *, density: bool = False) -> Tensor:
    """The steps at which the policy was in doubt: mu(a_t | s_t) < threshold.

    A density has no natural scale, so for continuous actions the mask holds the share `threshold` of the batch's steps
    that were least likely: those up to the quantile of that rank.

    Source: Segment Policy Optimization, arXiv 2505.23564 (threshold 0.9).
    Departs from it: the quantile, for continuous actions.

    Args:
        logprobs: (B, T) under the policy that sampled.
        valid: (B, T) bool, True where the policy chose an action.
        threshold: in (0, 1).
        density: True where logprobs are densities of continuous actions.

    Returns:
        (B, T) bool, True where the step carries loss; False where not valid.
    """
    if not density:
        return valid & (logprobs < math.log(threshold))
    n = int(valid.sum())
    if n == 0:
        return valid
    return valid & (logprobs <= logprobs[valid].kthvalue(max(1, round(threshold * n))).values)


def truncated_importance(
    logprobs: Tensor, behaviour_logprobs: Tensor, valid: Tensor, level: ImportanceLevel, cap: float
) -> Tensor:
    """What each step weighs to make up for actions drawn from another distribution than the policy's.

    token     w_t = min(rho_t, cap),                rho_t = exp(logprobs_t - behaviour_logprobs_t)
    sequence  w_t = min(prod over s of rho_s, cap)  for all steps of a row

    Source: Ionides 2008, "Truncated importance sampling".

    Args:
        logprobs: (B, T) under the policy.
        behaviour_logprobs: (B, T) under the distribution that the actions were drawn from.
        valid: (B, T) bool, True where the policy chose an action.
        level: of the ratio.
        cap: the largest weight, at least 1.

    Returns:
        (B, T), 1 where not valid.
    """
    log_ratio = torch.where(valid, logprobs - behaviour_logprobs, 0.0)
    if level == "sequence":
        log_ratio = torch.where(valid, log_ratio.sum(1, keepdim=True), 0.0)
    return log_ratio.exp().clamp(max=cap)


def aggregation_weights(
    valid: Tensor, aggregation: Aggregation = "token_mean", horizon: int | None = None
) -> tuple[Tensor, Tensor]:
    """How much each step weighs in a loss, and what it adds to the divisor.

    loss = sum_{b,t} weight * L / sum_{b,t} share, over all rows of a minibatch on all ranks, with T_b row b's length:
      token_mean        weight = 1,     share = 1      the mean over steps
      sequence_mean     weight = 1/T_b, share = 1/T_b  the mean over sequences of the mean over their steps
      constant_horizon  weight = 1/H,   share = 1/T_b  the sum over steps, divided by (sequences x H)

    Because the divisor is a sum over steps too, minibatches may be cut over steps or over rows alike. Cut over steps,
    that of constant_horizon is the number of sequences whose steps are in the minibatch on average.

    Source: token_mean DAPO, arXiv 2503.14476; sequence_mean GRPO, arXiv 2402.03300; constant_horizon Dr.GRPO,
    arXiv 2503.20783.

    Args:
        valid: (B, T) bool, True where the step carries loss.
        aggregation: one of the three.
        horizon: H, for constant_horizon.

    Returns:
        weight and share, (B, T) float32, 0 where not valid.

    Raises:
        ValueError: for another aggregation, or constant_horizon without a horizon.
    """
    ones = valid.float()
    per_sequence = ones / valid.sum(1, keepdim=True).clamp(min=1)
    if aggregation == "token_mean":
        return ones, ones
    if aggregation == "sequence_mean":
        return per_sequence, per_sequence
    if aggregation == "constant_horizon":
        if horizon is None or horizon < 1:
            raise ValueError(f"constant_horizon needs horizon >= 1, got {horizon}")
        return ones / horizon, per_sequence
    raise ValueError(f"aggregation must be token_mean, sequence_mean or constant_horizon, got {aggregation!r}")
