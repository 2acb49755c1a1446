"""The memory plan of a run on text, and whether the device has it."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch

from sppo.agents import AGENTS
from sppo.experiments.config import RunConfig
from sppo.experiments.memory import GIB, Plan, Setting
from sppo.experiments.memory import plan as plan_memory
from sppo.experiments.prompts import evaluation_task, training_task
from sppo.experiments.ranks import started_here
from sppo.experiments.room import check_fits, device_bytes, machine_bytes, table
from sppo.experiments.shapes import Shape, shape_of
from sppo.experiments.text_config import text_config
from sppo.llm.sources import find_model
from sppo.llm.tokenizer import encode_prompt, load_tokenizer


class UnknownShape(ValueError):
    """A model's shape cannot be known without loading it."""


def memory_plan(config: RunConfig, on_gpu: bool | None = None) -> Plan:
    """What each rank of a resolved config's run will hold; by default on the device that is at hand.

    Raises:
        UnknownShape: if a model's shape cannot be known without loading it.
    """
    text, settings = text_config(config), config.settings
    size = text.ranks or 1
    n = settings["episodes_per_update"]
    trains: Any = training_task(config)
    evaluates: Any = evaluation_task(config)
    longest = _longest_prompt(config.start, trains, "train")
    prompt = min(longest, text.max_prompt_length or longest)
    at_once = text.generation_batch_size
    if "num_continuations" not in settings:  # whose number only responses tell
        at_once = min(at_once, -(-max(n, config.n_eval_episodes) // size))
    value_rows = -(-n // size)
    if text.ranks and settings["microbatch_size"]:
        value_rows = min(value_rows, -(-settings["microbatch_size"] // size))
    sees = None if settings["shared_network"] else AGENTS[config.agent].critic_sees
    rows = _rows(settings, settings["batch_size"], prompt + text.max_completion_length)
    critic_rows = rows if sees == "steps" else _rows(settings, None, prompt + 1)
    gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    setting = Setting(
        ranks=size,
        sharded=text.ranks is not None,
        shard_over=text.shard_over,
        critic_shard_over=text.critic_shard_over,
        rows=-(-rows // size),
        critic_rows=-(-critic_rows // size),
        value_rows=value_rows,
        generated=at_once,
        prompt=prompt,
        asked=_longest_prompt(config.start, evaluates, "test"),
        response=text.max_completion_length,
        dtype=text.shard_dtype if text.ranks else text.dtype,
        engine_dtype=text.engine_dtype,
        checkpointing=text.checkpointing,
        offload=text.offload,
        lora=text.lora_rank,
        critic=text.critic_kind,
        critic_lora=text.lora_rank or 1,
        other_body=text.critic != "policy",
        reference=settings["kl_coef"] > 0 or AGENTS[config.agent].needs_reference,
        engine="hf" if text.engine == "hf" else "apart" if gpu and text.engine_devices is not None else "vllm",
        kv_cache_gib=text.kv_cache_gib,
        on_gpu=gpu,
    )
    if setting.engine == "vllm" and torch.cuda.is_available():
        setting = dataclasses.replace(setting, engine_gib=text.gpu_memory_utilization * device_bytes() / GIB)
    policy = _shape(config.start)
    critic = policy if text.critic == "policy" else _shape(text.critic)
    critic = dataclasses.replace(critic, layers=min(critic.layers, text.critic_layers or critic.layers))
    return plan_memory(policy, setting, sees, None if critic == policy else critic, name=config.agent)


def _rows(settings: dict[str, Any], batch_size: int | None, length: int) -> int:
    """Rows in one forward and backward pass, of all ranks: of a minibatch those that both bounds allow, if of this
    length."""
    n, steps = settings["episodes_per_update"], settings["microbatch_steps"]
    n_minibatches = settings["n_minibatches"] if batch_size is None else -(-n // batch_size)
    rows = min(-(-n // n_minibatches), settings["microbatch_size"] or n)
    return rows if steps is None else min(rows, max(1, steps // length))


@cache
def _longest_prompt(model: str, task: Any, split: str) -> int:
    """Tokens."""
    tokenizer = load_tokenizer(find_model(model))
    return max(len(encode_prompt(tokenizer, p.prompt)) for p in task.prompts(split))


def _shape(model: str) -> Shape:
    try:
        return shape_of(model)
    except ValueError:
        source = find_model(model)
    try:
        return shape_of(source)
    except ValueError as error:
        raise UnknownShape(f"memory is not planned: {error}") from error


def fits(config: RunConfig) -> str:
    """What a resolved config's run needs and what there is, in words and part by part.

    Raises:
        ValueError: if the device has less.
        UnknownShape: if a model's shape cannot be known without loading it.
    """
    plan = memory_plan(config)
    there, beside = device_bytes(started_here()), machine_bytes(started_here())
    check_fits(plan, there, beside)
    needs = f"{config.agent} needs {plan.peak / GIB:.2f} GiB per rank, the device has {there / GIB:.2f} GiB"
    if plan.host:
        needs += f"; {plan.host / GIB:.2f} GiB rest beside it, the machine has {beside / GIB:.2f} GiB for each rank"
    return f"{needs}\n{table([plan])}"
