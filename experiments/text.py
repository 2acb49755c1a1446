"""Text tasks: a language model, its critic and the engine that generates, put together for a run."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sppo.agents import AGENTS, Agent
from sppo.agents.callbacks import Callback
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import agent_settings
from sppo.experiments.memory import Plan, Setting, check_fits, device_bytes, shape_of
from sppo.experiments.memory import plan as plan_memory
from sppo.experiments.runlog import RunLog
from sppo.experiments.settings import make
from sppo.experiments.tasks import task as about_task
from sppo.llm.engine import Engine
from sppo.llm.engine_hf import HFEngine
from sppo.llm.engine_vllm import VLLMEngine, require_vllm
from sppo.llm.policy import TextPolicy, critic_base, load_model
from sppo.llm.sampler import Response, TextSampler
from sppo.llm.sources import find_model, model_names
from sppo.llm.tasks import Prompt, Task, make_task
from sppo.llm.tokenizer import encode_prompt, load_tokenizer

SIDE_BY_SIDE = 1

REFUSED = ("top_k", "top_p", "min_p", "repetition_penalty")
"""Ways of sampling from another distribution than the policy's own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """What a run on text has besides its agent's settings."""

    max_completion_length: int = 512
    """Token budget of a response, stop token included; part of the task."""
    max_prompt_length: int | None = None
    """Longer prompts are left out, with a warning; by default those that leave no room for a response."""
    temperature: float = 1.0
    """Of sampling, in training and evaluation alike."""
    critic: str = "policy"
    """The model whose body the critic starts from: the policy's, or another that reads the same tokens."""
    critic_layers: int | None = None
    """How many of its layers the critic keeps, from the first."""
    critic_kind: Literal["full", "lora", "head"] = "full"
    """What of the critic learns: all of it, adapters and its head, or the head alone."""
    critic_start: float | None = None
    """The return that the critic predicts before it has learned; by default the mean of a first batch of responses,
    whose cost counts."""
    lora_rank: int | None = None
    """Of adapters, which then learn in place of the policy; None: all of the policy learns."""
    lora_alpha: float = 32.0
    """How much the adapters count."""
    eval_task: str | None = None
    """Evaluate on the test prompts of another task."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights and optimiser stay in float32."""
    threads: int | None = None
    """Of the process; by default one per processor. The last digits of results depend on it."""
    engine: Literal["hf", "vllm", "vllm-server"] = "hf"
    """What generates: the policy itself, or vLLM with a copy of its weights, beside it or in a process of its own."""
    generation_batch_size: int = 256
    """Responses generated side by side."""
    kv_cache_gib: float | None = None
    """Memory for vLLM's keys and values; by default 1 on a CPU, and on a GPU what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: float = 0.5
    """The share of a GPU's memory that vLLM may take; between rollouts it gives it back."""
    engine_devices: str | None = None
    """GPUs of vLLM's server, as in CUDA_VISIBLE_DEVICES; by default it is on the policy's."""
    n_completions: int = 8
    """Responses written to completions.jsonl at every update and evaluation."""
    ranks: int | None = None
    """Processes that share the run, as many as torchrun starts; None without it."""
    checkpointing: bool = False
    """In a shared run, keep only the inputs of layers for the backward pass."""
    offload: bool = False
    """In a shared run, keep weights, gradients and Adam's moments in the memory of the CPU."""
    shard_dtype: Literal["float32", "bfloat16"] = "float32"
    """In a shared run, of arithmetic and gathered weights; the engine's own copy is a step wider, so that
    log-probabilities are recomputed."""

    def __post_init__(self) -> None:
        for name in (
            "max_completion_length",
            "max_prompt_length",
            "critic_layers",
            "threads",
            "generation_batch_size",
            "lora_rank",
            "lora_alpha",
        ):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        if self.kv_cache_gib is not None and not self.kv_cache_gib > 0:
            raise ValueError(f"kv_cache_gib must be positive, got {self.kv_cache_gib}")
        if self.critic_start is not None and not 0 < self.critic_start < 1:
            raise ValueError(f"critic_start must be in (0, 1), got {self.critic_start}")
        if self.critic_kind == "lora" and self.lora_rank is None:
            raise ValueError("critic_kind lora needs lora_rank, which is of its adapters too")
        for name, plain in (("checkpointing", False), ("offload", False), ("shard_dtype", "float32")):
            if self.ranks is None and getattr(self, name) != plain:
                raise ValueError(f"{name} is of runs that ranks share: start this one with torchrun")


