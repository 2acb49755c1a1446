"""What every algorithm shares: the learning loop, prediction, saving and going on."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sppo.agents import storage
from sppo.agents.batch import Experience, Trajectories
from sppo.agents.checks import check_critic, check_settings
from sppo.agents.config import AgentConfig, make_config
from sppo.agents.control import ControlSampler
from sppo.agents.diagnostics import credit_metrics, critic_metrics, rollout_metrics
from sppo.agents.experience import WithExperience
from sppo.agents.learners import LocalLearner
from sppo.agents.losses import ValueLossName
from sppo.agents.noise import flip_outcomes
from sppo.agents.policy_and_critic import update_all
from sppo.agents.protocols import Episodes, Sampler
from sppo.agents.sampling import AsSeen, Stream


class Agent(WithExperience):
    """Base of all algorithms: a subclass says how to `collect` episodes and how to give `credit`.

    Args:
        env: a batch of lockstep episodes (`sppo.envs.episodes(id)`), or any Sampler.
        policy: to start from; by default a new one.
        net_arch: hidden layer sizes of new networks; a given policy's are used for the critic too.
        activation: "relu" or "tanh" in new networks, likewise.
        config: every setting at once; or single settings as keyword arguments.

    Raises:
        ValueError: for an unknown setting or one out of range.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig

    def __init__(
        self,
        env: Episodes | Sampler,
        *,
        policy: Any = None,
        net_arch: tuple[int, ...] = (64, 64),
        activation: str = "relu",
        config: AgentConfig | None = None,
        **settings: Any,
    ) -> None:
        self.config: Any = config if config is not None else make_config(self.Config, settings)
        if isinstance(env, Sampler):
            if policy is not None:
                raise ValueError("a sampler brings its own policy: give the policy to the sampler")
            self.sampler: Any = env
        elif isinstance(env, Episodes):
            policy = copy.deepcopy(policy)  # so that several agents may start from one
            self.sampler = ControlSampler(
                env, policy=policy, seed=self.config.seed, net_arch=tuple(net_arch), activation=activation
            )
        else:
            raise ValueError(
                f"env must be a batch of episodes or a sampler, got {type(env).__name__}: wrap the id with "
                "sppo.envs.episodes(id)"
            )
        self.network: dict[str, Any] = getattr(self.sampler, "network", {})
        self.policy = self.sampler.policy
        check_critic(self)
        self.critic: Any = self.make_critic()  # before a learner may shard the policy, of which it may be a copy
        self.learner = self._learner(self.policy, self.config.learning_rate)
        self.critic_learner = (
            self._learner(self.critic, self.config.critic_learning_rate) if isinstance(self.critic, nn.Module) else None
        )
        check_settings(self)
        self.generator = np.random.default_rng([self.config.seed, 1])
        self.stream = Stream(self.sampler, self.config.n_steps) if self.config.n_steps is not None else None
        self.n_updates = 0
        self.gradient_steps = 0  # of the policy, in all
        self.num_episodes = 0  # begun, in all
        self.num_steps = 0  # sampled, in all
        self.seconds, self.cpu_seconds = 0.0, 0.0

    def _learner(self, module: nn.Module, learning_rate: float) -> Any:
        c, make = self.config, getattr(self.sampler, "learner", LocalLearner)
        settings = {"max_grad_norm": c.max_grad_norm, "adam_eps": c.adam_eps, "weight_decay": c.weight_decay}
        return make(module, learning_rate=learning_rate, **settings)

    # What an algorithm is: the critic it needs, how it collects episodes, and the credit it gives.

    def make_critic(self) -> Any:
        """A new critic, or None."""
        return None

    def new_critic(self, value_loss: ValueLossName) -> Any:
        """A critic of what this algorithm's sees: a network of its own, or, if so configured, the policy's layers."""
        if self.config.shared_network:
            return self.sampler.shared_critic(self.critic_sees, value_loss)
        make = self.sampler.step_critic if self.critic_sees == "steps" else self.sampler.start_critic
        return make(value_loss, **({} if (width := self.config.critic_width) is None else {"width": width}))

    def predicted(self, traj: Trajectories) -> Tensor:
        """(B,) the outcome that it predicts at each start, in units of return.

        Raises:
            ValueError: if nothing of it predicts one.
        """
        if self.critic_sees is None:
            raise ValueError(f"{type(self).__name__} has no critic whose predictions could be compared with outcomes")
        values: Tensor = self.critic.value(traj) if self.critic_sees == "start" else self.critic.values(traj)[:, 0]
        return values

    def starts(self) -> Any:
        """Where the episodes of one update start."""
        return self.sampler.starts(self.config.episodes_per_update)

    def collect(self, sampler: Any, starts: Any) -> Experience:
        """Run episodes from `starts` and give credit."""
        return self.credit(sampler.rollout(starts))

    @property
    def collects_plainly(self) -> bool:
        """True where collecting is one rollout from `starts()`, which several agents may share."""
        return type(self).collect is Agent.collect

    def credit(self, traj: Trajectories) -> Experience:
        """Advantages, and targets for the critic, of sampled episodes."""
        raise NotImplementedError(f"{type(self).__name__} gives no credit")

    def as_seen(self, traj: Trajectories) -> Trajectories:
        """Just sampled, with the rewards that credit is given for: flipped by `reward_noise`, less what is charged."""
        share, so_far = self.config.reward_noise, self.sampler.counts["env_steps"]
        if share:  # each rollout has taken steps, so their number makes a generator of its own, with nothing to save
            traj = flip_outcomes(traj, share, np.random.default_rng([self.config.seed, 2, so_far]))
        return self.penalised(traj)

    # Learning.

    def learn(
        self,
        total_episodes: int | None = None,
        total_steps: int | None = None,
        callback: Any = None,
        progress_bar: bool = False,
        total_seconds: float | None = None,
    ) -> Agent:
        """Learn until the agent has seen so many episodes or environment steps, or learned so long, in all, earlier
        calls included.

        Args:
            total_episodes: the budget in episodes.
            total_steps: the budget in environment steps (or tokens), every one that was sampled.
            callback: a Callback, a function of (agent, metrics), or a list of them; one that returns False ends
                learning after this update.
            progress_bar: show one.
            total_seconds: the budget in seconds of sampling and updates; callbacks are outside it.
        """
        from sppo.agents.stack import learn

        learn([self], total_episodes, total_steps, [callback], progress_bar, total_seconds)
        return self

    def train_once(self) -> dict[str, float]:
        """Collect, give credit, update; return the metrics."""
        started, cpu = time.perf_counter(), time.process_time()
        self.freeze_reference()
        if self.stream is not None:
            experience = self.credit(self.as_seen(self.stream.next(self.config.episodes_per_update)))
        else:
            experience = self.collect(AsSeen(self.sampler, self.as_seen), self.starts())
        sampled = time.perf_counter()
        metrics = self.update(experience)
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        return self.account(experience, metrics, sampled - started, ended - started, cpu)

    def update(self, experience: Experience) -> dict[str, float]:
        """One update of the policy and, if there is one, the critic."""
        return update_all([self], [experience], self.learner, self.policy, self.critic_learner, self.critic)[0]

    def account(
        self,
        experience: Experience,
        metrics: dict[str, float],
        rollout_seconds: float,
        seconds: float,
        cpu_seconds: float,
    ) -> dict[str, float]:
        """Advance the counters after an update, and put all metrics together."""
        assert isinstance(experience.traj, Trajectories)
        before = self.num_steps, self.num_episodes
        self.n_updates += 1
        self.gradient_steps += int(metrics["train/n_updates"])
        self.num_steps, self.num_episodes = self.sampler.counts["env_steps"], self.sampler.counts["episodes"]
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        return {
            **rollout_metrics(experience.traj, None if self.stream is None else self.stream.cut),
            **credit_metrics(experience),
            **critic_metrics(experience),
            **metrics,
            "train/n_updates": float(self.gradient_steps),
            "time/total_timesteps": float(self.num_steps),
            "time/total_episodes": float(self.num_episodes),
            "time/episodes_this_update": float(self.num_episodes - before[1]),
            "time/n_updates": float(self.n_updates),
            "time/seconds": self.seconds,
            "time/cpu_seconds": self.cpu_seconds,
            "time/rollout_seconds": rollout_seconds,
            "time/fps": (self.num_steps - before[0]) / seconds,
        }

    # Acting, saving and going on.

    def predict(
        self, obs: NDArray[Any], state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        """Actions for one observation or a batch of them, and the state as it came (the policies keep none)."""
        return self.sampler.predict(np.asarray(obs), deterministic), state

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything that going on needs: JSON values and tensors, which are the agent's own, not copies."""
        return storage.agent_state(self)

    def save(self, path: str | Path) -> None:
        """Write the agent, its optimisers, generators and counters into a folder of JSON and safetensors."""
        storage.save_agent(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, env: Episodes | Sampler) -> Agent:
        """An agent that goes on exactly where the saved one stopped.

        Raises:
            ValueError: if the folder holds another algorithm's agent, or one whose shapes do not fit `env`.
        """
        return storage.load_agent(cls, Path(path), env)

    def settings(self) -> dict[str, Any]:
        """Every setting, as JSON values."""
        return asdict(self.config) | {k: list(v) if isinstance(v, tuple) else v for k, v in self.network.items()}
