"""Trains small agents on text, alone or on the ranks of torchrun, from responses that do not depend on which.

Run as a script by test_fsdp.py: `torchrun ... fsdp_ranks.py FOLDER` leaves what each case came to, on two ranks those
of CASES, on four those of MESHES.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_text import ToyTask, toy_policy
from safetensors.torch import load_file, save_file
from torch import Tensor

from sppo.agents import AGENTS, Agent
from sppo.agents.storage import restore_agent
from sppo.llm import shared_passes
from sppo.llm.engine import Completion
from sppo.llm.engine_hf import HFEngine
from sppo.llm.fsdp import FSDPLearner, Ranks, ShardConfig, join, whole_weights
from sppo.llm.limits import TOKENS
from sppo.llm.lora import LoRA, lora_critic_base, lora_policy, save_adapter
from sppo.llm.policy import critic_base
from sppo.llm.sampler import TextSampler
from sppo.llm.shared import SharedEngine, SharedTask

SETTINGS = {"episodes_per_update": 7, "n_minibatches": 2, "n_epochs": 2, "learning_rate": 1e-2, "seed": 3}
CASES: dict[str, dict[str, Any]] = {
    "ppo float64": {"agent": "ppo"},
    "sppo float64": {"agent": "sppo"},
    "sppo float32": {"agent": "sppo", "dtype": "float32"},
    "ppo float32, one row at a time": {"agent": "ppo", "dtype": "float32", "microbatch_size": 1},
    "ppo, clipped, with entropy and checkpointing": {
        "agent": "ppo",
        "max_grad_norm": 0.05,
        "ent_coef": 0.01,
        "shards": {"checkpointing": True, "rows": 2},
    },
    "sppo float32, a few tokens at a time": {"agent": "sppo", "dtype": "float32", "microbatch_steps": 20},
    "sppo, whose critic each rank has whole": {"agent": "sppo", "critic_shards": {"over": 1}},
    "ppo, whose policy each rank has whole": {
        "agent": "ppo",
        "max_grad_norm": 0.05,
        "shards": {"over": 1},
        "critic_shards": {"checkpointing": True},
    },
    "sppo, adapters of both": {"agent": "sppo", "lora": True, "shards": {"checkpointing": True}},
    "grpo, of whose groups few carry a signal": {"agent": "grpo", "num_generations": 2, "episodes_per_update": 8},
    "dpo, whose pairs stay together, against a reference": {
        "agent": "dpo",
        "num_generations": 2,
        "episodes_per_update": 8,
    },
}
MESHES: dict[str, dict[str, Any]] = {
    "ppo over pairs": {"agent": "ppo", "max_grad_norm": 0.05, "shards": {"over": 2}},
    "sppo, policy over all, critic over pairs": {"agent": "sppo", "critic_shards": {"over": 2}},
}
UPDATES = 3


class Scripted:
    """Responses of 1 to 8 tokens that are a function of how many were asked for, not of who asks."""

    copies_weights = False

    def __init__(self, policy: Any) -> None:
        self.policy, self.asked = policy, 0

    def sync(self) -> None:
        """Nothing to take over."""

    def generate(
        self, prefixes: Sequence[Tensor], max_new_tokens: Sequence[int], *, greedy: bool, generator: np.random.Generator
    ) -> list[Completion]:
        done = []
        for limit in max_new_tokens:
            draw = np.random.default_rng([self.asked, int(greedy)])
            self.asked += 1
            n = int(draw.integers(1, limit + 1))
            tokens = torch.from_numpy(draw.integers(2, len(self.policy.tokenizer), n))
            tokens[-1] = 1 if n < limit else tokens[-1]
            logprobs = torch.from_numpy(np.log(draw.uniform(0.1, 0.3, n))).float()
            done.append(Completion(tokens=tokens, logprobs=logprobs, stopped=n < limit))
        return done


class AllAsked(SharedEngine):
    """Every rank asks for all responses, and keeps its share: they are the same on any number of ranks."""

    def generate(self, prefixes: Any, max_new_tokens: Any, **options: Any) -> list[Completion]:
        done = self.engine.generate(prefixes, max_new_tokens, **options)[self.ranks.part(len(prefixes))]
        return [completion for part in self.ranks.gather(done) for completion in part]


def make_agent(
    ranks: Ranks | None,
    *,
    agent: str,
    dtype: str = "float64",
    shards: Any = None,
    critic_shards: Any = None,
    lora: bool = False,
    **settings: Any,
) -> Agent:
    policy = toy_policy(spread=4.0).to(getattr(torch, dtype))
    if lora:
        lora_policy(policy, LoRA(rank=4), seed=0)
    engine: Any = Scripted(policy)
    task: Any = ToyTask()
    if ranks is not None:
        engine, task = AllAsked(engine, policy, ranks), SharedTask(task, ranks)

    def critic() -> Any:
        if lora:
            return lora_critic_base(policy.model, "lora", LoRA(rank=4), seed=1, layers=1)
        return critic_base(policy.model, layers=1)

    sampler = TextSampler(task, policy, engine, max_completion_length=8, critic=critic)
    if ranks is not None:
        configs = ShardConfig(**shards or {}), ShardConfig(**critic_shards or shards or {})

        def learner(module: Any, **options: Any) -> FSDPLearner:
            return FSDPLearner(module, ranks=ranks, config=configs[module is not policy], **options)

        sampler.learner = learner  # type: ignore[attr-defined]
    torch.set_default_dtype(getattr(torch, dtype))  # of the critic's head
    made = AGENTS[agent](sampler, **{**SETTINGS, **settings})
    torch.set_default_dtype(torch.float32)
    if made.critic is not None:
        made.critic.start_at(0.3)
    return made


def train(agent: Agent, updates: int) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Metrics of each update, and the gradients of each step and last weights of both networks, whole."""
    gradients: dict[str, Tensor] = {}
    networks = {"policy": agent.learner, "critic": agent.critic_learner}
    for name, learner in networks.items():
        if learner is not None:
            learner.step = partial(_note, learner.step, learner.module, name, gradients, itertools.count())
    metrics = [agent.train_once() for _ in range(updates)]
    weights = {
        f"{name} weight {parameter}": weight.clone()
        for name, learner in networks.items()
        if learner is not None
        for parameter, weight in whole_weights(learner.module)
    }
    return metrics, gradients | weights


