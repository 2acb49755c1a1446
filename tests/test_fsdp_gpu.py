"""A rank alone on a GPU learns what a process learns on the CPU, and leaves the weights that it has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft", reason="needs the extra sppo[lora]")

from fsdp_ranks import make_agent

from sppo.agents.storage import read_agent, restore_agent
from sppo.llm.fsdp import Ranks, join, whole_weights
from sppo.llm.policy import load_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """This process as the only one that torchrun started, with NCCL."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "localhost"}
    for name, value in {**names, "MASTER_PORT": 29000 + os.getpid() % 1000}.items():
        monkeypatch.setenv(name, str(value))
    ranks = join()
    assert ranks is not None and ranks.device.type == "cuda"
    yield ranks
    ranks.leave()


@pytest.mark.parametrize("offload", [False, True])
def test_what_is_learned_is_saved_restored_and_exported(offload: bool, one: Ranks, tmp_path: Path) -> None:
    case = {"agent": "ppo", "dtype": "float32"}
    shards = {"offload": offload, "checkpointing": True}
    agent, alone, again = (make_agent(ranks, **case, shards=shards) for ranks in (one, None, one))
    before = {name: weight.clone() for name, weight in alone.policy.state_dict().items()}
    for learns in (agent, alone):
        learns.train_once()
    assert {p.device.type for p in agent.policy.parameters()} == {"cpu" if offload else "cuda"}
    agent.save(tmp_path / "agent")
    agent.policy.save_pretrained(tmp_path / "model")
    restore_agent(again, *read_agent(tmp_path / "agent"))
    restored, exported = dict(whole_weights(again.policy)), load_model(str(tmp_path / "model"))
    for name, weight in whole_weights(agent.policy):
        assert torch.equal(restored[name], weight), name
        assert torch.equal(exported.get_parameter(name.removeprefix("model.")), weight.cpu()), name
        learned = alone.policy.state_dict()[name]
        torch.testing.assert_close(weight.cpu(), learned, rtol=0, atol=1e-3)
        assert (learned - before[name]).abs().max() > 1e-2, name
