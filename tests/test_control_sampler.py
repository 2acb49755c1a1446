"""Rollouts: cut and resumed, counted, grouped; what a broken environment is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from sppo.agents import PPO, ControlSampler, Trajectories
from sppo.agents.control import HELD_OUT_SEEDS
from sppo.agents.networks import CategoricalPolicy, GaussianPolicy
from sppo.agents.protocols import Episodes
from sppo.agents.sampling import Stream
from sppo.agents.stack import Stack
from sppo.envs import episodes

Array = NDArray[Any]
TASKS = ["sppo/SparseChain-v0", "sppo/PrecisionCartPole-v0", "sppo/Pendulum-v0"]


class Scripted:
    """Row i's episode lasts lengths[seed % len] steps; observations are (seed, t); ends as `how` says."""

    single_observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    single_action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, lengths: tuple[int, ...], *, how: str = "terminated", poison: tuple[int, int] | None = None):
        self.lengths, self.how, self.poison = lengths, how, poison
        self.steps_made = 0
        self.acted: list[Array] = []
        self.begin(np.zeros(0, np.int64))

    def _observe(self) -> Array:
        obs = np.stack([self.seeds % 1000, self.t], 1).astype(np.float32)
        if self.poison is not None:
            obs[(self.running == self.poison[0]) & (self.t == self.poison[1])] = np.nan
        return obs

    def begin(self, seeds: Array) -> Array:
        return self.restore({"seeds": seeds, "t": np.zeros(len(seeds), np.int64)})

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array]:
        assert len(actions) == len(self.running)
        self.acted.append(actions)
        self.steps_made += len(actions)
        self.t = self.t + 1
        obs = self._observe()
        ended = self.t == np.array(self.lengths)[self.seeds % len(self.lengths)]
        rewards = np.where(ended, 1.0, 0.25)
        self.success[self.running[ended]] = True
        self._keep(~ended)
        none = np.zeros_like(ended)
        return obs, rewards, *((ended, none) if self.how == "terminated" else (none, ended))

    def drop(self, rows: Array) -> None:
        self._keep(~rows)

    def _keep(self, mask: Array) -> None:
        self.running, self.seeds, self.t = self.running[mask], self.seeds[mask], self.t[mask]

    def snapshot(self) -> dict[str, Array]:
        return {"seeds": self.seeds.copy(), "t": self.t.copy()}

    def restore(self, snapshot: dict[str, Array]) -> Array:
        self.seeds, self.t = snapshot["seeds"].copy(), snapshot["t"].copy()
        self.running, self.success = np.arange(len(self.t)), np.zeros(len(self.t), bool)
        return self._observe()


def sampler_of(env: Any, **settings: Any) -> ControlSampler:
    sampler = ControlSampler(env, **settings)
    with torch.no_grad():  # fresh policies act nearly the same in every state
        sampler.policy.weights[-1].mul_(100)
    return sampler


def test_the_fake_is_a_batch_of_episodes() -> None:
    assert isinstance(Scripted((3,)), Episodes)


def test_what_a_rollout_records() -> None:
    sampler = sampler_of(Scripted((1, 3, 2)))
    traj = sampler.rollout(np.array([3, 4, 5]))  # lengths 1, 3, 2
    assert traj.lengths.tolist() == [1, 3, 2]
    assert traj.valid.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert traj.rewards.tolist() == [[1, 0, 0], [0.25, 0.25, 1], [0.25, 1, 0]]
    assert traj.outcomes.tolist() == [1, 1.5, 1.25]
    # Observations of every state, the last one included, and nothing after it.
    assert traj.inputs[..., 0].tolist() == [[3, 3, 0, 0], [4, 4, 4, 4], [5, 5, 5, 0]]
    assert traj.inputs[..., 1].tolist() == [[0, 1, 0, 0], [0, 1, 2, 3], [0, 1, 2, 0]]
    assert traj.terminated.all() and not traj.truncated.any() and traj.success.all()
    assert traj.start_key.tolist() == [-1, -1, -1]
    assert traj.actions.dtype == torch.int64 and traj.logprobs.dtype == torch.float32
    acted = [actions.tolist() for actions in sampler.env.acted]  # type: ignore[attr-defined]
    assert traj.actions[:, 0].tolist() == acted[0] and traj.actions[1:, 1].tolist() == acted[1]