def resolve(config: RunConfig) -> RunConfig:
    """See `domains.resolve`."""
    about = about_task(config.env_id)
    for name in set(REFUSED) & set(config.text):
        raise ValueError(
            f"{name} is refused: the update's probability ratios need the probabilities that were sampled from, which "
            "are the whole softmax's; temperature is there"
        )
    size = started()
    _check_ranks(config.text.get("ranks", size))
    each = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    text = make(TextConfig, {"threads": each, **about.text, **config.text, "ranks": size})
    env_kwargs = {**about.env_kwargs, **config.env_kwargs}
    _task(dataclasses.replace(config, env_kwargs=env_kwargs))
    start = about.start if config.start == "auto" else config.start
    if start in (None, "none"):
        raise ValueError(f"{config.env_id} needs a model to start from: name one with --model")
    find_model(start)
    if text.critic != "policy":
        find_model(text.critic)
    if text.eval_task is not None:
        make_task(text.eval_task)
    return dataclasses.replace(
        config,
        settings=agent_settings(config),
        text=dataclasses.asdict(text),
        start=str(Path(start).resolve()) if start not in model_names() and Path(start).exists() else start,
        env_kwargs=env_kwargs,
        total_episodes=config.total_episodes or about.total_episodes,
    )


def check(configs: Sequence[RunConfig]) -> None:
    """Data files are read and prompts are encoded; models are too large to be made for a check."""
    seen = set()
    for config in configs:
        if config.text["engine"] != "hf":
            require_vllm()
        key = json.dumps([config.env_id, config.env_kwargs, config.text, config.start], sort_keys=True)
        if key not in seen:
            seen.add(key)
            tokenizer = load_tokenizer(find_model(config.start))
            splits = {"train": _task(config).prompts("train"), "test": _test_prompts(config)}
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


def started() -> int | None:
    """How many processes torchrun started, this one among them; None without it."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else None


def _check_ranks(wanted: int | None) -> None:
    if wanted != started():
        raise ValueError(f"the run is shared by {wanted or 'no'} ranks, and torchrun started {started() or 'none'}")


@cache
def ranks() -> Any:
    """The `Ranks` that share this process's runs, met once; None without torchrun."""
    if started() is None:
        return None
    from sppo.llm.fsdp import join

    return join()


