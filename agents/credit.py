"""Credit assignment: pure functions from outcomes and values to advantages, all on (B, T) with `valid`."""

from __future__ import annotations

import torch
from scipy.signal import lfilter
from torch import Tensor


def discounted_sum(x: Tensor, discount: float) -> Tensor:
    """Suffix sums with discount: y_t = x_t + discount * y_{t+1}.

    Args:
        x: (B, T).
        discount: in [0, 1].

    Returns:
        (B, T), accumulated in float64 and returned in x's dtype.
    """
    reverse = x.detach().cpu().double().numpy()[:, ::-1]
    y = lfilter([1.0], [1.0, -discount], reverse, axis=1)[:, ::-1]
    return torch.from_numpy(y.copy()).to(x)


def generalized_advantage(
    rewards: Tensor,
    values: Tensor,
    valid: Tensor,
    truncated: Tensor,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
) -> Tensor:
    """Advantages of single steps, as exponentially weighted sums of temporal differences.

    A_t = sum_k (gamma * gae_lambda)^k delta_{t+k},  delta_t = r_t + gamma * V(s_{t+1}) - V(s_t),
    where V of the last state is 0 for an episode that terminated and the critic's for one that was truncated.

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 11-16.

    Args:
        rewards: (B, T).
        values: (B, T + 1), in units of return, of every state up to and including the last.
        valid: (B, T) bool, True where the policy chose an action; a prefix of each row.
        truncated: (B,) bool, True where the episode was cut by a limit that the task does not know of.
        gamma: discount per step.
        gae_lambda: 1 gives return minus value, 0 the one-step temporal difference.

    Returns:
        (B, T), 0 where not valid. Add values[:, :-1] for the value targets.

    Raises:
        ValueError: if the shapes do not fit.
    """
    b, t = valid.shape
    if tuple(values.shape) != (b, t + 1):
        raise ValueError(f"values must be (B, T + 1) = {(b, t + 1)}, got {tuple(values.shape)}")
    lengths = valid.sum(1, keepdim=True)
    last = torch.arange(t, device=valid.device) == lengths - 1  # (B, T)
    bootstrapped = ~last | truncated[:, None]
    delta = rewards + gamma * values[:, 1:] * bootstrapped - values[:, :-1]
    return discounted_sum(torch.where(valid, delta, 0.0), gamma * gae_lambda) * valid


def outcome_advantage(outcomes: Tensor, baseline: Tensor | float, valid: Tensor) -> Tensor:
    """One advantage for the whole episode, given to each of its steps: A_t = R - b.

    Source: SPPO, arXiv 2604.08865: with b = V(s_0), the episode is one action of a contextual bandit.

    Args:
        outcomes: (B,) R.
        baseline: (B,) or a number, in units of R; must not depend on the episode's actions.
        valid: (B, T) bool, True where the policy chose an action.

    Returns:
        (B, T), 0 where not valid.
    """
    return (outcomes - baseline).to(outcomes)[:, None] * valid


def whiten(advantages: Tensor, valid: Tensor) -> Tensor:
    """Zero mean and unit variance over the valid steps of the batch: (A - mean) / (std + 1e-8), std with divisor N - 1.

    Departs from stable-baselines3, which whitens each minibatch; this whitens the batch, as verl does.

    Args:
        advantages: (B, T).
        valid: (B, T) bool, True where the policy chose an action.

    Returns:
        (B, T), 0 where not valid; with fewer than two valid steps the advantages are returned as they are.
    """
    chosen = advantages[valid]
    if chosen.numel() < 2:
        return advantages
    return (advantages - chosen.mean()) / (chosen.std() + 1e-8) * valid


def group_statistics(outcomes: Tensor, group: Tensor, correction: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and size of each row's group, all (B,).

    In float64, and of outcomes that are all equal the mean is their very value and the deviation 0: what rounding
    leaves over would be divided by itself.

    Args:
        outcomes: (B,) R.
        group: (B,) int64 ids, from 0; rows from the same start share one.
        correction: the standard deviation has divisor G - correction.
    """
    zero = torch.zeros(int(group.max()) + 1 if len(group) else 0, dtype=torch.float64)
    exact = outcomes.double()
    size = zero.index_add(0, group, torch.ones_like(exact))
    mean = zero.index_add(0, group, exact) / size
    spread = (exact - mean[group]).square()
    std = (zero.index_add(0, group, spread) / (size - correction).clamp(min=1)).sqrt()
    least, most = (zero.scatter_reduce(0, group, exact, how, include_self=False) for how in ("amin", "amax"))
    alike = least == most
    mean, std = torch.where(alike, least, mean), torch.where(alike, 0.0, std)
    return mean[group], std[group], size[group]


def overlong_penalty(lengths: Tensor, horizon: float, buffer: float) -> Tensor:
    """0 for episodes up to horizon - buffer steps, then falling linearly to -1 at the horizon.

    penalty = clip((horizon - buffer - T) / buffer, -1, 0)

    Source: DAPO, arXiv 2503.14476, eq. 13.

    Args:
        lengths: (B,) T.
        horizon: L, the most steps that the task allows.
        buffer: C, in steps.

    Returns:
        (B,), to be added to the outcomes.
    """
    return ((horizon - buffer - lengths) / buffer).clamp(-1, 0)


def preference_pairs(success: Tensor, group: Tensor) -> Tensor:
    """Rows (2P,): a success, a failure, a success, ..., neighbours from one group; the k-th of each make a pair.

    Args:
        success: (B,) bool.
        group: (B,) int64 ids.
    """
    rows = []
    for one in group.unique():
        good, bad = (((group == one) & kind).nonzero().squeeze(1) for kind in (success, ~success))
        n = min(len(good), len(bad))
        rows.append(torch.stack([good[:n], bad[:n]], 1).flatten())
    return torch.cat(rows) if rows else group[:0]