def _note(
    step: Any, module: Any, network: str, gradients: dict[str, Tensor], steps: Iterator[int], learns: Any
) -> list[float]:
    n = next(steps)
    for name, p in module.named_parameters():
        if p.requires_grad:  # and has a gradient, but where no response of the step carries a signal
            grad = torch.zeros(p.shape, dtype=p.dtype) if p.grad is None else p.grad
            whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
            gradients[f"{network} gradient {n} {name}"] = whole.clone()  # which the step would scale down
    return step(learns)


def resumed(ranks: Ranks, folder: Path, **case: Any) -> dict[str, Any]:
    """Whether an agent saved after one update, and another filled from its files, go on alike; and what is saved."""
    agent = make_agent(ranks, **case)
    agent.train_once()
    agent.save(folder / f"rank{ranks.rank}")
    values = json.loads((folder / f"rank{ranks.rank}" / "agent.json").read_text())
    tensors = load_file(folder / f"rank{ranks.rank}" / "agent.safetensors")
    again = make_agent(ranks, **case)
    restore_agent(again, values, tensors)
    again.sampler.engine.engine.asked = agent.sampler.engine.engine.asked
    ends = [train(a, 2)[1] for a in (agent, again)]
    agent.policy.save_pretrained(folder / "model")
    return {
        "same": all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0]),
        **{f"share of {name}": held(tensors, name, getattr(agent, name)) for name in ("policy", "critic")},
    }


def held(tensors: dict[str, Tensor], name: str, module: Any) -> float:
    """The share of its weights that a checkpoint has moments of."""
    moments = sum(t.numel() for key, t in tensors.items() if key.startswith(f"{name}_optimizer") and t.ndim)
    return moments / (2 * sum(p.numel() for p in module.parameters()))


def exported(ranks: Ranks, folder: Path) -> None:
    """Adapters after an update: written by each rank for its engine, and by the first as a model."""
    agent = make_agent(ranks, agent="sppo", lora=True, dtype="float32")
    agent.train_once()
    save_adapter(agent.policy.model, folder / f"adapter{ranks.rank}")
    agent.policy.save_pretrained(folder / "merged")


