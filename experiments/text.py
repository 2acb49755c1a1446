"""Text tasks: a language model, its critic and the engine that generates, put together for a run."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sppo.agents import AGENTS, Agent
from sppo.agents.callbacks import Callback
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import agent_settings
from sppo.experiments.prompts import evaluation_prompts, evaluation_task, training_task
from sppo.experiments.ranks import (
    check_started,
    ranks,
    shared_engine,
    shared_learner,
    shared_task,
    started,
    started_here,
)
from sppo.experiments.responses import FirstPrediction, Responses
from sppo.experiments.runlog import RunLog
from sppo.experiments.settings import make
from sppo.experiments.shapes import SHAPES, shape_of
from sppo.experiments.tasks import task as about_task
from sppo.experiments.text_config import TextConfig, check_shared, text_config
from sppo.experiments.text_memory import UnknownShape, fits
from sppo.llm.engine import Engine
from sppo.llm.engine_hf import HFEngine
from sppo.llm.engine_vllm import VLLMEngine
from sppo.llm.policy import TextPolicy, critic_base, load_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sources import find_model, model_names
from sppo.llm.tasks import Prompt, make_task
from sppo.llm.tokenizer import encode_prompt, load_tokenizer
from sppo.llm.vllm_options import require_vllm

SIDE_BY_SIDE = 1

REFUSED = ("top_k", "top_p", "min_p", "repetition_penalty")
"""Ways of sampling from another distribution than the policy's own."""

_log = logging.getLogger(__name__)


