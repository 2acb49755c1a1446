"""Rejection fine-tuning: what succeeded is imitated."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sppo.agents.batch import Experience, Trajectories
from sppo.agents.groups import GroupAgent, SuccessConfig
from sppo.agents.update import PolicyLoss, Stats


class LikelihoodLoss(PolicyLoss):
    """-log pi(a_t | s_t) of what is kept, as in supervised fine-tuning: no ratio, no clipping."""

    def objective(self, batch: Experience, logprobs: Tensor) -> tuple[Tensor, Stats]:
        assert batch.advantages is not None
        return -batch.advantages * logprobs, {}


class RestEM(GroupAgent):
    """Of G episodes from each start those that succeeded are kept, and their log-likelihood is raised: A = 1.

    Source: Singh et al. 2023, arXiv 2312.06585.
    Departs from it: each round starts from the policy of the last, not from the first one, and takes one update, not a
    fine-tuning to convergence; all successes of a start are kept, not 10 at most.
    """

    Config = SuccessConfig
    Loss = LikelihoodLoss

    def credit(self, traj: Trajectories) -> Experience:
        ones = traj.success[:, None] * traj.valid.float()
        return replace(self.experience(traj, ones, keep=traj.success), advantages=ones)  # never whitened
