"""Sharded training: ranks learn what one process learns, go on from their files, and export the whole model."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs the extra sppo[lora]")

from fake_text import toy_policy, toy_sampler
from fsdp_ranks import CASES, MESHES, SETTINGS, UPDATES, make_agent, outside, train
from launched import done, torchrun
from made_up import made_up, network
from safetensors.torch import load_file
from torch import Tensor

from sppo.agents.learners import LocalLearner
from sppo.llm import shared_passes
from sppo.llm.lora import adapter
from sppo.llm.policy import TextPolicy, load_model
from sppo.llm.shared_passes import shared_pass
from sppo.llm.tokenizer import load_tokenizer

SCRIPT = Path(__file__).with_name("fsdp_ranks.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks came to in every case."""
    folder = tmp_path_factory.mktemp("ranks")
    done(*torchrun(2, SCRIPT, folder))
    return folder


def apart(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_process_learns(name: str, trained: Path) -> None:
    """With seven responses of unequal length in minibatches of three and four; and one row at a time, in which case
    the second rank never has one."""
    assert_learned_alike(CASES, name, trained)


@pytest.mark.slow
def test_four_ranks_learn_it_with_copies_of_slices(tmp_path: Path) -> None:
    done(*torchrun(4, SCRIPT, tmp_path))
    for name in MESHES:
        assert_learned_alike(MESHES, name, tmp_path)


def assert_learned_alike(cases: dict[str, dict[str, Any]], name: str, trained: Path) -> None:
    i, case = list(cases).index(name), {**cases[name]}
    for own in ("shards", "critic_shards"):
        case.pop(own, None)
    exact = case.get("dtype", "float64") == "float64"
    tolerance = 1e-6 if exact else 1e-5
    alone, here = train(make_agent(None, **case), UPDATES)
    ranks = json.loads((trained / f"{i}.json").read_text())
    there: dict[str, Tensor] = load_file(trained / f"{i}.safetensors")
    assert here.keys() == there.keys() and {key.split()[1] for key in here} == {"gradient", "weight"}
    whole: defaultdict[str, float] = defaultdict(float)
    for key, x in here.items():
        whole[_step(key)] += float(x.norm() ** 2)
    for key, x in here.items():
        if key.split()[1] == "weight":
            torch.testing.assert_close(there[key], x, rtol=0, atol=tolerance)
        else:
            # Rounding takes narrow weights apart, which shows in tensors whose gradients are small beside the others.
            size = float(x.norm()) if exact or key.split()[2] == "0" else whole[_step(key)] ** 0.5
            assert (there[key] - x).norm() <= tolerance * size, key
    moved = max(
        float((x - make_agent(None, **case).policy.state_dict()[key.removeprefix("policy weight ")]).abs().max())
        for key, x in here.items()
        if key.startswith("policy weight ")
    )
    assert moved > 0.01
    for other in ranks[1:]:
        assert [apart(m) for m in other] == [apart(m) for m in ranks[0]], "all ranks know the same"
    for one, two in zip(alone, ranks[0], strict=True):
        assert apart(two) == pytest.approx(apart(one), rel=tolerance, abs=1e-9 if exact else 1e-6)
    if "max_grad_norm" in case:
        assert all(m["train/grad_norm"] > 2 * case["max_grad_norm"] for m in alone)


def _step(key: str) -> str:
    """Of a gradient: its network and its number."""
    return key.rpartition(" ")[0]


def test_with_checkpointing_layers_compute_again_on_the_way_back(trained: Path) -> None:
    for told in json.loads((trained / "layer runs.json").read_text()):
        assert told == [[1, 1], [2, 2]], "of two layers, without and with it"


def test_ranks_go_on_from_their_slices_and_export_the_whole_model(trained: Path) -> None:
    for told in json.loads((trained / "resumed.json").read_text()):
        assert told["same"]
        assert told["share of policy"] == pytest.approx(0.5, abs=0.05)
        assert told["share of critic"] == 1, "which each rank has whole"
    agent = make_agent(None, agent="ppo")
    folder = str(trained / "model")
    again = TextPolicy(load_model(folder, torch.float64), load_tokenizer(folder))
    train(agent, 3)
    for name, weight in agent.policy.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=1e-6)


