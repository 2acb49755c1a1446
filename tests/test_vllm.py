"""vLLM itself, on a CPU: `make test-vllm`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_text import ToyTask
from small_runs import in_child
from vllm_engines import KV, arithmetic, assert_same_distribution, generate, perturb, prompts, toy, trainers

from sppo.agents import SPPO
from sppo.llm.engine_hf import HFEngine
from sppo.llm.engine_vllm import VLLMEngine, gpu_sender
from sppo.llm.policy import critic_base
from sppo.llm.remote import ProcessDied
from sppo.llm.sampler import TextSampler
from sppo.llm.weights import Weights

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", params=[False, True], ids=["process", "server"])
def engine(request: pytest.FixtureRequest) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(arithmetic(), server=request.param, kv_cache_gib=KV)
    yield engine
    engine.close()


def test_tokens_end_where_they_should_and_have_the_trainers_logprobs(engine: VLLMEngine) -> None:
    prefixes, stop = prompts(engine.policy, 12), engine.policy.tokenizer.eos_token_id
    limits = [1, 3, 0] + [24] * 9
    done = engine.generate(prefixes, limits, greedy=False, generator=np.random.default_rng(0))
    for completion, limit, row in zip(done, limits, trainers(engine.policy, prefixes, done), strict=True):
        tokens = completion.tokens.tolist()
        assert len(tokens) == len(completion.logprobs) <= limit
        assert stop not in tokens[:-1]
        assert completion.stopped == (tokens[-1:] == [stop])
        assert completion.stopped or len(tokens) == limit
        torch.testing.assert_close(completion.logprobs, row, atol=1e-5, rtol=0)
    assert any(c.stopped for c in done) and not done[2].stopped


def test_greedy_takes_what_transformers_takes(engine: VLLMEngine) -> None:
    prefixes = prompts(engine.policy, 12)
    want = HFEngine(engine.policy).generate(prefixes, [24] * 12, greedy=True, generator=np.random.default_rng(0))
    got = generate(engine, prefixes, greedy=True)
    assert [c.tokens.tolist() for c in got] == [c.tokens.tolist() for c in want]


def test_the_generator_alone_decides(engine: VLLMEngine) -> None:
    prefixes = prompts(engine.policy, 12) * 2
    first, again = generate(engine, prefixes), generate(engine, prefixes)
    assert [c.tokens.tolist() for c in first] == [c.tokens.tolist() for c in again]
    assert [c.logprobs.tolist() for c in first] == [c.logprobs.tolist() for c in again]
    assert [c.tokens.tolist() for c in first[:12]] != [c.tokens.tolist() for c in first[12:]]  # seeds of their own


def test_groups_sample_the_whole_distribution_from_one_prefix(engine: VLLMEngine) -> None:
    """First tokens of one long prefix, read once for all: their frequencies are the trainer's probabilities."""
    n, [prefix] = 3000, prompts(engine.policy, 1)
    prefix = torch.cat([prefix.repeat(12), prefix])
    done = generate(engine, [prefix] * n, limit=1)
    with torch.no_grad():
        hidden = engine.policy.model.base_model(input_ids=prefix[None]).last_hidden_state[:, -1]
        p = engine.policy.log_distribution(hidden)[0].exp()
    counts = torch.bincount(torch.cat([c.tokens for c in done]), minlength=len(p))
    assert int((counts > 0).sum()) > 1
    # Each count within five of its own standard deviations, and one.
    assert bool(((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt() + 1).all()), (counts, n * p)


def test_new_weights_arrive_and_are_checked(engine: VLLMEngine) -> None:
    prefixes, kept = prompts(engine.policy, 12), copy.deepcopy(engine.policy.state_dict())
    before = generate(engine, prefixes)
    assert_same_distribution(engine)
    perturb(engine.policy)
    assert_same_distribution(engine)
    assert [c.logprobs.tolist() for c in generate(engine, prefixes)] != [c.logprobs.tolist() for c in before]
    engine.policy.load_state_dict(kept)
    after = generate(engine, prefixes)
    assert [c.tokens.tolist() for c in after] == [c.tokens.tolist() for c in before]
    assert [c.logprobs.tolist() for c in after] == [c.logprobs.tolist() for c in before]


def test_unchanged_weights_are_not_sent_again(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.sync()
    monkeypatch.setattr(engine, "_send", lambda: pytest.fail("sent again"))
    generate(engine, prompts(engine.policy, 2))


def test_weights_that_do_not_arrive_stop_the_run(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = copy.deepcopy(engine.policy.state_dict())
    engine.sync()
    perturb(engine.policy)
    monkeypatch.setattr(engine, "_send", lambda: None)
    with pytest.raises(RuntimeError, match=r"mean log-probability of -[\d.]+, the trainer -[\d.]+; .* may by 0.001"):
        generate(engine, prompts(engine.policy, 2))
    engine.policy.load_state_dict(kept)


def test_requests_that_do_not_fit_are_refused(engine: VLLMEngine) -> None:
    with pytest.raises(ValueError, match="prefix 0 is empty"):
        generate(engine, [torch.zeros(0, dtype=torch.int64)])
    with pytest.raises(ValueError, match="more than the model's context of 512"):
        generate(engine, prompts(engine.policy, 1), limit=600)
    assert len(generate(engine, prompts(engine.policy, 1))) == 1


def test_the_trainers_threads_and_generators_are_left_alone() -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)

    def states() -> list[object]:
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()]  # noqa: NPY002

    before = states()
    engine = VLLMEngine(toy(), kv_cache_gib=KV)
    assert states() == before
    generate(engine, [torch.arange(2, 6)] * 2)
    assert states() == before, "nor by sampling"
    n = torch.get_num_threads()
    torch.set_num_threads(n + 1)
    assert torch.get_num_threads() == n + 1
    torch.set_num_threads(n)


def test_beginnings_are_read_once_for_a_group_and_forgotten_after_it(engine: VLLMEngine) -> None:
    from vllm import SamplingParams

    prefix = prompts(engine.policy, 1)[0].repeat(40).tolist()
    asked = ([{"prompt_token_ids": prefix}] * 6, SamplingParams(max_tokens=1, detokenize=False))
    engine.sync()
    first, *others = (output.num_cached_tokens for output in engine._call("llm_method", "generate", *asked))
    assert first == 0 and min(others) > len(prefix) / 2
    generate(engine, prompts(engine.policy, 1))
    assert engine._call("llm_method", "generate", *asked)[0].num_cached_tokens == 0


def test_between_rollouts_it_sleeps_and_wakes_to_new_weights(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU's memory is given back by; on a CPU, all but the memory."""
    prefixes, called, call = prompts(engine.policy, 4), [], engine._call
    want = [c.logprobs.tolist() for c in generate(engine, prefixes)]

    def told(name: str, *args: Any) -> Any:
        called.append((name, *args) if name == "llm_method" else name)
        return call(name, *args)

    monkeypatch.setitem(engine.options, "enable_sleep_mode", True)
    monkeypatch.setattr(engine, "_call", told)
    awake = ["generate", ("llm_method", "sleep", 2)]
    assert [c.logprobs.tolist() for c in generate(engine, prefixes)] == want and called == awake
    called.clear()
    perturb(engine.policy, 0.0)
    assert [c.logprobs.tolist() for c in generate(engine, prefixes)] == want
    waking = [("llm_method", "wake_up", ["weights"]), "load", ("llm_method", "wake_up", ["kv_cache"])]
    assert called == [*waking, ("llm_method", "reset_prefix_cache"), "generate", *awake]
    engine.sync()


def toy_sampler(engine: VLLMEngine, **options: int) -> TextSampler:
    policy = engine.policy
    critic = lambda: critic_base(policy.model, layers=1)  # noqa: E731
    return TextSampler(ToyTask(), policy, engine, **{"max_completion_length": 8, "critic": critic, **options})


@pytest.mark.parametrize("server", [False, True], ids=["process", "server"])
def test_sppo_learns(server: bool) -> None:
    engine = VLLMEngine(toy(), server=server, kv_cache_gib=KV)
    agent = SPPO(toy_sampler(engine), episodes_per_update=64, learning_rate=3e-3, n_epochs=1, n_minibatches=2)
    seen: list[dict[str, float]] = []
    agent.learn(total_episodes=64 * 25, callback=lambda agent, metrics: seen.append(dict(metrics)))
    engine.close()
    rates = [metrics["rollout/success_rate"] for metrics in seen]
    assert np.mean(rates[:3]) < 0.5 and np.mean(rates[-3:]) > 0.85, rates
    assert max(metrics["sampling/logprob_difference"] for metrics in seen) < 1e-5
    assert {round(metrics["sampling/importance_max"], 4) for metrics in seen} == {1.0}


def test_a_server_that_dies_in_a_rollout_is_started_again_and_nothing_counts_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = VLLMEngine(toy(), server=True, kv_cache_gib=KV, batch_size=4)
    whole = toy_sampler(engine, max_completion_length=64).rollout(np.arange(20).repeat(20))
    pid, ask = engine._holder.process.pid, engine._ask

    def dies(requests: list, greedy: bool) -> list:
        if len(requests) == 400 and engine._holder.process.pid == pid:
            threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
        return ask(requests, greedy)

    monkeypatch.setattr(engine, "_ask", dies)
    sampler = toy_sampler(engine, max_completion_length=64)
    again = sampler.rollout(np.arange(20).repeat(20))
    assert engine._holder.process.pid != pid and "was ended by SIGKILL" in caplog.text
    assert torch.equal(again.actions, whole.actions) and torch.equal(again.logprobs, whole.logprobs)
    assert sampler.counts == {"env_steps": int(whole.lengths.sum()), "episodes": 400, "prompts_drawn": 0}
    # One that dies while it is started again is not tried for ever.
    os.kill(engine._holder.process.pid, signal.SIGKILL)
    monkeypatch.setitem(engine.options, "kv_cache_memory_bytes", 2**50)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="less than requested memory for kv"):
        sampler.rollout(np.arange(2))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("server", [False, True], ids=["process", "server"])
def test_adapters_arrive_as_adapters(server: bool) -> None:
    pytest.importorskip("peft")
    from sppo.llm.lora import LoRA, lora_policy

    policy = toy()
    lora_policy(policy, LoRA(rank=4), seed=0)
    engine = VLLMEngine(policy, server=server, kv_cache_gib=KV)
    prefixes = [torch.arange(2, 6)] * 8
    before = [c.logprobs.tolist() for c in generate(engine, prefixes)]
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        for p in policy.parameters():
            if p.requires_grad:
                p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
        done = generate(engine, prefixes)
        for row, completion in zip(trainers(policy, prefixes, done), done, strict=True):
            torch.testing.assert_close(completion.logprobs, row, atol=1e-5, rtol=0)
        assert [c.logprobs.tolist() for c in done] != before


def test_devices_are_a_servers() -> None:
    with pytest.raises(ValueError, match="devices='1' are a server's"):
        VLLMEngine(toy(), devices="1")


def test_options_for_gpus_are_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setattr(VLLMEngine, "_start", lambda self: None)
    monkeypatch.setenv("RANK", "1")
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for how, transfer, gpus in (
        ({}, None, 1),
        ({"server": True}, "ipc", 1),
        ({"server": True, "devices": "1,2"}, "nccl", 2),
    ):
        engine = VLLMEngine(toy(), device=torch.device("cuda"), **how)
        assert engine.transfer == transfer and engine.options["tensor_parallel_size"] == gpus
        assert engine.options["enable_sleep_mode"] == ("devices" not in how), "else it has its GPUs to itself"
        assert ("distributed_executor_backend" in engine.options) == (not how)
        assert set(engine.options) <= known


@pytest.mark.parametrize("transfer", ["ipc", "nccl"])
def test_weights_for_gpus_go_as_vllm_asks(transfer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the sending: what vLLM's end is told, it has methods for."""
    from vllm import LLM
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    monkeypatch.setattr(
        WeightTransferTrainerFactory, "trainer_init", lambda info, client, source: (info, client, source)
    )
    policy, called = toy(), []
    weights = Weights(policy, torch.bfloat16, policy.device)
    info, client, source = gpu_sender(transfer, weights, lambda *call: called.append(call), 3)
    assert info.backend == transfer and info.is_sender and info.packed and isinstance(client, VLLMWeightSyncClient)
    assert info.world_size == 3 if transfer == "nccl" else info.packed_buffer_size_bytes >= 2**28
    sent = [(name, weight.dtype, tuple(weight.shape)) for name, weight in source]
    assert [tuple(entry) for entry in source.metadata()] == sent and len(sent) == len(dict(weights))
    client.init_weight_transfer_engine({"packed": True})
    client.start_weight_update()
    client.update_weights({"names": []})
    client.finish_weight_update()
    assert [name for _, name, *_ in called] == [
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    ]
    for kind, name, *args in called:
        assert kind == "llm_method"
        inspect.signature(getattr(LLM, name)).bind(None, *args)


@pytest.mark.parametrize(
    "error", [ProcessDied("the process 7 was ended by SIGKILL"), RuntimeError("in the process 7:\nNCCL error")]
)
@pytest.mark.parametrize("name", ["init_weight_transfer_engine", "update_weights"])
def test_a_server_that_fails_in_a_broadcast_takes_the_trainer_along(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Which would wait for it: nobody can end a broadcast, nor a meeting. By IPC nobody waits."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", lambda info, client, source: client)
    policy = toy()
    weights = Weights(policy, torch.float32, policy.device)
    client = gpu_sender("nccl", weights, fails, 2)
    assert in_child(lambda: getattr(client, name)({})) == 1
    said = str(error).replace("\n", " ")
    assert capfd.readouterr().err == f"vLLM's {name} failed: {said}\n"
    with pytest.raises(type(error)):
        getattr(gpu_sender("ipc", weights, fails, 2), name)({})
