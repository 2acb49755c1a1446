"""The same weights and the same buffer give what stable-baselines3's PPO gives, on dense CartPole-v1 and Pendulum-v1.

Its numbers come from running it: `collect_rollouts` for the buffer and the advantages, `train` with the whole buffer as
one minibatch for losses, gradients and weights.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sppo.agents import PPO, Trajectories
from sppo.envs import GymEpisodes

N_ENVS, N_STEPS = 3, 90
LIMITS = {"CartPole-v1": 20, "Pendulum-v1": 40}  # so that the buffer holds ends of both kinds
COMMON: dict[str, Any] = {"learning_rate": 3e-3, "n_epochs": 1, "gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.01}


class Watch(BaseCallback):
    """What the buffer does not keep: rewards before bootstrapping, and the observations at which episodes ended."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[Any] = []
        self.ends: dict[tuple[int, int], tuple[Any, bool]] = {}

    def _on_step(self) -> bool:
        t = len(self.rewards)
        self.rewards.append(self.locals["rewards"].copy())
        for env, (done, info) in enumerate(zip(self.locals["dones"], self.locals["infos"], strict=True)):
            if done:
                self.ends[t, env] = (info["terminal_observation"], info["TimeLimit.truncated"])
        return True


def make(env_id: str) -> gym.Env[Any, Any]:
    return gym.make(env_id, max_episode_steps=LIMITS[env_id], disable_env_checker=True)


def collected(env_id: str, **settings: Any) -> tuple[SB3PPO, Trajectories]:
    """A model with a full buffer, and the buffer's contents as ours: one row for each part of an episode."""
    model = SB3PPO(
        "MlpPolicy",
        DummyVecEnv([lambda: make(env_id)] * N_ENVS),
        n_steps=N_STEPS,
        batch_size=N_ENVS * N_STEPS,
        vf_coef=1.0,
        max_grad_norm=1e9,
        seed=0,
        device="cpu",
        **COMMON | settings,
    )
    watch = Watch()
    _, callback = model._setup_learn(10**6, watch)
    perturb(model)  # fresh networks put out next to nothing
    model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)
    buffer = model.rollout_buffer
    parts = []
    for env in range(N_ENVS):
        first = 0
        for t in range(N_STEPS):
            end = watch.ends.get((t, env))
            if end is None and t == N_STEPS - 1:
                end = (model._last_obs[env], True)
            if end is not None:
                parts.append((env, slice(first, t + 1), *end))
                first = t + 1
    b, width = len(parts), max(part[1].stop - part[1].start for part in parts)
    discrete = isinstance(model.action_space, gym.spaces.Discrete)
    raw = {"actions": buffer.actions, "logprobs": buffer.log_probs, "rewards": np.array(watch.rewards)}
    padded = {name: np.zeros((b, width, *x.shape[2:]), np.float32) for name, x in raw.items()}
    inputs = np.zeros((b, width + 1, buffer.observations.shape[-1]), np.float32)
    valid = np.zeros((b, width), bool)
    for row, (env, steps, last, _) in enumerate(parts):
        n = steps.stop - steps.start
        valid[row, :n] = True
        inputs[row, :n], inputs[row, n] = buffer.observations[steps, env], last
        for name, x in raw.items():
            padded[name][row, :n] = x[steps, env]
    actions = torch.from_numpy(padded.pop("actions"))
    truncated = torch.tensor([part[3] for part in parts])
    assert truncated[:-1].any(), "an episode was cut in the middle"
    return model, Trajectories(
        inputs=torch.from_numpy(inputs),
        actions=actions[..., 0].long() if discrete else actions,
        **{name: torch.from_numpy(x) for name, x in padded.items()},
        valid=torch.from_numpy(valid),
        terminated=~truncated,
        truncated=truncated,
        group=torch.arange(b),
        start_key=torch.full((b,), -1),
        success=torch.zeros(b, dtype=torch.bool),
    )