def test_an_end_that_the_task_does_not_know_of() -> None:
    traj = sampler_of(Scripted((2,), how="truncated")).rollout(np.array([1, 2]))
    assert traj.truncated.all() and not traj.terminated.any()


def test_cut_rows_are_truncated_and_keep_their_last_observation() -> None:
    sampler = sampler_of(Scripted((3,)))
    traj = sampler.rollout(np.array([10, 20, 30, 40]), max_steps=np.array([2, 3, 9, 0]))
    assert traj.lengths.tolist() == [2, 3, 3, 0]
    assert traj.truncated.tolist() == [True, False, False, True]
    assert traj.terminated.tolist() == [False, True, True, False]
    assert traj.inputs[0, 2].tolist() == [10, 2]
    assert sampler.env.steps_made == 8, "rows that are cut are not stepped on"  # type: ignore[attr-defined]
    assert sampler.counts == {"env_steps": 8, "episodes": 4}


def test_steps_and_episodes_are_counted_where_they_are_spent() -> None:
    sampler = sampler_of(Scripted((4, 2)))
    traj = sampler.rollout(np.array([0, 1]), max_steps=1, keep_states=True)  # 2 steps, 2 episodes begun
    sampler.rollout(traj.states.at(np.array([0, 0, 1]), np.array([1, 1, 1])), greedy=True)  # 3 + 3 + 1, none begun
    sampler.rollout(np.array([1]))  # 2 steps, 1 begun
    assert sampler.counts == {"env_steps": 11, "episodes": 3}
    assert sampler.env.steps_made == 11  # type: ignore[attr-defined]


def spliced(first: Trajectories, rest: Trajectories, name: str) -> Any:
    """The valid entries of both, row by row."""
    return [
        [*getattr(first, name)[i][first.valid[i]].tolist(), *getattr(rest, name)[i][rest.valid[i]].tolist()]
        for i in range(len(first))
    ]


@pytest.mark.parametrize("env_id", TASKS)
@pytest.mark.parametrize("cut", ["scalar", "by row"])
def test_cut_and_resumed_is_the_whole_rollout(env_id: str, cut: str) -> None:
    """Greedily, so that the action noise is the same; the start's own noise comes back with the state."""
    options = {"slip": 0.2} if "Chain" in env_id else {"horizon": 50}
    sampler = sampler_of(episodes(env_id, **options), seed=3)
    starts = sampler.starts(6)
    whole = sampler.rollout(starts, greedy=True)
    limit = np.full(6, 4) if cut == "scalar" else np.array([1, 2, 3, 5, 6, 7])
    first = sampler.rollout(starts, greedy=True, max_steps=4 if cut == "scalar" else limit, keep_states=True)
    assert first.truncated.all() and not first.success.any()
    rest = sampler.rollout(first.states.at(np.arange(6), limit), greedy=True)
    # Matrix products of another number of rows may round otherwise, and so the states that continuous actions lead to.
    for name in ("actions", "rewards", "logprobs"):
        expected = [getattr(whole, name)[i][whole.valid[i]].tolist() for i in range(6)]
        for got, want in zip(spliced(first, rest, name), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=0 if whole.actions.ndim == 2 and name != "logprobs" else 1e-4)
    for i in range(6):
        n = int(whole.lengths[i]) - int(limit[i])
        torch.testing.assert_close(
            rest.inputs[i, : n + 1], whole.inputs[i, limit[i] : limit[i] + n + 1], rtol=0, atol=1e-4
        )
    assert torch.equal(rest.success, whole.success) and torch.equal(rest.terminated, whole.terminated)


