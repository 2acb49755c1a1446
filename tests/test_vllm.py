"""vLLM itself, on a CPU: `make test-vllm`."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fake_text import ToyTask

from sppo.agents.batch import Choices
from sppo.llm.engine import Completion
from sppo.llm.engine_hf import HFEngine
from sppo.llm.engine_vllm import VLLMEngine
from sppo.llm.policy import Prefixes, TextPolicy, load_model, tiny_model
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
    texts = [f"{i + 3}+{7 * i % 40}=" for i in range(n)]
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


def test_a_server_that_dies_in_a_rollout_is_started_again_and_nothing_counts_twice() -> None:
    def rollout(dies: bool) -> tuple[list[list[int]], dict[str, int]]:
        policy = toy()
        with_engine = VLLMEngine(policy, server=True, kv_cache_gib=KV)
        sampler = TextSampler(ToyTask(), policy, with_engine, max_completion_length=8)
        if dies:
            os.kill(server_of(with_engine), signal.SIGKILL)
        traj = sampler.rollout(np.arange(6))
        with_engine.close()
        return traj.actions.tolist(), sampler.counts

    assert rollout(dies=True) == rollout(dies=False)


def server_of(engine: VLLMEngine) -> int:
    return engine._holder.process.pid


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(x) for x in found.stdout.split()]
