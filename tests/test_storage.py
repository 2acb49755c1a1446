"""Saved agents go on bit for bit; what does not fit, or is damaged, is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sppo.agents import AGENTS, PPO, SPPO, Agent, ControlSampler
from sppo.agents.storage import TYPES, load_policy, save_policy, write_tensors
from sppo.envs import episodes

ENV_ID = "sppo/PrecisionCartPole-v0"
DIALS: dict[str, Any] = {"horizon": 20, "tolerance": 8.0}
SMALL: dict[str, Any] = {"episodes_per_update": 8, "net_arch": (16,), "activation": "tanh"}


def env() -> Any:
    return episodes(ENV_ID, **DIALS)


def same(a: Any, b: Any) -> bool:
    """Bit for bit, NaN equal to itself."""
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)


def assert_go_on_alike(a: Agent, b: Agent, updates: int = 3) -> None:
    for _ in range(updates):
        metrics, others = a.train_once(), b.train_once()
        assert metrics.keys() == others.keys()
        for name in metrics:
            if "seconds" not in name and name != "time/fps":
                assert same(metrics[name], others[name]), name
    (values, tensors), (other_values, other_tensors) = a.state(), b.state()
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == other_tensors[name].dtype and torch.equal(tensor, other_tensors[name]), name
    for state in (values, other_values):
        del state["counters"]["seconds"], state["counters"]["cpu_seconds"]
    assert json.dumps(values) == json.dumps(other_values)


IN_PARTS = ["ppo", "ppo-bce"]  # the others need whole episodes
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in AGENTS),
    *((name, {"n_steps": 7}) for name in IN_PARTS),
    *((name, {"kl_coef": 0.1, "mask_threshold": 0.7}) for name in ("sppo", "dapo", "gspo")),
    ("ppo", {"kl_coef": 0.1, "kl_in": "reward", "critic_warmup": 3}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_a_saved_agent_goes_on_bit_for_bit(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """With n_steps the save comes in the middle of episodes."""
    agent = AGENTS[name](env(), seed=3, learning_rate=0.01, **SMALL | settings)
    for _ in range(2):
        agent.train_once()
    assert agent.stream is None or agent.stream.live, "episodes are under way"
    agent.save(tmp_path / "saved")
    loaded = type(agent).load(tmp_path / "saved", env())
    assert type(loaded) is type(agent) and loaded.config == agent.config and loaded.network == agent.network
    observations = np.random.default_rng(0).normal(size=(50, 5))
    assert same(agent.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0])
    assert_go_on_alike(agent, loaded)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_a_stream_over_any_environment_goes_on(env_id: str, tmp_path: Path) -> None:
    """Episodes under way are restored by replaying their actions."""
    agent = PPO(episodes(env_id, max_episode_steps=30), n_steps=20, seed=1, **SMALL)
    agent.train_once()
    agent.save(tmp_path)
    assert_go_on_alike(agent, PPO.load(tmp_path, episodes(env_id, max_episode_steps=30)))


def test_a_fresh_agent_can_be_saved(tmp_path: Path) -> None:
    agent = SPPO(env(), **SMALL)
    agent.save(tmp_path)
    assert_go_on_alike(agent, SPPO.load(tmp_path, env()), updates=1)


def test_saving_twice_and_over_an_older_one(tmp_path: Path) -> None:
    agent = PPO(env(), **SMALL)
    agent.save(tmp_path)
    agent.train_once()
    agent.save(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    agent.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert PPO.load(tmp_path, env()).n_updates == 1


def test_only_json_and_safetensors(tmp_path: Path) -> None:
    PPO(env(), n_steps=5, **SMALL).save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_views_and_every_type_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    written = {
        "flags": torch.tensor([True, False, True]),  # three bytes: what follows must still lie where it can be read
        "step": torch.tensor(3.5),
        "a view": whole[:6].view(2, 3),
        "its columns": whole[6:].view(2, 3).T,
        "none": torch.zeros(0, 4),
        "counts": torch.tensor([2**40, -1]),
        **{f"of {dtype}": torch.tensor([1, 0, 1, 1, 0]).to(dtype) for dtype in TYPES},
    }
    write_tensors(tmp_path / "file", written)
    read = load_file(tmp_path / "file")
    assert read.keys() == written.keys()
    for name, tensor in read.items():
        assert tensor.dtype == written[name].dtype and torch.equal(tensor, written[name]), name
    write_tensors(tmp_path / "again", dict(reversed(written.items())))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes(), "the order is the file's own"


def test_a_type_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tensors = {"well": torch.zeros(2), "phases": torch.zeros(2, dtype=torch.complex64)}
    with pytest.raises(ValueError, match=r"phases is of torch\.complex64"):
        write_tensors(tmp_path / "file", tensors)
    assert not (tmp_path / "file").exists()


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    agent = PPO(env(), **SMALL)
    agent.save(tmp_path)
    with pytest.raises(ValueError, match="holds an agent of PPO, not of SPPO"):
        SPPO.load(tmp_path, env())
    with pytest.raises(ValueError, match=r"the saved policy does not fit: obs_mean must be \(1, 4\), got \(1, 5\)"):
        PPO.load(tmp_path, episodes(ENV_ID, time_in_obs=False))
    with pytest.raises(ValueError, match="cannot read the agent in .*nowhere"):
        PPO.load(tmp_path / "nowhere", env())
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="cannot read the agent in"):
            PPO.load(tmp_path, env())
        path.write_bytes(whole)
    PPO.load(tmp_path, env())


def test_policies_on_their_own(tmp_path: Path) -> None:
    first, second = (ControlSampler(env(), seed=seed, net_arch=(16,)).policy for seed in range(2))
    first.obs_mean.fill_(0.25)
    path = tmp_path / "starts" / "fit.safetensors"
    save_policy(first, path, {"success_rate": 0.125})
    assert json.loads(path.with_suffix(".json").read_text()) == {"success_rate": 0.125}
    load_policy(second, path)
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name

    wider = ControlSampler(env(), net_arch=(8,)).policy
    with pytest.raises(
        ValueError, match=r"fit.safetensors does not fit: biases.0 must be \(1, 8, 1\), got \(1, 16, 1\)"
    ):
        load_policy(wider, path)
    deeper = ControlSampler(env(), net_arch=(16, 16)).policy
    with pytest.raises(ValueError, match=r"does not fit: biases.1 must be \(1, 16, 1\), got \(1, 2, 1\)"):
        load_policy(deeper, path)
    path.write_bytes(b"not a policy")
    with pytest.raises(ValueError, match="cannot read the policy .*fit.safetensors"):
        load_policy(second, path)
    with pytest.raises(ValueError, match="cannot read the policy .*missing"):
        load_policy(second, tmp_path / "missing.safetensors")


def test_loading_over_a_damaged_policy_changes_nothing(tmp_path: Path) -> None:
    policy, other = (ControlSampler(env(), seed=seed, net_arch=(16,)).policy for seed in range(2))
    save_policy(ControlSampler(env(), net_arch=(16, 16)).policy, tmp_path / "other.safetensors", {})
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with pytest.raises(ValueError):
        load_policy(policy, tmp_path / "other.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert not torch.equal(other.weights[0], policy.weights[0])


def test_an_agent_with_a_policy_of_another_shape(tmp_path: Path) -> None:
    """A start policy may have other layers than the settings name for new networks."""
    start = ControlSampler(env(), net_arch=(24, 8)).policy
    agent = PPO(env(), policy=start, **SMALL)
    agent.train_once()
    agent.save(tmp_path)
    assert_go_on_alike(agent, PPO.load(tmp_path, env()), updates=1)