@pytest.mark.parametrize("env_id", TASKS)
def test_states_of_any_row_and_step(env_id: str) -> None:
    """Continuations from the middle of a finished rollout, several from one state, meet its own end."""
    sampler = sampler_of(episodes(env_id, horizon=12, **({"goal": 7} if "Chain" in env_id else {})))
    traj = sampler.rollout(sampler.starts(3), greedy=True, keep_states=True)
    lengths = traj.lengths.numpy()
    rows = np.array([2, 0, 0, 1])
    steps = np.array([3, 0, lengths[0] - 1, lengths[1] - 1])
    rest = sampler.rollout(traj.states.at(rows, steps), greedy=True)
    assert rest.lengths.tolist() == [lengths[2] - 3, lengths[0], 1, 1]
    assert torch.equal(rest.success, traj.success[torch.from_numpy(rows)])
    for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
        n = lengths[row] - step
        expected = traj.inputs[row, step : step + n + 1]
        torch.testing.assert_close(rest.inputs[i, : n + 1], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(rest.inputs[i, 0], expected[0], rtol=0, atol=0)
    part = traj[torch.tensor([1, 2])]  # indexing rows indexes their states
    again = sampler.rollout(part.states.at(np.array([1]), np.array([3])), greedy=True)
    torch.testing.assert_close(again.inputs[0, 0], traj.inputs[2, 3], rtol=0, atol=0)


def test_states_that_are_not_there() -> None:
    sampler = sampler_of(Scripted((1, 3)))
    traj = sampler.rollout(np.array([0, 1]), keep_states=True)
    with pytest.raises(ValueError, match="row 0 has no running state at step 1"):
        traj.states.at(np.array([1, 0]), np.array([1, 1]))
    with pytest.raises(ValueError, match="row 1 has no running state at step 3"):
        traj.states.at(np.array([1]), np.array([3]))
    assert traj.states.running(np.array([0, 1, 1]), np.array([1, 2, 99])).tolist() == [False, True, False]
    assert traj.states.at(np.array([], int), np.array([], int)) == {}
    assert sampler.rollout(np.array([0, 1])).states is None


def test_action_noise_repeats_with_the_seed() -> None:
    def actions(seed: int) -> Any:
        sampler = ControlSampler(episodes("sppo/Pendulum-v0", horizon=10), seed=seed)
        return sampler.rollout(np.arange(3)).actions.tolist()

    assert actions(1) == actions(1) != actions(2)


def test_rows_of_one_start_share_its_group_and_state() -> None:
    sampler = sampler_of(episodes("sppo/PrecisionCartPole-v0", horizon=5))
    traj = sampler.rollout(np.array([7, 9, 7, 8, 9, 7]))
    group = traj.group.tolist()
    assert group[0] == group[2] == group[5] and group[1] == group[4] and len(set(group)) == 3
    assert torch.equal(traj.inputs[0, 0], traj.inputs[2, 0]) and not torch.equal(traj.inputs[0, 0], traj.inputs[1, 0])
    assert not torch.equal(traj.actions[0], traj.actions[2]) or not torch.equal(traj.actions[0], traj.actions[5])


def test_training_never_starts_where_evaluation_does() -> None:
    starts = ControlSampler(episodes("sppo/SparseChain-v0")).starts(10_000)
    assert starts.min() >= HELD_OUT_SEEDS and len(np.unique(starts)) == 10_000


def test_actions_are_recorded_as_drawn_and_clipped_for_the_environment() -> None:
    class Bounded(Scripted):
        single_action_space = spaces.Box(-0.5, 0.5, (2,), np.float32)

    sampler = ControlSampler(Bounded((6,)))
    traj = sampler.rollout(np.arange(20))
    acted = np.stack(sampler.env.acted, 1)  # type: ignore[attr-defined]
    assert acted.min() == -0.5 and acted.max() == 0.5
    assert traj.actions.abs().max() > 1, "the log-probability is that of the action as drawn"
    np.testing.assert_array_equal(acted, traj.actions.numpy().clip(-0.5, 0.5))


def test_predict_shapes() -> None:
    for env_id, shape, dtype in ((TASKS[1], (), np.int64), (TASKS[2], (1,), np.float32)):
        sampler = ControlSampler(episodes(env_id))
        space = sampler.env.single_observation_space
        for deterministic in (True, False):
            one = np.asarray(sampler.predict(space.sample(), deterministic))
            batch = sampler.predict(np.stack([space.sample() for _ in range(3)]), deterministic)
            assert one.shape == shape and batch.shape == (3, *shape) and batch.dtype == one.dtype == dtype
            assert all(sampler.env.single_action_space.contains(action) for action in batch)


def test_an_observation_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="the observation of row 1 at step 2 is not finite"):
        sampler_of(Scripted((3,), poison=(1, 2))).rollout(np.arange(3))
    with pytest.raises(ValueError, match="the observation of row 2 at step 3 is not finite"):  # the last one
        sampler_of(Scripted((3,), poison=(2, 3))).rollout(np.arange(3))


