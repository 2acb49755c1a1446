"""Runs that ranks share, from the command line: the same folders, numbers and models as of one process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="needs the extra sppo[lora]")

from fake_text import toy_policy
from launched import CLI, TRAIN, done, torchrun
from safetensors.torch import load_file
from small_runs import assert_looks_whole, newest_checkpoint, records, sppo

from sppo.experiments import ranks as shared_by
from sppo.experiments import text, text_memory
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.text_config import TextConfig
from sppo.llm import fsdp
from sppo.llm.sources import find_model

ALIKE = (str(Path(__file__).with_name("sharded_cli.py")),)


@pytest.mark.slow
def test_two_ranks_leave_what_one_process_leaves(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = sppo(*TRAIN, "--out", one)
    assert alone.returncode == 0, alone.stderr
    assert f"{two}: success" in done(*torchrun(2, *ALIKE), *TRAIN, "--out", two)
    assert_looks_whole(two)
    for name in ("progress.jsonl", "evals.jsonl"):
        ours, theirs = records(two / name), records(one / name)
        assert len(ours) == len(theirs) >= 2
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    assert records(two / "completions.jsonl") == records(one / "completions.jsonl")
    model, other = (load_file(folder / "model" / "model.safetensors") for folder in (two, one))
    assert model.keys() == other.keys()
    for name, weight in model.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-5)
    start = load_file(Path(find_model("arithmetic")) / "model.safetensors")
    assert max(float((weight - start[name]).abs().max()) for name, weight in model.items()) > 1e-4, "it has learned"
    assert json.loads((two / "config.json").read_text())["text"]["ranks"] == 2
    assert {path.name for path in (two / "ranks").iterdir()} == {"1"}
    assert {path.name for path in (two / "ranks" / "1").iterdir()} == {"checkpoints"}, "the first alone writes the rest"


@pytest.mark.slow
def test_a_budget_in_seconds_ends_all_ranks_with_the_same_update(tmp_path: Path) -> None:
    folder, words = tmp_path / "run", list(TRAIN)
    at = words.index("--episodes")
    done(*torchrun(2, *CLI), *words[:at], "--seconds", 2, *words[at + 2 :], "--out", folder)
    *_, before, last = records(folder / "progress.jsonl", timed=True)
    assert last["time/seconds"] >= 2 > before["time/seconds"]
    assert newest_checkpoint(folder / "ranks" / "1").name == newest_checkpoint(folder).name
    assert int(newest_checkpoint(folder).name) == last["time/n_updates"]


@pytest.mark.slow
def test_ranks_share_a_run_with_adapters(tmp_path: Path) -> None:
    more = ["lora_rank", 4, "critic_kind", "lora", "checkpointing", "true", "critic_shard_over", 1]
    done(*torchrun(2, *CLI), *TRAIN, *more, "--out", tmp_path / "run")
    assert {"config.json", "model.safetensors", "adapter"} <= {p.name for p in (tmp_path / "run/model").iterdir()}
    saved = load_file(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "agent.safetensors")
    learned = [name for name in saved if name.startswith(("policy/", "critic/"))]
    assert learned and all("lora_" in name or "head" in name for name in learned)


def small(**changes: Any) -> RunConfig:
    given = {"max_completion_length": 12, "critic_layers": 1, **changes}
    options = {"train_size": 40, "test_size": 12}
    return resolve(RunConfig(env_id="text/arithmetic", env_kwargs=options, text=given))


@pytest.mark.parametrize("kind", ["full", "lora", "head"])
def test_adapters_learn_in_place_of_the_policy(kind: str) -> None:
    (agent,) = make_agents([small(lora_rank=4, critic_kind=kind)])
    names = {name for name, p in agent.policy.named_parameters() if p.requires_grad}
    assert names and all("lora_" in name for name in names)
    of_critic = {name for name, p in agent.critic.named_parameters() if p.requires_grad}
    if kind == "full":
        assert of_critic == {name for name, _ in agent.critic.named_parameters()}
    else:
        assert all("lora_" in name or name.startswith("head.") for name in of_critic)
        assert any("lora_" in name for name in of_critic) == (kind == "lora")


def test_what_ranks_alone_have_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"checkpointing": True}, "checkpointing is of runs that ranks share"),
        ({"shard_dtype": "bfloat16"}, "shard_dtype is of runs that ranks share"),
        ({"critic_kind": "lora"}, "critic_kind lora needs lora_rank"),
        ({"lora_rank": 0}, "lora_rank must be positive, got 0"),
        ({"critic_shard_over": 1}, "critic_shard_over is of runs that ranks share"),
        ({"ranks": 2}, "shared by 2 ranks, and torchrun started none"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**changes)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = small(checkpointing=True, critic_shard_over=1)
    assert config.text["ranks"] == 3
    with pytest.raises(ValueError, match="shard_over must divide the number of ranks, 3, got 2"):
        small(shard_over=2)
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="shared by 3 ranks, and torchrun started none"):
        make_agents([config])


def test_policy_and_critic_are_cut_each_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsdp, "FSDPLearner", lambda module, ranks, config, **_: config.over)
    monkeypatch.setattr(shared_by, "ranks", lambda: SimpleNamespace(size=4))
    make = shared_by.shared_learner(TextConfig(ranks=4, shard_over=2, critic_shard_over=1), None)
    assert [make(toy_policy()), make(torch.nn.Linear(1, 1))] == [2, 1]


@pytest.mark.parametrize("narrow", [{}, {"dtype": "bfloat16"}, {"shard_dtype": "bfloat16", "ranks": 2}])
def test_vllm_computes_in_the_type_that_the_run_does(narrow: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "VLLMEngine", lambda policy, **options: options["dtype"])
    dtype: Any = text.make_engine(toy_policy(), TextConfig(engine="vllm", **narrow))
    assert dtype == (torch.bfloat16 if narrow else torch.float32)


def test_torchrun_is_for_training_on_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = sppo("compare", "--task", "arithmetic")
    assert refused.returncode == 1 and "compare starts processes of its own: torchrun is for train" in refused.stderr
    refused = sppo("train")
    assert refused.returncode == 1 and "PrecisionCartPole-v0 trains in one process" in refused.stderr


def test_the_plan_knows_over_how_many_ranks_each_network_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    over_all, own = (text_memory.memory_plan(small(**over)) for over in ({}, {"shard_over": 2, "critic_shard_over": 1}))
    # Half of the policy where there was a quarter, all of the critic; nothing else of a rank is other than before.
    for part, times in {"weights": 2, "optimizer": 2, "critic": 4, "engine": 1}.items():
        assert own.held[part] == pytest.approx(times * over_all.held[part], abs=4), part
    for phase, times in {"policy": 2, "critic": 4}.items():
        before, now = over_all.phases[phase], own.phases[phase]
        assert now["gradients"] == pytest.approx(times * before["gradients"], abs=4)
        assert now | {"gradients": 0} == before | {"gradients": 0}


def test_the_plan_knows_how_wide_the_copy_is_that_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def engine(**text: Any) -> int:
        return text_memory.memory_plan(small(engine="vllm", **text), on_gpu=True).phases["generation"]["engine"]

    def cache(**text: Any) -> int:
        return text_memory.memory_plan(small(**text), on_gpu=True).phases["generation"]["KV cache"]

    # vLLM's is narrow where either dtype is; transformers reads a replica of wide weights, in `dtype`
    assert engine() == 2 * engine(dtype="bfloat16") == 2 * engine(shard_dtype="bfloat16")
    assert cache() == cache(shard_dtype="bfloat16") == 2 * cache(dtype="bfloat16")


def test_the_plan_of_one_rank_is_of_a_sharded_run(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = text_memory.memory_plan(small())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    shared = text_memory.memory_plan(small())
    assert "gradients" in alone.held and "gradients" not in shared.held
    assert shared.held["engine"] == shared.held["weights"] == alone.held["weights"]
    assert shared.phases["policy"]["gathered"] > 0


def test_a_dry_run_plans_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small()
    plan = text_memory.memory_plan(config)
    # 0.79 million weights at 4 bytes, with gradients and two moments, are 12.6 MB; the critic has 1 of 4 layers.
    assert 10e6 < sum(plan.held[name] for name in ("weights", "gradients", "optimizer")) < 15e6
    assert 0 < plan.held["critic"] < 0.5 * 12.6e6
    assert text_memory.memory_plan(small(lora_rank=4)).held["optimizer"] < 0.2 * plan.held["optimizer"]
    assert text_memory.fits(config).startswith("sppo needs 0.")
    monkeypatch.setattr(text_memory, "device_bytes", lambda n: 2**20)
    with pytest.raises(ValueError, match=r"sppo needs .* the device has 0.0 GiB"):
        text_memory.fits(config)
