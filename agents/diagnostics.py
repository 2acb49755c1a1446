"""What a run logs of its episodes, credit and critic, never read by code.

Tags are stable-baselines3's where it has one.
"""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor

from sppo.agents.batch import Experience, Trajectories


def rollout_metrics(traj: Trajectories, cut: Tensor | None = None) -> dict[str, float]:
    """Shares and means over the episodes that ended in this batch: all rows but those `cut` (B,) to go on later.

    Of an episode that began in an earlier batch, the part in this one counts. Where none ended, all rows do.
    """
    over = torch.ones_like(traj.terminated) if cut is None or bool(cut.all()) else ~cut
    lengths = traj.lengths.float()
    return {
        "rollout/success_rate": float(traj.success[over].float().mean()),
        "rollout/ep_rew_mean": float(traj.outcomes[over].mean()),
        "rollout/ep_len_mean": float(lengths[over].mean()),
        "rollout/truncated": float(traj.truncated.float().mean()),
        "time/steps_this_update": float(lengths.sum()),
        **sampling_metrics(traj),
    }


def sampling_metrics(traj: Trajectories) -> dict[str, float]:
    """How far the policy is from what the actions were drawn from, where that is not the policy itself."""
    if traj.behaviour_logprobs is None:
        return {}
    log_ratio = (traj.logprobs - traj.behaviour_logprobs)[traj.valid]
    ratio = log_ratio.exp()
    return {
        "sampling/logprob_difference": float(log_ratio.abs().mean()),
        "sampling/importance_min": float(ratio.min()),
        "sampling/importance_mean": float(ratio.mean()),
        "sampling/importance_max": float(ratio.max()),
    }


def credit_metrics(experience: Experience) -> dict[str, float]:
    """Spread of the advantages, and the shares of rows that carry no signal at all and of steps that carry no loss."""
    if experience.advantages is None:
        return {}
    valid = experience.traj.valid
    chosen = experience.advantages[valid]
    silent = experience.advantages.abs().amax(1) < 1e-8
    return {
        "credit/advantage_mean": float(chosen.mean()),
        "credit/advantage_std": float(chosen.std(correction=0)),
        "credit/rows_without_signal": float(silent.float().mean()),
        "credit/masked_steps": float((experience.weight[valid] == 0).float().mean()),
    }


def critic_metrics(experience: Experience) -> dict[str, float]:
    """How good the predictions were before the update: explained variance; Brier score and AUC at the start state."""
    if experience.values is None or experience.value_targets is None:
        return {}
    values, targets = experience.values, experience.value_targets
    if values.shape[1] > 1:
        valid = experience.traj.valid
        values, targets = values[valid], targets[valid]
    metrics = {"train/explained_variance": explained_variance(values.flatten(), targets.flatten())}
    assert isinstance(experience.traj, Trajectories)
    outcomes, start = experience.traj.outcomes, experience.values[:, 0]
    if bool(((outcomes == 0) | (outcomes == 1)).all()):
        metrics["critic/value_start"] = float(start.mean())
        metrics["critic/brier"] = float((start - outcomes).square().mean())
        area = auc(start, outcomes > 0)
        if area is not None:
            metrics["critic/auc"] = area
    return metrics


def explained_variance(values: Tensor, targets: Tensor) -> float:
    """1 - Var(target - value) / Var(target); nan where the targets do not vary. Source: stable-baselines3."""
    spread = targets.var(correction=0)
    return float("nan") if spread < 1e-10 else float(1 - (targets - values).var(correction=0) / spread)


def auc(scores: Tensor, positive: Tensor) -> float | None:
    """P(score of a positive > score of a negative), ties counted half (Mann-Whitney); None with only one class."""
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if n_pos == 0 or n_neg == 0:
        return None
    ranks = rankdata(scores.cpu().numpy())
    return float((ranks[positive.cpu().numpy()].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