def sampled(ranks: Ranks) -> dict[str, Any]:
    """One update in bfloat16 with a real engine, and what it and its ranks then say of the same responses."""
    policy = toy_policy(spread=4.0)
    replica = copy.deepcopy(policy)
    engine = SharedEngine(HFEngine(replica), policy, ranks, replica)
    sampler = TextSampler(SharedTask(ToyTask(), ranks), policy, engine, max_completion_length=8)
    config = ShardConfig(dtype="bfloat16")
    sampler.learner = partial(FSDPLearner, ranks=ranks, config=config)  # type: ignore[attr-defined]
    agent = AGENTS["sppo"](sampler, **SETTINGS)
    before = {name: weight.clone() for name, weight in whole_weights(policy)}
    asked = dict(sampler.counts)
    agent.train_once()
    traj = sampler.rollout(sampler.starts(5))
    with torch.no_grad():
        logprobs = policy.evaluate(traj)[0]
    return {
        "tokens": traj.actions.tolist(),
        "outcomes": traj.outcomes.tolist(),
        "generator": str(sampler.generators["actions"].bit_generator.state),
        "counts": [sampler.counts["episodes"] - asked["episodes"], sampler.counts["env_steps"]],
        "off": float((logprobs - traj.logprobs).abs().max()),
        "moved": max(float((weight - before[name]).abs().max()) for name, weight in whole_weights(policy)),
        "types": sorted({str(p.dtype) for p in policy.parameters()}),
        "replica": all(torch.equal(w, replica.get_parameter(name)) for name, w in whole_weights(policy)),
    }


def outside(ranks: Ranks | None) -> tuple[list[list[float]], list[int]]:
    """What policy and critic say of rows outside autograd, and the tokens of each pass through their bodies."""
    agent = make_agent(ranks, agent="ppo")
    traj = agent.sampler.rollout(agent.sampler.starts(9))
    passes: list[int] = []
    for network in (agent.policy, agent.critic):
        network.base.register_forward_pre_hook(
            lambda _, args, given: passes.append(given["input_ids"].numel()), with_kwargs=True
        )
    targets = torch.linspace(0, 1, traj.valid.numel()).view(traj.valid.shape).double()
    with torch.no_grad():
        said = [agent.policy.evaluate(traj)[0], agent.critic.values(traj), agent.critic.loss(traj, targets)]
    return [x.flatten().tolist() for x in said], passes


def layer_runs(ranks: Ranks, checkpointing: bool) -> list[int]:
    """How often each layer of the policy begins its perceptron in one pass over rows and back."""
    agent = make_agent(ranks, agent="sppo", shards={"checkpointing": checkpointing})
    traj = agent.sampler.rollout(agent.sampler.starts(4))
    runs = [0] * len(agent.policy.base.layers)
    for i, layer in enumerate(agent.policy.base.layers):

        def count(*_: Any, i: int = i) -> None:
            runs[i] += 1

        layer.mlp.register_forward_pre_hook(count)  # what computes again stops at the last tensor that is needed
    agent.learner.backward(agent.policy.evaluate(traj)[0].sum())
    return runs


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = join()
    assert ranks is not None and ranks.size in (2, 4)
    for i, case in enumerate((CASES if ranks.size == 2 else MESHES).values()):
        metrics, tensors = train(make_agent(ranks, **case), UPDATES)
        told = ranks.gather(metrics)
        if ranks.first:
            (folder / f"{i}.json").write_text(json.dumps(told))
            save_file(tensors, folder / f"{i}.safetensors")
    if ranks.size == 2:
        leave_the_rest(ranks, folder)
    ranks.leave()


def leave_the_rest(ranks: Ranks, folder: Path) -> None:
    def tell(name: str, own: Any) -> None:
        told = ranks.gather(own)
        if ranks.first:
            (folder / f"{name}.json").write_text(json.dumps(told))

    tell("layer runs", [layer_runs(ranks, checkpointing) for checkpointing in (False, True)])
    tell("resumed", resumed(ranks, folder, agent="ppo", critic_shards={"over": 1}))
    exported(ranks, folder)
    shared_passes.TOKENS = 30
    tell("outside", outside(ranks))
    shared_passes.TOKENS = TOKENS
    tell("sampled", sampled(ranks))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
