"""Learning with several seeds side by side: one batch of independent networks, the same update for each.

Small networks leave a processor waiting on call overhead. S agents that differ by seed alone share each call instead:
their episodes run in one batch, their networks in one batched matrix product. Everything else stays each agent's own:
start states, action noise, minibatch order, credit, gradient clipping, Adam, statistics.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from sppo.agents.agent import Agent
from sppo.agents.batch import Experience, Trajectories, join
from sppo.agents.callbacks import as_callback
from sppo.agents.networks import stack_networks
from sppo.agents.rollout import run_episodes
from sppo.agents.update import Averages, LocalLearner, ValueLoss, bind_views, minibatches

# Gradients are rows of one tensor so that each agent's stay its own; autograd would rather have them apart.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


def learn(
    agents: Sequence[Agent],
    total_episodes: int | None = None,
    total_steps: int | None = None,
    callbacks: Sequence[Any] | None = None,
    progress_bar: bool = False,
) -> None:
    """See `Agent.learn`: the same for several agents, one callback each; those that are done leave the others."""
    if total_episodes is None and total_steps is None:
        raise ValueError("learn needs total_episodes or total_steps")

    def share_done(agent: Agent) -> float:
        budgets = ((agent.num_episodes, total_episodes), (agent.num_steps, total_steps))
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
        and type(agent).collect is Agent.collect
        and agent.stream is None
        and agent.config.microbatch_size is None
        and replace(agent.config, seed=0) == replace(first.config, seed=0)
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
        self.critic = None
        if agents[0].critic_learner is not None:
            self.critic = stack_networks([agent.critic for agent in agents])
            self.critic_learner = StackLearner([agent.critic_learner for agent in agents], self.critic)

    def train_once(self) -> list[dict[str, float]]:
        """One update of every agent; their metrics."""
        if len(self.agents) == 1:
            return [self.agents[0].train_once()]
        started = time.perf_counter()
        experiences = self._collect()
        sampled = time.perf_counter()
        updates = self._update(experiences)
        ended, n = time.perf_counter(), len(self.agents)
        return [
            agent.account(experience, metrics, (sampled - started) / n, (ended - started) / n)
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
        traj, samplers = self.rollout(), [agent.sampler for agent in self.agents]
        share = len(traj) // len(samplers)
        experiences = []
        for i, (agent, sampler) in enumerate(zip(self.agents, samplers, strict=True)):
            own = traj[slice(i * share, (i + 1) * share)]
            sampler.count(own, fresh=True)
            experiences.append(agent.credit(own))
        return experiences

    def _update(self, experiences: list[Experience]) -> list[dict[str, float]]:
        agents = self.agents
        results = self._minimise(
            self.policy_learner,
            agents[0].policy_loss(self.policy),
            [agent.policy_experience(e) for agent, e in zip(agents, experiences, strict=True)],
            agents[0].config.batch_size,
            agents[0].config.target_kl,
        )
        if self.critic is not None:
            critic = self._minimise(
                self.critic_learner,
                ValueLoss(self.critic),
                [agent.critic_experience(e) for agent, e in zip(agents, experiences, strict=True)],
                agents[0].critic_batch_size(),
                None,
            )
            results = [agent.with_critic(p, c) for agent, p, c in zip(agents, results, critic, strict=True)]
        return results

    def _minimise(
        self,
        learner: StackLearner,
        loss: Any,
        data: list[Experience],
        batch_size: int | None,
        target_kl: float | None,
    ) -> list[dict[str, float]]:
        """`update.minimise`, for all agents at once."""
        c, n = self.agents[0].config, len(self.agents)
        orders = [
            minibatches(d, loss, c.n_epochs, c.n_minibatches, batch_size, agent.generator)
            for d, agent in zip(data, self.agents, strict=True)
        ]
        averages = [Averages() for _ in self.agents]
        while True:
            # An agent that has stopped draws no further minibatches, as when it learns alone.
            parts = [None if a.early_stop else next(order, None) for a, order in zip(averages, orders, strict=True)]
            if all(part is None for part in parts):
                break
            batch = side_by_side(parts)
            share = batch.share.view(n, -1).sum(1)
            weight = batch.weight.view(n, -1) / share.clamp(min=1e-12)[:, None]
            learner.grad.zero_()
            per_step, stats = loss(batch)
            (per_step.view(n, -1) * weight).sum().backward()
            means = {name: (value.view(n, -1) * weight).sum(1).tolist() for name, value in stats.items()}
            mine = [{name: values[i] for name, values in means.items()} for i in range(n)]
            for i, average in enumerate(averages):
                average.early_stop |= target_kl is not None and mine[i]["train/approx_kl"] > 1.5 * target_kl
            learns = [p is not None and not a.early_stop for p, a in zip(parts, averages, strict=True)]
            norms = learner.step(learns)
            for i, average in enumerate(averages):
                if learns[i]:
                    average.add(mine[i], norms[i])
        return [average.result() for average in averages]


def side_by_side(parts: Sequence[Experience | None]) -> Experience:
    """Equal shares of rows for each network: shorter parts, and missing ones, are filled up with rows of no weight."""
    some = next(part for part in parts if part is not None)
    n = max(len(part) for part in parts if part is not None)
    filled = []
    for part in parts:
        size = len(part) if part is not None else 0
        if part is None or size < n:
            padded = (some if part is None else part)[torch.arange(n).clamp(max=len(part or some) - 1)]
            real = (torch.arange(n) < size).float()[:, None]
            part = replace(padded, weight=padded.weight * real, share=padded.share * real)
        filled.append(part)
    return join(filled)


class StackLearner:
    """The learners of S networks as one: their weights and gradients are rows of (S, P) tensors.

    Each learner keeps its own Adam state, so that it can be saved, or go on alone, at any time.
    """

    def __init__(self, learners: Sequence[Any], stacked: nn.Module) -> None:
        flat = torch.stack([learner.flat.data for learner in learners])
        self.learners, self.grad = list(learners), torch.zeros_like(flat)
        for i, learner in enumerate(learners):
            assert isinstance(learner, LocalLearner)
            learner.bind(flat[i], self.grad[i])
        bind_views(stacked, flat, self.grad)
        first = learners[0].optimizer
        self.optimizer = type(first)([learner.flat for learner in learners], **first.defaults)
        for learner in learners:
            self.optimizer.state[learner.flat] = learner.optimizer.state[learner.flat]

    def step(self, learns: Sequence[bool]) -> list[float]:
        """Clip each network's gradient and step those that learn; gradient norms before clipping."""
        norms = torch.linalg.vector_norm(self.grad, dim=1)
        told: list[float] = norms.tolist()
        for learner, norm, own, active in zip(self.learners, told, self.grad, learns, strict=True):
            learner.check(norm)
            learner.flat.grad = own if active else None
        self.grad *= (self.learners[0].max_grad_norm / norms.clamp(min=1e-12)).clamp(max=1.0)[:, None]
        self.optimizer.step()
        for learner, own in zip(self.learners, self.grad, strict=True):
            learner.flat.grad = own  # so that it can go on alone
        return told