def memory_plan(config: RunConfig) -> Plan:
    """What each rank of a resolved config's run will hold.

    Raises:
        ValueError: if the model's shape cannot be known without loading it.
    """
    text, settings, source = make(TextConfig, config.text), config.settings, find_model(config.start)
    size = text.ranks or 1
    n = settings["episodes_per_update"]
    rows = min(n, settings["microbatch_size"] or -(-n // settings["n_minibatches"]))
    tokenizer = load_tokenizer(source)
    some = [len(encode_prompt(tokenizer, p.prompt)) for p in _task(config).prompts("train")[:256]]
    setting = Setting(
        ranks=size,
        rows=-(-rows // size),
        value_rows=-(-(n if text.ranks is None else rows) // size),
        generated=min(text.generation_batch_size, -(-n // size)),
        prompt=max(some) if text.max_prompt_length is None else min(max(some), text.max_prompt_length),
        response=text.max_completion_length,
        dtype=text.shard_dtype if text.ranks else text.dtype,
        checkpointing=text.checkpointing,
        offload=text.offload,
        lora=text.lora_rank,
        critic=text.critic_kind,
        critic_lora=text.lora_rank or 1,
        reference=settings["kl_coef"] > 0 or config.agent == "dpo",
        engine="hf" if text.engine == "hf" else "vllm",
        kv_cache_gib=text.kv_cache_gib,
        on_gpu=torch.cuda.is_available(),
    )
    policy = _shape(config.start)
    critic = policy if text.critic == "policy" else _shape(text.critic)
    critic = dataclasses.replace(critic, layers=min(critic.layers, text.critic_layers or critic.layers))
    sees = AGENTS[config.agent].critic_sees
    algorithm: Any = "grpo" if sees is None else "ppo" if sees == "steps" else "sppo"
    return plan_memory(policy, setting, algorithm, None if critic == policy else critic)


def _shape(model: str) -> Any:
    try:
        return shape_of(model)
    except ValueError:
        return shape_of(find_model(model))


def fits(config: RunConfig) -> str:
    """What a resolved config's run needs and what there is, in words.

    Raises:
        ValueError: if the device has less.
    """
    try:
        plan = memory_plan(config)
    except ValueError as error:
        return f"memory is not planned: {error}"
    there = device_bytes(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    check_fits(plan, there)
    return f"{config.agent} needs {plan.peak / 2**30:.2f} GiB per rank, the device has {there / 2**30:.2f} GiB"


def make_agents(configs: Sequence[RunConfig]) -> list[Agent]:
    """The agents of resolved configs."""
    return [_make_agent(config) for config in configs]


def _make_agent(config: RunConfig) -> Agent:
    text, shared = make(TextConfig, config.text), ranks()
    _check_ranks(text.ranks)
    torch.set_num_threads(threads(config))
    source = find_model(config.start)
    tokenizer = load_tokenizer(source)
    policy = TextPolicy(load_model(source), tokenizer, temperature=text.temperature, dtype=getattr(torch, text.dtype))
    if text.lora_rank is not None:
        from sppo.llm.lora import lora_policy

        lora_policy(policy, _lora(text), seed=config.seed)
    body = policy.model if text.critic == "policy" else _other_body(text.critic, policy)
    sampler = TextSampler(
        _shared_task(_task(config)),
        policy,
        make_engine(policy, text) if shared is None else _shared_engine(policy, text),
        max_completion_length=text.max_completion_length,
        seed=config.seed,
        critic=lambda: _critic_base(body, text, config.seed + 1),
        prompts=fitting(_task(config).prompts("train"), policy, text),
    )
    if shared is not None:
        from sppo.llm.fsdp import FSDPLearner, ShardConfig

        rows = config.settings["microbatch_size"]
        shards = ShardConfig(
            dtype=text.shard_dtype,
            checkpointing=text.checkpointing,
            offload=text.offload,
            rows=None if rows is None else -(-rows // shared.size),
        )
        sampler.learner = partial(FSDPLearner, ranks=shared, config=shards)  # type: ignore[attr-defined]
    kind = AGENTS[config.agent]
    return kind(sampler, config=make(kind.Config, config.settings))


def make_engine(policy: TextPolicy, text: TextConfig) -> Engine:
    """What generates with this policy's weights."""
    if text.engine == "hf":
        return HFEngine(policy, batch_size=text.generation_batch_size)
    return VLLMEngine(
        policy,
        server=text.engine == "vllm-server",
        batch_size=text.generation_batch_size,
        max_model_len=text.max_prompt_length and text.max_prompt_length + text.max_completion_length,
        kv_cache_gib=text.kv_cache_gib,
        gpu_memory_utilization=text.gpu_memory_utilization,
        devices=text.engine_devices,
    )


def _shared_engine(policy: TextPolicy, text: TextConfig) -> Any:
    """Each rank's own engine; transformers' reads a whole copy of the policy."""
    from sppo.llm.shared import SharedEngine

    if text.engine != "hf":
        return SharedEngine(make_engine(policy, text), policy, ranks())
    replica: Any = copy.deepcopy(policy).to(ranks().device)
    engine: Any = SharedEngine(make_engine(replica, text), policy, ranks(), replica)
    engine.copies_weights = text.shard_dtype != "float32"  # then what learns rounds differently
    return engine


def _shared_task(task: Task) -> Any:
    if ranks() is None:
        return task
    from sppo.llm.shared import SharedTask

    return SharedTask(task, ranks())


def _critic_base(model: Any, text: TextConfig, seed: int) -> Any:
    if text.lora_rank is None and text.critic_kind == "full":
        return critic_base(model, layers=text.critic_layers)
    from sppo.llm.lora import lora_critic_base

    return lora_critic_base(model, text.critic_kind, _lora(text), seed=seed, layers=text.critic_layers)


def _lora(text: TextConfig) -> Any:
    from sppo.llm.lora import LoRA

    return LoRA(rank=text.lora_rank or 1, alpha=text.lora_alpha)


def _other_body(name: str, policy: TextPolicy) -> Any:
    """Another model for the critic to start from, computing as the policy does."""
    source = find_model(name)
    theirs, ours = load_tokenizer(source).get_vocab(), policy.tokenizer.get_vocab()
    if any(theirs.get(token) != i for token, i in ours.items()):
        raise ValueError(
            f"the critic's model {name} numbers its tokens otherwise than the policy's: it cannot read them"
        )
    model: Any = load_model(source)
    model.base_model.products = policy.model.base_model.products
    return model


def fitting(prompts: Sequence[Prompt], policy: TextPolicy, text: TextConfig) -> list[Prompt]:
    """The prompts that leave room for a response.

    Raises:
        ValueError: if none does.
    """
    context = getattr(policy.model.config, "max_position_embeddings", None)
    limits = [text.max_prompt_length, None if context is None else context - text.max_completion_length]
    limit = min((n for n in limits if n is not None), default=None)
    if limit is None:
        return list(prompts)
    kept = [p for p in prompts if len(encode_prompt(policy.tokenizer, p.prompt)) <= limit]
    if not kept:
        raise ValueError(
            f"none of the {len(prompts)} prompts has at most {limit} tokens (the model's context is {context}, "
            f"max_completion_length {text.max_completion_length}, max_prompt_length {text.max_prompt_length})"
        )
    if len(kept) < len(prompts):
        _log.warning(
            "%d of %d prompts are longer than %d tokens; left out", len(prompts) - len(kept), len(prompts), limit
        )
    return kept


@cache
def _cached_task(name: str, options: str) -> Task:
    try:
        return make_task(name, **json.loads(options))
    except TypeError as error:
        raise ValueError(f"task {name}, options {options}: {error}") from error


def _task(config: RunConfig) -> Task:
    return _cached_task(config.env_id.split("/", 1)[1], json.dumps(config.env_kwargs))


def _test_prompts(config: RunConfig) -> Sequence[Prompt]:
    task = _test_task(config)
    try:
        return task.prompts("test")
    except ValueError as error:
        raise ValueError(f"{error}; --text eval_task NAME evaluates on another task") from error


def _test_task(config: RunConfig) -> Task:
    name = config.text["eval_task"]
    return _task(config) if name is None else _cached_task(name, "{}")


def held_out(agent: Agent, config: RunConfig) -> tuple[Any, Any]:
    """The same test prompts for every agent and seed, some twice where there are fewer than are to be answered."""
    # Only the model's own context leaves prompts out here: what is evaluated must not depend on how one trains.
    text = dataclasses.replace(make(TextConfig, config.text), max_prompt_length=None)
    prompts = fitting(_test_prompts(config), agent.policy, text)
    order = np.random.default_rng(0).permutation(len(prompts))
    return agent.sampler.with_prompts(prompts, task=_shared_task(_test_task(config))), np.resize(
        order, config.n_eval_episodes
    )


def callbacks(agent: Agent, config: RunConfig, log: RunLog, held_out: Any) -> list[Callback]:
    """Set the critic's first prediction, count why responses fail, and keep some to read."""
    text = make(TextConfig, config.text)
    return [_FirstPrediction(text.critic_start), _Responses(agent, log, held_out, text.n_completions)]


class _FirstPrediction(Callback):
    """A critic starts at the start policy's success rate: from 0.5, all early advantages would have one sign."""

    def __init__(self, value: float | None) -> None:
        self.value = value

    def on_training_start(self, agent: Agent) -> None:
        if agent.n_updates > 0 or not hasattr(agent.critic, "start_at"):
            return
        value = self.value
        if value is None:
            n = agent.config.episodes_per_update
            outcomes = agent.sampler.rollout(agent.sampler.starts(n)).outcomes
            value = min(max(float(outcomes.mean()), 0.5 / n), 1 - 0.5 / n)
        agent.critic.start_at(value)


class _Responses(Callback):
    """Shares of the verifier's reasons and of responses cut off, and a few responses in full."""

    def __init__(self, agent: Agent, log: RunLog, held_out: TextSampler, n: int) -> None:
        self.agent, self.log, self.n = agent, log, n
        self.scored: list[Response] = []
        agent.sampler.on_scored = self.scored.extend
        held_out.on_scored = lambda responses: self._write("test", responses)

    def on_training_start(self, agent: Agent) -> None:
        self.scored.clear()  # what was sampled for the critic's first prediction belongs to no update

    def on_update(self, agent: Agent, metrics: dict[str, float]) -> None:
        scored, self.scored[:] = list(self.scored), []
        for reason, count in Counter(response.reason for response in scored).items():
            metrics[f"reward/{reason}"] = count / len(scored)
        metrics["rollout/cut_off"] = sum(not response.stopped for response in scored) / max(1, len(scored))
        self._write("train", scored)

    def _write(self, split: str, responses: Sequence[Response]) -> None:
        self.log.completions(
            [
                {
                    "n_updates": self.agent.n_updates,
                    "env_steps": self.agent.num_steps,
                    "split": split,
                    "prompt": response.prompt.text,
                    "response": response.text,
                    "reward": response.reward,
                    "reason": response.reason,
                    "length": response.length,
                    "stopped": response.stopped,
                }
                for response in responses[: self.n]
            ]
        )


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
