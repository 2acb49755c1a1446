"""The batch mean as baseline: no critic at all."""

from __future__ import annotations

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.credit import outcome_advantage


class Reinforce(Agent):
    """A_t = R - mean of R over the batch, through the same clipped update.

    Source: Williams 1992, doi 10.1007/BF00992696.
    """

    def credit(self, traj: Trajectories) -> Experience:
        return self.experience(traj, outcome_advantage(traj.outcomes, traj.outcomes.mean(), traj.valid))
