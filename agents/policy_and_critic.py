"""One update of the policy and, if there is one, the critic: of one agent, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sppo.agents.batch import Experience
from sppo.agents.protocols import Learner
from sppo.agents.update import Beside, ValueLoss, minimise_all

if TYPE_CHECKING:
    from sppo.agents.agent import Agent


def update_all(
    agents: Sequence[Agent],
    experiences: Sequence[Experience],
    learner: Learner,
    policy: Any,
    critic_learner: Learner | None,
    critic: Any,
) -> list[dict[str, float]]:
    """The one update, for an agent or for several that differ by seed alone with their networks side by side."""
    first = agents[0]
    c = first.config
    schedule: dict[str, Any] = {
        "n_minibatches": c.n_minibatches,
        "microbatch_size": c.microbatch_size,
        "microbatch_steps": c.microbatch_steps,
        "generators": [agent.generator for agent in agents],
    }
    loss = first.policy_loss(policy)
    beside = None
    if c.shared_network:
        data = [agent.critic_experience(e) for agent, e in zip(agents, experiences, strict=True)]
        beside = Beside(ValueLoss(first.critic.of(policy)), data, c.vf_coef)
    results: list[dict[str, float]] = [{"train/n_updates": 0.0} for _ in agents]
    if first.n_updates >= c.critic_warmup:
        results = minimise_all(
            learner,
            loss,
            [agent.policy_experience(e) for agent, e in zip(agents, experiences, strict=True)],
            n_epochs=c.n_epochs,
            batch_size=c.batch_size,
            stop=None if c.target_kl is None else lambda means: means["train/approx_kl"] > 1.5 * c.target_kl,
            skip_silent=not (loss.ent_coef or loss.kl_coef),
            beside=beside,
            **schedule,
        )
    if critic_learner is not None:
        critics = minimise_all(
            critic_learner,
            ValueLoss(critic),
            [agent.critic_experience(e) for agent, e in zip(agents, experiences, strict=True)],
            n_epochs=c.critic_n_epochs or c.n_epochs,
            batch_size=first.critic_batch_size(),
            **schedule,
        )
        for result, its_critic in zip(results, critics, strict=True):
            result["train/value_loss"] = its_critic["train/value_loss"]
            result["train/critic_grad_norm"] = its_critic["train/grad_norm"]
    return results