def test_an_episode_that_never_ends() -> None:
    endless = Scripted((10**9, 3))
    match = "an episode ran past 20 steps without ending"
    with pytest.raises(ValueError, match=match):
        ControlSampler(endless, max_episode_steps=20).rollout(np.array([1, 2]))
    assert endless.steps_made == 23, "and not a step more"
    traj = ControlSampler(Scripted((20,)), max_episode_steps=20).rollout(np.array([1]))
    assert traj.terminated.all(), "one that ends in time is none"
    traj = ControlSampler(endless, max_episode_steps=20).rollout(np.array([2]), max_steps=40)
    assert traj.lengths.tolist() == [40], "an explicit limit goes first"

    agents = [PPO(ControlSampler(endless, seed=seed, max_episode_steps=20), seed=seed) for seed in range(2)]
    with pytest.raises(ValueError, match=match):
        Stack(agents).train_once()


def test_a_policy_that_does_not_fit() -> None:
    env = episodes("sppo/PrecisionCartPole-v0")
    for policy in (CategoricalPolicy(4, 2), CategoricalPolicy(5, 3), GaussianPolicy(5, 2)):
        expected = r"\('CategoricalPolicy', 5, 2\) for this task, got \('" + type(policy).__name__
        with pytest.raises(ValueError, match=expected):
            ControlSampler(env, policy=policy)
    assert ControlSampler(env, policy=CategoricalPolicy(5, 2, net_arch=(3,))).policy.n_inputs == 5


def test_an_action_space_that_is_not_supported() -> None:
    env = Scripted((3,))
    env.single_action_space = spaces.MultiBinary(3)
    with pytest.raises(ValueError, match="the action space must be Discrete"):
        ControlSampler(env)


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_stream_gives_every_slot_the_same_number_of_steps(how: str) -> None:
    """Two slots of five steps, episodes of 3, 5 and 7 steps: some end inside, some exactly at the cut."""
    env = Scripted((3, 5, 7), how=how)
    sampler = sampler_of(env)
    stream = Stream(sampler, 5)
    spans: list[tuple[int, int, int]] = []
    for update in range(1, 8):
        traj = stream.next(2)
        assert int(traj.lengths.sum()) == 10 and env.steps_made == 10 * update
        assert (traj.terminated | traj.truncated).all()
        for i, n in enumerate(traj.lengths.tolist()):
            seed, first = (int(x) for x in traj.inputs[i, 0])
            assert traj.inputs[i, : n + 1, 1].tolist() == list(range(first, first + n + 1))
            assert (traj.inputs[i, : n + 1, 0] == seed).all()
            spans.append((seed, first, first + n))
        live = len(stream.live["t"]) if stream.live else 0
        by_task = traj.terminated if how == "terminated" else traj.success
        assert live == int((~by_task).sum()), "what was cut goes on, what ended does not"
        assert len(set(traj.group.tolist())) == len(traj)
    # The parts of each episode join up from its start to its end, but for those still running.
    by_episode: dict[int, list[tuple[int, int]]] = {}
    for seed, a, b in spans:
        by_episode.setdefault(seed, []).append((a, b))
    unfinished = 0
    for parts in by_episode.values():
        assert parts[0][0] == 0 and all(x[1] == y[0] for x, y in zip(parts, parts[1:], strict=False))
        unfinished += parts[-1][1] not in (3, 5, 7)
    assert unfinished <= 2 and sampler.counts["episodes"] == len(by_episode)


@pytest.mark.parametrize("n_steps", [100, 150, 200])
def test_stream_over_a_time_limit(n_steps: int) -> None:
    """Pendulum-v1 cuts every episode at 200 steps, now and then where the stream does."""
    sampler = ControlSampler(episodes("Pendulum-v1"))
    stream = Stream(sampler, n_steps)
    for _ in range(4):
        traj = stream.next(2)
        assert int(traj.lengths.sum()) == 2 * n_steps and traj.truncated.all()
    assert sampler.counts == {"env_steps": 8 * n_steps, "episodes": 2 * -(-4 * n_steps // 200)}
