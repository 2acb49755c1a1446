"""Learning with several seeds side by side: one batch of independent networks, the same update for each.

Small networks leave a processor waiting on call overhead. S agents that differ by seed alone share each call instead:
their episodes run in one batch, their networks in one batched matrix product. Everything else stays each agent's own:
start states, action noise, minibatch order, credit, gradient clipping, Adam, statistics.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.callbacks import as_callback
from sppo.agents.learners import StackLearner
from sppo.agents.networks import stack_networks
from sppo.agents.policy_and_critic import update_all
from sppo.agents.rollout import run_episodes


def learn(
    agents: Sequence[Agent],
    total_episodes: int | None = None,
    total_steps: int | None = None,
    callbacks: Sequence[Any] | None = None,
    progress_bar: bool = False,
    total_seconds: float | None = None,
) -> None:
    """See `Agent.learn`: the same for several agents, one callback each; those that are done leave the others."""
    if total_episodes is None and total_steps is None and total_seconds is None:
        raise ValueError("learn needs total_episodes, total_steps or total_seconds")

    def share_done(agent: Agent) -> float:
        budgets = (
            (agent.num_episodes, total_episodes),
            (agent.num_steps, total_steps),
            (agent.seconds, total_seconds),
        )
        return max(spent / budget if budget > 0 else 1.0 for spent, budget in budgets if budget is not None)

    told = {id(agent): as_callback(c) for agent, c in zip(agents, callbacks or [None] * len(agents), strict=True)}
    for agent in agents:
        told[id(agent)].on_training_start(agent)
    active = [agent for agent in agents if share_done(agent) < 1]
    with tqdm(total=100, disable=not progress_bar, unit="%") as bar:
        while active:
            stack = Stack(active)
            stopped: list[Agent] = []
            while not stopped:
                for agent, metrics in zip(active, stack.train_once(), strict=True):
                    if told[id(agent)].on_update(agent, metrics) is False or share_done(agent) >= 1:
                        stopped.append(agent)
                bar.set_postfix(success=f"{metrics['rollout/success_rate']:.2f}", refresh=False)
                bar.update(round(100 * min(1.0, min(map(share_done, active)))) - bar.n)
            active = [agent for agent in active if agent not in stopped]
    for agent in agents:
        told[id(agent)].on_training_end(agent)


def can_stack(agents: Sequence[Agent]) -> bool:
    """True where the agents differ by seed alone, share one environment and collect in the plain way."""
    first = agents[0]
    return all(
        type(agent) is type(first)
        and agent.collects_plainly
        and agent.stream is None
        and agent.config.microbatch_size is None
        and agent.config.microbatch_steps is None
        and replace(agent.config, seed=0) == replace(first.config, seed=0)
        and min(agent.n_updates, agent.config.critic_warmup) == min(first.n_updates, first.config.critic_warmup)
        and agent.network == first.network
        and agent.sampler.env is first.sampler.env
        and agent.sampler.max_episode_steps == first.sampler.max_episode_steps
        for agent in agents
    )


class Stack:
    """Agents that differ by seed alone, trained in one batch; each stays whole and usable on its own.

    Raises:
        ValueError: if they differ otherwise, or collect in a way that cannot be batched.
    """

    def __init__(self, agents: Sequence[Agent]) -> None:
        if len(agents) > 1 and not can_stack(agents):
            raise ValueError(
                "agents can be stacked if they differ by seed alone, share one environment and collect whole episodes"
            )
        self.agents = list(agents)
        if len(agents) == 1:
            return
        self.policy = stack_networks([agent.policy for agent in agents])
        self.policy_learner = StackLearner([agent.learner for agent in agents], self.policy)
        self.critic, self.critic_learner = None, None
        if agents[0].critic_learner is not None:
            self.critic = stack_networks([agent.critic for agent in agents])
            self.critic_learner = StackLearner([agent.critic_learner for agent in agents], self.critic)

    def train_once(self) -> list[dict[str, float]]:
        """One update of every agent; their metrics."""
        if len(self.agents) == 1:
            return [self.agents[0].train_once()]
        started, cpu = time.perf_counter(), time.process_time()
        experiences = self._collect()
        sampled = time.perf_counter()
        updates = update_all(
            self.agents, experiences, self.policy_learner, self.policy, self.critic_learner, self.critic
        )
        ended, cpu, n = time.perf_counter(), time.process_time() - cpu, len(self.agents)
        return [
            agent.account(experience, metrics, (sampled - started) / n, (ended - started) / n, cpu / n)
            for agent, experience, metrics in zip(self.agents, experiences, updates, strict=True)
        ]

    def rollout(self) -> Trajectories:
        """One batch with the episodes of all agents, in equal, consecutive shares."""
        samplers = [agent.sampler for agent in self.agents]
        return run_episodes(
            samplers[0].env,
            self.policy,
            np.concatenate([agent.starts() for agent in self.agents]),
            [sampler.generators["actions"] for sampler in samplers],
            greedy=False,
            max_steps=None,
            max_episode_steps=samplers[0].max_episode_steps,
            keep_states=False,
        )

    def _collect(self) -> list[Experience]:
        for agent in self.agents:
            agent.freeze_reference()
        traj, samplers = self.rollout(), [agent.sampler for agent in self.agents]
        share = len(traj) // len(samplers)
        experiences = []
        for i, (agent, sampler) in enumerate(zip(self.agents, samplers, strict=True)):
            own = traj[slice(i * share, (i + 1) * share)]
            sampler.count(own, fresh=True)
            experiences.append(agent.credit(agent.as_seen(own)))
        return experiences
