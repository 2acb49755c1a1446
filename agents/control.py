"""Control as a domain: running a small policy in a batch of episodes, stepped in lockstep as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sppo.agents.batch import Trajectories
from sppo.agents.critics import SharedStartCritic, SharedStepCritic, StartCritic, StepCritic
from sppo.agents.losses import ValueLossName
from sppo.agents.networks import MLP, ControlPolicy, make_policy
from sppo.agents.protocols import Episodes, Snapshot
from sppo.agents.rollout import run_episodes, within

Array = NDArray[Any]
_M = TypeVar("_M", bound=MLP)
HELD_OUT_SEEDS = 2**32  # start seeds below are for evaluation, training draws from above


class ControlSampler:
    """Rolls out a policy in `env`, counting every environment step and episode it takes.

    Args:
        env: a batch of lockstep episodes, such as `sppo.envs.episodes(id)` returns.
        policy: to sample from; by default a new one for the environment's spaces.
        seed: of start states, actions and initial weights, each drawn from its own generator.
        max_episode_steps: an episode that runs longer, in an environment without a horizon, is an error.
        network: net_arch and activation of new policies and critics.
    """

    def __init__(
        self,
        env: Episodes,
        *,
        policy: ControlPolicy | None = None,
        seed: int = 0,
        max_episode_steps: int = 100_000,
        **network: Any,
    ) -> None:
        self.env = env
        self.horizon: int | None = getattr(env, "horizon", None)
        self.max_episode_steps = max_episode_steps
        if policy is not None:
            network = {"net_arch": policy.net_arch, "activation": policy.activation}
        self.network = network
        starts, actions, weights = np.random.SeedSequence(seed).spawn(3)
        self.generators = {"starts": np.random.default_rng(starts), "actions": np.random.default_rng(actions)}
        self._torch_generator = torch.Generator().manual_seed(int(weights.generate_state(1)[0]))
        self.counts = {"env_steps": 0, "episodes": 0}
        self.policy = policy or self._make(make_policy, env.single_observation_space, env.single_action_space)
        self._check(self.policy)

    def _make(self, kind: Callable[..., _M], *args: Any, **kwargs: Any) -> _M:
        return kind(*args, generator=self._torch_generator, **self.network | kwargs)

    def _check(self, policy: ControlPolicy) -> None:
        want = make_policy(self.env.single_observation_space, self.env.single_action_space, net_arch=())
        got, expected = ((type(p).__name__, p.n_inputs, p.n_outputs) for p in (policy, want))
        if got != expected:
            raise ValueError(f"the policy must be (kind, observations, actions) = {expected} for this task, got {got}")

    def step_critic(self, value_loss: ValueLossName, width: int | None = None) -> StepCritic:
        """A new critic of every state, standardising observations as the policy does, its hidden layers as many, and as
        wide unless told otherwise."""
        return self._critic(StepCritic, value_loss, width)

    def start_critic(self, value_loss: ValueLossName, width: int | None = None) -> StartCritic:
        """The same of the start state alone."""
        return self._critic(StartCritic, value_loss, width)

    def shared_critic(self, sees: Literal["start", "steps"], value_loss: ValueLossName) -> Any:
        """A critic of the one or the other behind the policy's hidden layers, which are given a head for it."""
        self.policy.add_value_head(self._torch_generator)
        return {"start": SharedStartCritic, "steps": SharedStepCritic}[sees](self.policy, value_loss=value_loss)

    def _critic(self, kind: type[_M], value_loss: ValueLossName, width: int | None) -> _M:
        layers = self.policy.net_arch if width is None else (width,) * len(self.policy.net_arch)
        critic = self._make(kind, self.policy.n_inputs, value_loss=value_loss, net_arch=layers)
        critic.standardise_as(self.policy)
        return critic

    def starts(self, n: int) -> Array:
        """(n,) seeds of fresh starts, never one that evaluation uses."""
        return self.generators["starts"].integers(HELD_OUT_SEEDS, 2**62, n)

    def predict(self, observations: Array, deterministic: bool) -> Array:
        """Actions, within the bounds of the space, for one observation (D,) or a batch (n, D)."""
        batch = observations.reshape(-1, self.policy.n_inputs).astype(np.float32)
        actor = self.policy.actor()
        noise = None if deterministic else actor.noise(self.generators["actions"], len(batch))
        actions, _ = actor.act(actor.outputs(batch), noise, 0)
        actions = within(self.env.single_action_space, actions)
        return actions if observations.ndim > 1 else actions[0]

    def rollout(
        self,
        starts: Array | Snapshot,
        *,
        greedy: bool = False,
        max_steps: int | Array | None = None,
        keep_states: bool = False,
    ) -> Trajectories:
        """Run one episode from each start until it ends or has taken `max_steps` steps.

        Args:
            starts: (n,) start seeds, or n states to resume from. Rows with the same start share its noise.
            greedy: take the mode instead of sampling.
            max_steps: a number for all or (n,); rows cut there are marked truncated.
            keep_states: record the state before every step, and at the cut, in `states`.

        Raises:
            ValueError: for an observation or a log-probability that is not finite, or an episode that never ends.
        """
        traj = run_episodes(
            self.env,
            self.policy,
            starts,
            [self.generators["actions"]],
            greedy=greedy,
            max_steps=max_steps,
            max_episode_steps=self.max_episode_steps,
            keep_states=keep_states,
        )
        self.count(traj, fresh=not isinstance(starts, dict))
        return traj

    def count(self, traj: Trajectories, *, fresh: bool) -> None:
        """Every step counts; an episode counts once, when it begins."""
        self.counts["env_steps"] += int(traj.lengths.sum())
        self.counts["episodes"] += len(traj) if fresh else 0
