"""vLLM itself, on a CPU: `make test-vllm`."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_text import ToyTask
from small_runs import assert_looks_whole, assert_same_run, quiet_run, records

from sppo.agents import SPPO
from sppo.agents.batch import Choices
from sppo.experiments.config import RunConfig
from sppo.experiments.run import run
from sppo.llm.engine import Completion
from sppo.llm.engine_hf import HFEngine
from sppo.llm.engine_vllm import VLLMEngine
from sppo.llm.policy import Prefixes, TextPolicy, critic_base, load_model, tiny_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sources import find_model
from sppo.llm.tokenizer import character_tokenizer, load_tokenizer

pytestmark = pytest.mark.vllm

KV = 0.05  # GiB, hundreds of rows of these models


def arithmetic(temperature: float = 0.7) -> TextPolicy:
    source = find_model("arithmetic")
    return TextPolicy(load_model(source), load_tokenizer(source), temperature=temperature)


def toy(seed: int = 0) -> TextPolicy:
    """A new model with heads as wide as vLLM's kernels want them."""
    tokenizer = character_tokenizer("ab=;")
    return TextPolicy(tiny_model(len(tokenizer), seed=seed, hidden=64, layers=2, heads=2), tokenizer)


@pytest.fixture(scope="module", params=[False, True], ids=["process", "server"])
def engine(request: pytest.FixtureRequest) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(arithmetic(), server=request.param, kv_cache_gib=KV)
    yield engine
    engine.close()


def prompts(policy: TextPolicy, n: int) -> list[torch.Tensor]:
    texts = [f"{i + 3}-{7 * i % 20}=" for i in range(n)]  # what the model is unsure of
    return [torch.tensor(policy.tokenizer(text)["input_ids"]) for text in texts]


def generate(engine: VLLMEngine, prefixes: list[torch.Tensor], limit: int = 24, **kwargs: bool) -> list[Completion]:
    options = {"greedy": False, **kwargs}
    return engine.generate(prefixes, [limit] * len(prefixes), generator=np.random.default_rng(0), **options)


def trainers(policy: TextPolicy, prefixes: list[torch.Tensor], done: list[Completion]) -> list[torch.Tensor]:
    """Log-probabilities of the same tokens, by transformers."""
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad([c.tokens for c in done], batch_first=True)
    valid = torch.arange(tokens.shape[1]) < torch.tensor([[len(c.tokens)] for c in done])
    choices = Choices(inputs=Prefixes.of(prefixes), actions=tokens, logprobs=torch.zeros(tokens.shape), valid=valid)
    with torch.no_grad():
        logprobs, _ = policy.evaluate(choices)
    return [row[: len(c.tokens)] for row, c in zip(logprobs, done, strict=True)]


def assert_same_distribution(engine: VLLMEngine, atol: float = 1e-5) -> None:
    prefixes = prompts(engine.policy, 12)
    done = generate(engine, prefixes)
    for row, completion in zip(trainers(engine.policy, prefixes, done), done, strict=True):
        torch.testing.assert_close(completion.logprobs, row, atol=atol, rtol=0)


def perturb(policy: TextPolicy, size: float = 0.2) -> None:
    """What an optimiser does, but through the flat tensor that a learner keeps the weights in."""
    generator = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data.add_(size * p.std() * torch.randn(p.shape, generator=generator))


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


def test_the_trainers_threads_and_generators_are_left_alone(engine: VLLMEngine) -> None:
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


KILLED = """
import json, os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from small_runs import quiet_run
from sppo.experiments.config import RunConfig

def kill():
    progress = Path({folder!r}) / "progress.jsonl"
    while not progress.exists() or len(progress.read_text().splitlines()) < 2:
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
quiet_run([RunConfig(**json.loads({config!r}))], [Path({folder!r})])
"""


@pytest.mark.parametrize("engine", ["vllm", "vllm-server"])
def test_a_killed_run_goes_on_bit_for_bit(engine: str, tmp_path: Path) -> None:
    config = {
        "env_id": "text/arithmetic",
        "agent": "sppo",
        "env_kwargs": {"train_size": 40, "test_size": 12},
        "settings": {"episodes_per_update": 8, "n_minibatches": 2, "learning_rate": 1e-3},
        "text": {"max_completion_length": 12, "critic_layers": 1, "threads": 1, "engine": engine, "kv_cache_gib": KV},
        "total_episodes": 32,
        "n_evals": 2,
        "n_eval_episodes": 16,
        "checkpoint_freq": 1,
    }
    run([RunConfig(**config)], [tmp_path / "whole"])
    folder = tmp_path / "killed"
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), config=json.dumps(config))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 0 < len(records(folder / "progress.jsonl")) < 4
    quiet_run([RunConfig(**config)], [folder])
    assert_same_run(folder, tmp_path / "whole")
    assert_looks_whole(folder)


def torchrun(folder: Path, mode: str, updates: int) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).parent / "vllm_ranks.py"
    started = [*launch, str(script), str(folder), mode, str(updates)]
    return subprocess.run(started, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("mode", ["process", "server"])
def test_ranks_that_share_a_policy_learn_as_one_process_does(mode: str, tmp_path: Path) -> None:
    """By torchrun, with the policy sharded: every rank has a vLLM of its own."""
    done = torchrun(tmp_path, mode, 12)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    rates = [[m["rollout/success_rate"] for m in ranks] for ranks in metrics]
    assert rates[0] == rates[1]
    assert np.mean(rates[0][:2]) < 0.5 and np.mean(rates[0][-2:]) > 0.85, rates
    assert max(m["sampling/logprob_difference"] for m in metrics[0]) < 1e-5


def test_ranks_stop_when_a_server_dies(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "dies", 12)
    assert done.returncode != 0 and "was ended by SIGKILL" in done.stderr, done.stderr
    [killed] = re.findall(r"killed at ([\d.]+)", done.stdout)
    assert time.time() - float(killed) < 60


def test_adapters_arrive_as_adapters() -> None:
    pytest.importorskip("peft")
    from sppo.llm.lora import LoRA, lora_policy

    policy = toy()
    lora_policy(policy, LoRA(rank=4), seed=0)
    engine = VLLMEngine(policy, kv_cache_gib=KV)
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