def test_adapters_of_ranks_are_written_whole(trained: Path) -> None:
    """By every rank for its own engine, as one process would; and by the first as the merged model."""
    agent = make_agent(None, agent="sppo", lora=True, dtype="float32")
    fresh = {name: p.detach().clone() for name, p in agent.policy.model.named_parameters() if "lora_" in name}
    agent.train_once()
    want, _ = adapter(agent.policy.model)
    for folder in (trained / "adapter0", trained / "adapter1", trained / "merged" / "adapter"):
        there = load_file(folder / "adapter_model.safetensors")
        assert there.keys() == want.keys() and len(want) == len(fresh)
        for name, tensor in want.items():
            torch.testing.assert_close(there[name], tensor, rtol=0, atol=1e-5)
    learned = {name: agent.policy.model.get_parameter(name).detach() for name in fresh}
    assert max(float((p - fresh[name]).abs().max()) for name, p in learned.items()) > 1e-3
    merged = TextPolicy(load_model(str(trained / "merged")), load_tokenizer(str(trained / "merged")))
    traj = agent.sampler.rollout(agent.sampler.starts(5))
    torch.testing.assert_close(merged.evaluate(traj)[0], agent.policy.evaluate(traj)[0], rtol=0, atol=1e-4)


def test_ranks_sample_apart_and_know_all(trained: Path) -> None:
    """Each rank draws its own tokens with the policy's present weights; the two then hold the same responses."""
    one, two = json.loads((trained / "sampled.json").read_text())
    assert one == two
    assert one["counts"][0] == SETTINGS["episodes_per_update"] + 5
    assert one["counts"][1] >= one["counts"][0]
    assert len({tuple(row) for row in one["tokens"]}) > 2
    assert one["replica"] and one["moved"] > 1e-3
    assert one["types"] == ["torch.float32"], "the weights that Adam moves stay wide"
    assert 1e-6 < one["off"] < 0.1, "the policy computes in bfloat16, the engine does not"


def test_ranks_pass_equally_often_and_a_bounded_number_of_tokens_outside_autograd(trained: Path) -> None:
    """Where a rank passed once less than another, both would wait forever."""
    (one, passes), (two, other_passes) = json.loads((trained / "outside.json").read_text())
    alone, _ = outside(None)
    assert one == two
    for there, here in zip(one, alone, strict=True):
        assert there == pytest.approx(here, abs=1e-6)
    assert len(passes) == len(other_passes) > 3 * 2 and max(passes + other_passes) <= 30


def test_a_share_of_rows_goes_in_parts_with_the_targets_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank alone with itself."""
    sampler = toy_sampler(toy_policy(spread=30))
    traj = sampler.rollout(np.arange(10))
    critic: Any = sampler.step_critic("bce")
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    critic.base.whole_rows = True
    targets = torch.rand(traj.valid.shape, generator=torch.Generator().manual_seed(0))
    passes: list[int] = []
    critic.base.register_forward_pre_hook(
        lambda _, args, given: passes.append(given["input_ids"].numel()), with_kwargs=True
    )
    monkeypatch.setattr(shared_passes, "TOKENS", 42)
    alone = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"), interleaved=lambda mine: mine)
    with torch.no_grad():
        for method, args in ((critic.values, (traj,)), (critic.loss, (traj, targets))):
            want = method(*args)
            assert passes.pop() > 100
            got = shared_pass(method, critic.reads, alone, None)(*args)
            assert torch.allclose(got, want, atol=1e-5)
            assert len(passes) > 2 and max(passes) <= 42
            passes.clear()


def test_local_learner_keeps_nothing_for_frozen_weights() -> None:
    policy: Any = network()
    data = made_up([2, 3])
    frozen = [name for name, _ in policy.named_parameters()][:2]
    for name in frozen:
        policy.get_parameter(name).requires_grad_(False)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    learner = LocalLearner(policy, learning_rate=0.1, max_grad_norm=1.0, adam_eps=1e-5)
    assert learner.flat.numel() == sum(p.numel() for name, p in before.items() if name not in frozen)
    logprobs, _ = policy.evaluate(data.traj)
    learner.backward(logprobs.sum())
    learner.step()
    for name, p in policy.named_parameters():
        assert torch.equal(p, before[name]) == (name in frozen), name