def perturb(model: SB3PPO) -> None:
    """Other weights, so that probability ratios leave 1 and some are clipped."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.policy.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)


def layers(model: SB3PPO, body: Any, head: Any) -> list[Any]:
    return [layer for layer in body if isinstance(layer, torch.nn.Linear)] + [head]


def pairs(model: SB3PPO, agent: PPO) -> list[tuple[str, Any, Any]]:
    """(name, their parameter, ours); shapes differ by axes of length 1."""
    body, found = model.policy.mlp_extractor, []
    for name, network, theirs in (
        ("policy", agent.policy, layers(model, body.policy_net, model.policy.action_net)),
        ("critic", agent.critic, layers(model, body.value_net, model.policy.value_net)),
    ):
        assert len(theirs) == len(network.weights)
        for i, layer in enumerate(theirs):
            found += [(f"{name} weight {i}", layer.weight, network.weights[i])]
            found += [(f"{name} bias {i}", layer.bias, network.biases[i])]
    if hasattr(agent.policy, "log_std"):
        found.append(("log_std", model.policy.log_std, agent.policy.log_std))
    assert sum(p.numel() for _, p, _ in found) == sum(p.numel() for p in model.policy.parameters())
    return found


def copy(model: SB3PPO, agent: PPO) -> None:
    with torch.no_grad():
        for _, theirs, ours in pairs(model, agent):
            ours.copy_(theirs.view(ours.shape))


def agent_for(env_id: str, model: SB3PPO, **settings: Any) -> PPO:
    agent = PPO(
        GymEpisodes(lambda: make(env_id)),
        activation="tanh",
        critic_learning_rate=COMMON["learning_rate"],
        n_minibatches=1,
        max_grad_norm=1e9,
        **COMMON | settings,
    )
    copy(model, agent)
    return agent


def close(ours: Any, theirs: Any, what: str) -> None:
    """To 1e-5; of the largest entry, where that is above 1."""
    ours, theirs = (torch.as_tensor(x).detach().flatten().double() for x in (ours, theirs))
    scale = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5, msg=lambda text: f"{what}: {text}")


def by_slot(x: torch.Tensor, traj: Trajectories) -> torch.Tensor:
    """Valid entries in the order of the buffer's columns: the parts of one slot follow one another."""
    return x[traj.valid]


@pytest.mark.parametrize("env_id", LIMITS)
def test_values_and_advantages(env_id: str) -> None:
    model, traj = collected(env_id)
    agent = agent_for(env_id, model)
    buffer, experience = model.rollout_buffer, agent.credit(traj)
    assert experience.advantages is not None and experience.values is not None
    assert experience.value_targets is not None
    for name, ours, theirs in (
        ("values", experience.values, buffer.values),
        ("advantages", experience.advantages, buffer.advantages),
        ("returns", experience.value_targets, buffer.returns),
    ):
        close(by_slot(ours, traj), theirs.T.copy(), name)
    with torch.no_grad():
        logprobs, _ = agent.policy.evaluate(traj)
    close(by_slot(logprobs, traj), buffer.log_probs.T.copy(), "log-probabilities")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("env_id", LIMITS)
def test_losses_and_gradients(env_id: str, normalize: bool) -> None:
    model, traj = collected(env_id, normalize_advantage=normalize)
    agent = agent_for(env_id, model, normalize_advantage=normalize)
    experience = agent.credit(traj)
    perturb(model)
    copy(model, agent)
    model.train()
    metrics = agent.update(experience)

    logged = model.logger.name_to_value
    assert 0.1 < logged["train/clip_fraction"] < 0.9
    for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"):
        close(metrics[f"train/{name}"], logged[f"train/{name}"], name)
    for name, theirs, ours in pairs(model, agent):
        assert theirs.grad.abs().max() > 1e-4
        close(ours.grad, theirs.grad, f"gradient of {name}")


@pytest.mark.parametrize("env_id", LIMITS)
def test_weights_after_several_steps(env_id: str) -> None:
    """The whole buffer as one minibatch, five times: Adam, its epsilon and the clipping bounds come in."""
    model, traj = collected(env_id, n_epochs=5, normalize_advantage=True)
    agent = agent_for(env_id, model, n_epochs=5, normalize_advantage=True)
    experience = agent.credit(traj)
    before = {name: ours.detach().clone() for name, _, ours in pairs(model, agent)}
    model.train()
    agent.update(experience)
    for name, theirs, ours in pairs(model, agent):
        assert (ours - before[name]).abs().max() > 3e-3, name
        close(ours, theirs, name)


@pytest.mark.parametrize("env_id", LIMITS)
def test_new_networks_are_drawn_alike(env_id: str) -> None:
    """Orthogonal weights of the same gains: the same singular values, layer by layer; biases 0, log_std 0."""
    model = SB3PPO("MlpPolicy", make(env_id), device="cpu")
    agent = PPO(GymEpisodes(lambda: make(env_id)), activation="tanh")
    for name, theirs, ours in pairs(model, agent):
        if "weight" in name:
            theirs, ours = torch.linalg.svdvals(theirs), torch.linalg.svdvals(ours)
        close(ours, theirs, name)
