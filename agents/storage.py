"""Agents on disk: safetensors for arrays, JSON for the rest; nothing pickled is ever read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sppo.agents.reference import frozen

if TYPE_CHECKING:
    from sppo.agents.agent import Agent

TENSORS, VALUES = "agent.safetensors", "agent.json"
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors names them."""
COUNTERS = ("n_updates", "gradient_steps", "num_episodes", "num_steps", "seconds", "cpu_seconds")


def save_policy(policy: nn.Module, path: Path, about: dict[str, Any]) -> None:
    """One policy's weights, with a JSON of what it is beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, policy.state_dict())
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, one tensor after the other: it takes no more memory than the largest, and none of a GPU.

    Not by safetensors' `save`, which first copies all of them twice, nor by its `save_file`: what that writes nobody
    else may read, it refuses views of one tensor, and a full disk is no OSError to it.

    Raises:
        ValueError: for a tensor of a type that these files do not have here, naming both; nothing is then written.
    """
    # The widest first, so that all are aligned; by name, so that the same tensors are the same file.
    ordered = sorted(tensors.items(), key=lambda named: (-named[1].element_size(), named[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, x in ordered:
        if x.dtype not in TYPES:
            raise ValueError(f"tensors on disk are of {', '.join(map(str, TYPES))}: {name} is of {x.dtype}")
        first, end = end, end + x.numel() * x.element_size()
        header[name] = {"dtype": TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [first, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, x in ordered:
            file.write(x.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)


def load_policy(policy: nn.Module, path: Path) -> None:
    """Fill a policy with saved weights.

    Raises:
        ValueError: if the file is damaged or its shapes do not fit, naming the first that does not.
    """
    try:
        saved = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read the policy {path}: {error}") from error
    # A head for values that share its layers is not of the policy that was saved: it begins as it was made.
    own = {name: tensor for name, tensor in policy.state_dict().items() if name in ("value_weight", "value_bias")}
    fill(policy, own | saved, f"the policy {path}")


def learned(module: nn.Module, like: nn.Module | None = None) -> dict[str, Tensor]:
    """A module's state without the weights that do not learn, in it or in `like`: those are made from the settings."""
    fixed = {name for name, p in (like or module).named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in fixed}


def fill(module: nn.Module, saved: dict[str, Tensor], name: str, like: nn.Module | None = None) -> None:
    """load_state_dict of what is `learned`, with an error that says what does not fit."""
    want = learned(module, like)
    for key in sorted(want.keys() | saved.keys()):
        a = tuple(want[key].shape) if key in want else None
        b = tuple(saved[key].shape) if key in saved else None
        if a != b:
            raise ValueError(f"{name} does not fit: {key} must be {a}, got {b}")
    module.load_state_dict(saved, strict=False)


def save_agent(agent: Agent, folder: Path) -> None:
    """See Agent.save."""
    values, tensors = agent_state(agent)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, tensors)
    (folder / VALUES).write_text(json.dumps(values, indent=1) + "\n")


def load_agent(kind: type[Agent], folder: Path, env: Any) -> Agent:
    """See Agent.load."""
    values, tensors = read_agent(folder)
    if values["agent"] != kind.__name__:
        raise ValueError(f"{folder} holds an agent of {values['agent']}, not of {kind.__name__}")
    config = kind.Config(**values["config"])
    agent = kind(env, config=config, **values["network"])
    restore_agent(agent, values, tensors)
    return agent


def read_agent(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The saved state.

    Raises:
        ValueError: if it is missing or damaged.
    """
    try:
        return json.loads((folder / VALUES).read_text()), load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot read the agent in {folder}: {error}") from error


def agent_state(agent: Agent) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything that going on needs: JSON values and tensors, which are the agent's own, not copies."""
    values: dict[str, Any] = {
        "agent": type(agent).__name__,
        "config": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(agent.config).items()},
        "network": agent.network,
        "counters": {name: getattr(agent, name) for name in COUNTERS},
        "sampler": agent.sampler.counts,
        "generators": {
            "agent": agent.generator.bit_generator.state,
            **{name: generator.bit_generator.state for name, generator in agent.sampler.generators.items()},
        },
    }
    tensors: dict[str, Tensor] = {}
    for name, learner in (("policy", agent.learner), ("critic", agent.critic_learner)):
        if learner is not None:
            _pack(tensors, name, learned(learner.module))
            for i, slot in learner.optimizer.state_dict()["state"].items():
                _pack(tensors, f"{name}_optimizer.{i}", slot)
    if agent.reference is not None:
        _pack(tensors, "reference", learned(agent.reference, like=agent.policy))
    if agent.critic is not None and agent.critic_learner is None:
        values["critic"] = agent.critic.state_dict()
    if agent.stream is not None:
        _pack(tensors, "stream", {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in agent.stream.live.items()})
    return values, tensors


def restore_agent(agent: Agent, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put a saved state into an agent of the same settings."""
    for name, learner in (("policy", agent.learner), ("critic", agent.critic_learner)):
        if learner is not None:
            fill(learner.module, _unpack(tensors, name), f"the saved {name}")
            state = learner.optimizer.state_dict()
            n = len(state["param_groups"][0]["params"])
            slots = {i: _unpack(tensors, f"{name}_optimizer.{i}") for i in range(n)}
            learner.optimizer.load_state_dict({**state, "state": {i: slot for i, slot in slots.items() if slot}})
    reference = _unpack(tensors, "reference")
    if reference:
        agent.reference = frozen(agent.policy)
        fill(agent.reference, reference, "the saved reference", like=agent.policy)
    if "critic" in values:
        agent.critic.load_state_dict(values["critic"])
    if agent.stream is not None:
        agent.stream.live = {k: v.numpy() for k, v in _unpack(tensors, "stream").items()}
    for name, value in values["counters"].items():
        setattr(agent, name, value)
    agent.sampler.counts.update(values["sampler"])
    agent.generator.bit_generator.state = values["generators"]["agent"]
    for name, generator in agent.sampler.generators.items():
        generator.bit_generator.state = values["generators"][name]


def _pack(tensors: dict[str, Tensor], prefix: str, named: dict[str, Tensor]) -> None:
    tensors.update({f"{prefix}/{k}": v.detach() for k, v in named.items()})


def _unpack(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
