"""Running episodes of one control task under one policy, or several stacked, in lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray

from sppo.agents.batch import Rows, Trajectories
from sppo.agents.networks import ControlPolicy
from sppo.agents.protocols import Episodes, Snapshot

Array = NDArray[Any]


def run_episodes(
    env: Episodes,
    policy: ControlPolicy,
    starts: Array | Snapshot,
    generators: Sequence[np.random.Generator],
    *,
    greedy: bool,
    max_steps: int | Array | None,
    max_episode_steps: int,
    keep_states: bool,
) -> Trajectories:
    """See `ControlSampler.rollout`. With S stacked policies the rows are theirs in S equal, consecutive shares.

    Args:
        env: the batch of episodes to use.
        policy: one policy, or several stacked.
        starts: (n,) start seeds, or n states to resume from.
        generators: of actions, one per stacked policy.
        greedy: take the mode instead of sampling.
        max_steps: for all, or (n,); rows cut there are marked truncated.
        max_episode_steps: without max_steps, an episode that runs longer is an error.
        keep_states: record the state before every step, and at the cut.
    """
    actor = policy.actor()
    obs = env.restore(starts) if isinstance(starts, dict) else env.begin(starts)
    n = len(obs)
    if n % len(generators):
        raise ValueError(f"{n} starts cannot be shared equally by {len(generators)} policies")
    limit = np.broadcast_to(np.asarray(max_episode_steps if max_steps is None else max_steps), (n,))
    store = _Store(n, min(int(limit.max(initial=0)), getattr(env, "horizon", None) or 256), obs.shape[1], actor)
    terminated, truncated, lengths = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, np.int64)
    snapshots: list[Snapshot] = []
    positions: list[Array] = []
    rows, t, soonest = np.arange(n), 0, int(limit.min()) if n else 0
    act = _Act(actor, generators, n, greedy)
    while len(rows):
        if keep_states:
            snapshots.append(_snapshot(env))
            positions.append(np.full(n, -1))
            positions[-1][rows] = np.arange(len(rows))
        store.observe(t, rows, obs)
        if t >= soonest:
            if max_steps is None:
                raise ValueError(
                    f"an episode ran past {max_episode_steps} steps without ending; give the environment a horizon "
                    "(sppo.envs.SparseOutcome has one) or raise max_episode_steps"
                )
            cut = limit[rows] <= t
            truncated[rows[cut]], lengths[rows[cut]] = True, t
            if cut.all():
                break
            env.drop(cut)
            rows, obs = rows[~cut], obs[~cut]
            soonest = limit[rows].min()
        actions, logprobs = act(rows, obs)
        obs, rewards, term, trunc = env.step(within(env.single_action_space, actions))
        store.act(t, rows, actions, logprobs, rewards)
        t += 1
        done = term | trunc
        if done.any():
            ended = rows[done]
            terminated[ended], truncated[ended], lengths[ended] = term[done], trunc[done] & ~term[done], t
            store.observe(t, ended, obs[done])
            rows, obs = rows[~done], obs[~done]
    group = np.arange(n) if isinstance(starts, dict) else np.unique(starts, return_inverse=True)[1]
    return store.trajectories(
        lengths,
        group=torch.from_numpy(group),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        success=torch.from_numpy(env.success.copy()),
        states=States(snapshots, np.stack(positions)) if keep_states and n else None,
    )


def _snapshot(env: Episodes) -> Snapshot:
    try:
        return env.snapshot()
    except NotImplementedError as error:
        raise ValueError(
            f"{type(env).__name__} has no snapshots, which continuations, trees and n_steps go on from"
        ) from error


def within(space: Any, actions: Array) -> Array:
    """Actions clipped to the bounds of a Box; others as they are."""
    return np.clip(actions, space.low, space.high) if isinstance(space, Box) else actions


class _Act:
    """Chooses actions for the running rows; each stacked policy draws from its own generator."""

    def __init__(self, actor: Any, generators: Sequence[np.random.Generator], n: int, greedy: bool) -> None:
        self.actor, self.generators, self.n, self.greedy = actor, generators, n, greedy
        self.share = n // len(generators)
        self.all_observations: Array | None = None

    def __call__(self, rows: Array, observations: Array) -> tuple[Array, Array]:
        actor, alone = self.actor, len(self.generators) == 1
        owner: int | Array = 0
        counts = [len(rows)]
        if alone:
            outputs = actor.outputs(observations)
        else:
            owner = rows // self.share
            counts = np.bincount(owner, minlength=len(self.generators)).tolist()
            if len(rows) == self.n:
                outputs = actor.outputs(observations)
            else:
                # Matrix products want equal shares, so rows that have ended are computed along and left out.
                if self.all_observations is None:
                    self.all_observations = np.zeros((self.n, observations.shape[1]), np.float32)
                self.all_observations[rows] = observations
                outputs = actor.outputs(self.all_observations)[:, rows]
        if self.greedy:
            noise = None
        elif alone:
            noise = actor.noise(self.generators[0], len(rows))
        else:
            noise = np.concatenate([actor.noise(g, m) for g, m in zip(self.generators, counts, strict=True)])
        actions, logprobs = actor.act(outputs, noise, owner)
        return actions, logprobs


class States:
    """The states that a rollout passed through, by row and step."""

    def __init__(self, snapshots: list[Snapshot], position: Array) -> None:
        self.snapshots = snapshots  # one per step, of the rows that ran
        self.position = position  # (T + 1, B) where to find the row there, -1 where it had ended

    def __getitem__(self, rows: Rows) -> States:
        index = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return States(self.snapshots, self.position[:, index])

    def running(self, rows: Array, steps: Array) -> NDArray[np.bool_]:
        """(n,) True where the row was still running before the step."""
        return self._find(rows, steps) >= 0

    def _find(self, rows: Array, steps: Array) -> Array:
        ended = np.full((1, self.position.shape[1]), -1)
        return np.concatenate([self.position, ended])[np.minimum(steps, len(self.position)), rows]

    def at(self, rows: Array, steps: Array) -> Snapshot:
        """States (n, ...) of these rows before these steps: starts to resume from."""
        found = self._find(rows, steps)
        if (found < 0).any():
            i = int(np.argmax(found < 0))
            raise ValueError(f"row {rows[i]} has no running state at step {steps[i]}")
        used, which = np.unique(steps, return_inverse=True)
        kept = [self.snapshots[t] for t in used]
        sizes = np.array([len(next(iter(snapshot.values()))) for snapshot in kept], np.int64)
        index = (np.cumsum(sizes) - sizes)[which] + found
        return {k: np.concatenate([snapshot[k] for snapshot in kept])[index] for k in kept[0]} if kept else {}


class _Store:
    """Time-major arrays that grow with the longest episode."""

    def __init__(self, n: int, capacity: int, n_inputs: int, actor: Any) -> None:
        self.n, self.capacity = n, capacity
        self.inputs = np.zeros((capacity + 1, n, n_inputs), np.float32)
        self.actions = np.zeros((capacity, n, *actor.shape), actor.dtype)
        self.logprobs = np.zeros((capacity, n), np.float32)
        self.rewards = np.zeros((capacity, n), np.float32)

    def observe(self, t: int, rows: Array, observations: Array) -> None:
        # Plain slices are several times faster than fancy indexing, and nearly every step has all rows running.
        self.inputs[t, slice(None) if len(rows) == self.n else rows] = observations

    def act(self, t: int, rows: Array, actions: Array, logprobs: Array, rewards: Array) -> None:
        if t == self.capacity:
            self._grow()
        index = slice(None) if len(rows) == self.n else rows
        self.actions[t, index] = actions
        self.logprobs[t, index] = logprobs
        self.rewards[t, index] = rewards

    def _grow(self) -> None:
        for name in ("inputs", "actions", "logprobs", "rewards"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((self.capacity, *old.shape[1:]), old.dtype)]))
        self.capacity *= 2

    def trajectories(self, lengths: Array, **rest: Any) -> Trajectories:
        steps = int(lengths.max(initial=0))
        valid = np.arange(steps)[:, None] < lengths
        inputs, logprobs = self.inputs[: steps + 1], self.logprobs[:steps]
        for name, array in (("observation", inputs), ("log-probability", logprobs)):
            finite = np.isfinite(array)
            if not finite.all():
                t, row = np.argwhere(~finite)[0][:2]
                raise ValueError(f"the {name} of row {row} at step {t} is not finite")
        batch_major = {
            "inputs": inputs,
            "actions": self.actions[:steps],
            "logprobs": logprobs,
            "rewards": self.rewards[:steps],
            "valid": valid,
        }
        return Trajectories(
            **{name: torch.from_numpy(array).transpose(0, 1) for name, array in batch_major.items()},
            start_key=torch.full((self.n,), -1),
            **rest,
        )
