"""Text under Gymnasium's interface: by id, one response at a time or several side by side."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import ToyTask, toy_policy, toy_sampler

from sppo.llm.text_env import TextEnv

ARITHMETIC = {"task": "arithmetic", "tokenizer": "arithmetic", "max_completion_length": 12}


def test_the_id_takes_names() -> None:
    options = {"terms": (2, 2), "train_size": 8, "test_size": 2}
    env = gym.make("sppo/Text-v0", **ARITHMETIC, task_options=options, render_mode="ansi")
    check_env(env.unwrapped, skip_render_check=True)
    _, info = env.reset(seed=0)
    prompt = env.unwrapped.prompts[info["prompt"]]
    encode = env.unwrapped.tokenizer.encode
    for token in encode(f"={prompt.answer}"):
        _, reward, over, _, info = env.step(token)
        assert (reward, over) == (0, False)
    _, reward, over, truncated, info = env.step(env.unwrapped.tokenizer.eos_token_id)
    assert (reward, over, truncated) == (1, True, False) and info == {"is_success": True, "reason": "ok"}
    assert env.render() == f"{prompt.prompt}={prompt.answer}"


def test_rows_side_by_side_are_rows_alone() -> None:
    """Each row of the vector form gives what the single environment gives for the same prompt and tokens."""
    sampler = toy_sampler(toy_policy(spread=30), max_completion_length=6)
    options = {"task": ToyTask(), "tokenizer": sampler.policy.tokenizer, "max_completion_length": 6}
    envs = gym.make_vec("sppo/Text-v0", num_envs=5, **options)
    alone = [TextEnv(**options) for _ in range(5)]
    observations, info = envs.reset(seed=3)
    for env, index in zip(alone, info["prompt"], strict=True):
        env.reset(options={"prompt": index})
    begins = np.zeros(5, bool)
    ended = 0
    for _ in range(20):
        actions = sampler.predict(observations, deterministic=False)
        observations, rewards, over, truncated, info = envs.step(actions)
        assert not truncated.any()
        for i, env in enumerate(alone):
            if begins[i]:  # the vector form has drawn a prompt of its own
                want, _ = env.reset(options={"prompt": envs.indices[i]})
                assert np.array_equal(observations[i], want) and (rewards[i], over[i]) == (0, False)
                continue
            want, reward, ends, _, its = env.step(actions[i])
            assert np.array_equal(observations[i], want)
            assert (rewards[i], over[i]) == (reward, ends)
            if ends:
                ended += 1
                assert (info["is_success"][i], info["reason"][i]) == (its["is_success"], its["reason"])
        begins = over.copy()
    assert ended > 10


def test_vector_rows_are_drawn_by_the_seed() -> None:
    envs = gym.make_vec("sppo/Text-v0", num_envs=64, **ARITHMETIC)
    first, again = (envs.reset(seed=7)[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, envs.reset()[0])
    assert len(np.unique(first, axis=0)) > 32


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_completion_length must be positive, got 0"):
        TextEnv("arithmetic", "arithmetic", max_completion_length=0)
