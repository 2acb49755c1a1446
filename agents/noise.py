"""A verifier that errs: outcomes as the learner sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sppo.agents.batch import Trajectories


def flip_outcomes(traj: Trajectories, share: float, generator: np.random.Generator) -> Trajectories:
    """With the outcome of each episode that is over flipped with chance `share`, paid where it ended.

    R' = R + (1 - 2 R) F,  F ~ Bernoulli(p):  E[R'] = p + (1 - 2 p) E[R].

    Siblings are flipped apart. `success` stays what it was.

    Args:
        traj: B rows, whole episodes or their last parts; R in {0, 1}.
        share: p.
        generator: draws F.

    Raises:
        ValueError: for other outcomes.
    """
    outcomes = traj.outcomes
    others = outcomes[(outcomes != 0) & (outcomes != 1)]
    if len(others):
        raise ValueError(f"reward_noise flips outcomes that are 0 or 1, got {float(others[0]):g}")
    flips = torch.from_numpy(generator.random(len(traj)) < share).to(traj.terminated.device) & traj.terminated
    rewards, rows = traj.rewards.clone(), flips.nonzero().squeeze(1)
    rewards[rows, traj.lengths[rows] - 1] += 1 - 2 * outcomes[rows]
    return replace(traj, rewards=rewards)