def resolve(config: RunConfig) -> RunConfig:
    """See `domains.resolve`."""
    about = about_task(config.env_id)
    for name in set(REFUSED) & set(config.text):
        raise ValueError(
            f"{name} is refused: the update's probability ratios need the probabilities that were sampled from, which "
            "are the whole softmax's; temperature is there"
        )
    size = started()
    check_started(config.text.get("ranks", size))
    each = max(1, (os.cpu_count() or 1) // started_here())
    settings, of_task = agent_settings(config), dict(about.text)
    if settings["shared_network"]:
        of_task.pop("critic_layers", None)  # of a critic of its own
    text = make(TextConfig, {"threads": each, **of_task, **config.text, "ranks": size})
    env_kwargs = {**about.env_kwargs, **config.env_kwargs}
    training_task(dataclasses.replace(config, env_kwargs=env_kwargs))
    start = about.start if config.start == "auto" else config.start
    if start in (None, "none"):
        raise ValueError(f"{config.env_id} needs a model to start from: name one with --model")
    if settings["shared_network"]:
        check_shared(text)
    find_model(start)
    if text.critic != "policy":
        find_model(text.critic)
    if text.eval_task is not None:
        make_task(text.eval_task)
    return dataclasses.replace(
        config,
        settings=settings,
        text=dataclasses.asdict(text),
        start=str(Path(start).resolve()) if start not in model_names() and Path(start).exists() else start,
        env_kwargs=env_kwargs,
    )


def check(configs: Sequence[RunConfig]) -> None:
    """Data files are read, prompts are encoded and memory is planned; models are too large to be made for a check."""
    seen = set()
    for config in configs:
        if config.text["engine"] != "hf":
            require_vllm()
        _check_gpus(config)
        if config.text["lora_rank"] is not None or config.text["critic_kind"] != "full":
            import sppo.llm.lora  # noqa: F401 - which says what is missing
        key = json.dumps([config.env_id, config.env_kwargs, config.text, config.start], sort_keys=True)
        if key not in seen:
            seen.add(key)
            tokenizer = load_tokenizer(find_model(config.start))
            if config.text["critic"] != "policy":
                _check_tokens(config.text["critic"], tokenizer)
            splits = {"train": training_task(config).prompts("train"), "test": evaluation_prompts(config)}
            for split, prompts in splits.items():
                if not prompts:
                    raise ValueError(f"{config.env_id} has no prompts in its split {split!r}")
                encode_prompt(tokenizer, prompts[0].prompt)
            shared = {p.key for p in splits["train"]} & {p.key for p in splits["test"]}
            if shared:
                _log.warning(
                    "%s: %d prompts are in both splits, so success on them is not of held-out prompts: "
                    "--task-options test_share holds some out, --text eval_task names another task",
                    config.env_id,
                    len(shared),
                )
        try:
            fits(config)
            if config.text["critic"] != "policy":
                _check_rows(config, *(_rows(name) for name in (config.start, config.text["critic"])))
        except UnknownShape as error:
            _log.warning("%s", error)


def make_agents(configs: Sequence[RunConfig]) -> list[Agent]:
    """The agents of resolved configs."""
    return [_make_agent(config) for config in configs]


def _make_agent(config: RunConfig) -> Agent:
    text = text_config(config)
    check_started(text.ranks)
    torch.set_num_threads(threads(config))
    source, task = find_model(config.start), training_task(config)
    tokenizer = load_tokenizer(source)
    policy = TextPolicy(load_model(source), tokenizer, temperature=text.temperature, dtype=getattr(torch, text.dtype))
    if ranks() is None:
        policy.to(device())
    if text.lora_rank is not None:
        from sppo.llm.lora import lora_policy

        lora_policy(policy, _lora(text), seed=config.seed)
    sampler = TextSampler(
        shared_task(task),
        policy,
        shared_engine(partial(make_engine, room=_room(config, policy)), policy, text),
        max_completion_length=text.max_completion_length,
        seed=config.seed,
        critic=lambda: _critic_base(policy, config),
        prompts=policy.with_room(task.prompts("train"), text.max_completion_length, text.max_prompt_length),
    )
    if ranks() is not None:
        sampler.learner = shared_learner(text, config.settings["microbatch_size"])  # type: ignore[attr-defined]
    kind = AGENTS[config.agent]
    return kind(sampler, config=make(kind.Config, config.settings))


def device() -> torch.device:
    """Where a process works that shares its run with no other: the first GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_engine(policy: TextPolicy, text: TextConfig, room: int | None = None) -> Engine:
    """What generates with this policy's weights, prompts and responses of up to `room` tokens together."""
    if text.engine == "hf":
        return HFEngine(policy, batch_size=text.generation_batch_size)
    return VLLMEngine(
        policy,
        server=text.engine == "vllm-server",
        batch_size=text.generation_batch_size,
        max_model_len=room,
        dtype=getattr(torch, text.engine_dtype),
        kv_cache_gib=text.kv_cache_gib,
        gpu_memory_utilization=text.gpu_memory_utilization,
        devices=None if text.engine_devices is None else str(text.engine_devices),
        device=None if ranks() is None else ranks().device,  # where the policy goes when it is sharded
    )


def _room(config: RunConfig, policy: TextPolicy) -> int | None:
    """For the longest prompt, of training or evaluation, and a response; None where only the model's context counts."""
    text = text_config(config)
    if text.engine == "hf" or text.max_prompt_length is None:
        return None
    longest = max(len(encode_prompt(policy.tokenizer, p.prompt)) for p in _evaluated(config, policy))
    return max(text.max_prompt_length, longest) + text.max_completion_length


def _critic_base(policy: TextPolicy, config: RunConfig) -> Any:
    text = text_config(config)
    # Another model is loaded for each critic and then forgotten: nothing else would need its weights again.
    model = policy.model if text.critic == "policy" else _other_body(config, policy)
    if text.lora_rank is None and text.critic_kind == "full":
        return critic_base(model, layers=text.critic_layers)
    from sppo.llm.lora import lora_critic_base

    return lora_critic_base(model, text.critic_kind, _lora(text), seed=config.seed + 1, layers=text.critic_layers)


def _lora(text: TextConfig) -> Any:
    from sppo.llm.lora import LoRA

    return LoRA(rank=text.lora_rank or 1, alpha=text.lora_alpha)


def _check_gpus(config: RunConfig) -> None:
    """Raise ValueError where ranks or vLLM's server are to have GPUs that are not there."""
    if config.text["ranks"] is not None:
        from sppo.llm.torchrun import check_gpus

        check_gpus()
    devices = config.text["engine_devices"]
    if devices is None or "CUDA_VISIBLE_DEVICES" in os.environ:  # then a server may have GPUs that we cannot see
        return
    there = torch.cuda.device_count()
    if any(name.strip().isdigit() and int(name) >= there for name in str(devices).split(",")):
        raise ValueError(f"engine_devices {devices} are not all there: GPUs are numbered from 0, and there are {there}")


def _check_tokens(critic: str, tokenizer: Any) -> None:
    """Raise ValueError for a critic's model that reads other tokens than the policy writes."""
    theirs = load_tokenizer(find_model(critic)).get_vocab()
    if any(theirs.get(token) != i for token, i in tokenizer.get_vocab().items()):
        raise ValueError(
            f"the critic's model {critic} numbers its tokens otherwise than the policy's: it cannot read them"
        )


def _rows(model: str) -> int:
    """Of its embedding."""
    return shape_of(model if model in SHAPES else find_model(model)).vocab


def _check_rows(config: RunConfig, policy: int, critic: int) -> None:
    """Raise ValueError for a critic of responses that lacks an id which the policy samples, be it of no token.

    A critic of prompts reads what the tokenizer writes, and that both models have.
    """
    if AGENTS[config.agent].critic_sees == "steps" and critic < policy:
        raise ValueError(
            f"the critic of {config.agent} reads responses, so its model {config.text['critic']} must embed every id "
            f"that the policy can sample, {policy}, got {critic}"
        )


def _other_body(config: RunConfig, policy: TextPolicy) -> Any:
    """Another model for the critic to start from, computing as the policy does."""
    name = config.text["critic"]
    _check_tokens(name, policy.tokenizer)
    model: Any = load_model(find_model(name)).to(policy.device)
    outputs, inputs = policy.model.get_output_embeddings(), model.get_input_embeddings()
    _check_rows(config, len(outputs.weight), len(inputs.weight))
    model.base_model.products = policy.model.base_model.products
    return model


def _evaluated(config: RunConfig, policy: TextPolicy) -> list[Prompt]:
    """Only the model's own context leaves prompts out here: what is evaluated must not depend on how one trains."""
    return policy.with_room(evaluation_prompts(config), text_config(config).max_completion_length)


def held_out(agent: Agent, config: RunConfig) -> tuple[Any, Any]:
    """The same test prompts for every agent and seed, some twice where there are fewer than are to be answered."""
    prompts = _evaluated(config, agent.policy)
    return agent.sampler.with_prompts(prompts, task=shared_task(evaluation_task(config))), _some_of(prompts, config)


def trained_on(agent: Agent, config: RunConfig) -> tuple[Any, Any]:
    """Training prompts, otherwise likewise."""
    prompts = agent.sampler.prompts
    return agent.sampler.with_prompts(prompts), _some_of(prompts, config)


def _some_of(prompts: Sequence[Prompt], config: RunConfig) -> NDArray[np.int64]:
    """(n_eval_episodes,) indices, in the same order for all; some twice where there are fewer."""
    return np.resize(np.random.default_rng(0).permutation(len(prompts)), config.n_eval_episodes)


def callbacks(agent: Agent, config: RunConfig, log: RunLog, held_out: Any) -> list[Callback]:
    """Set the critic's first prediction, count why responses fail, and keep some to read."""
    text = text_config(config)
    return [FirstPrediction(text.critic_start), Responses(agent, log, held_out, text.n_completions)]


def finish(agent: Agent, config: RunConfig, folder: Path, warn: Callable[[str], None]) -> None:
    """The policy as a save_pretrained folder, `model`, whole or not at all; of ranks, all call and the first writes."""
    partial = folder / ".partial-model"
    shutil.rmtree(partial, ignore_errors=True)
    agent.policy.save_pretrained(partial)
    if partial.exists():
        shutil.rmtree(folder / "model", ignore_errors=True)
        partial.rename(folder / "model")


def threads(config: RunConfig) -> int:
    """As the config says."""
    return int(config.text["threads"])
