"""How fast text runs on a CPU, on one thread, as ratios within one run, with a Llama of 0.8 million parameters.

Generation: 256 prompts of 6 to 24 characters, at most 64 tokens, with weights that stop at each token with one chance
in thirty, against transformers' own `generate`. Training: one forward and backward pass of the clipped surrogate over
the same rows, in real tokens per second, against transformers' forward pass over the padded batch with its full
logits. The contenders take turns, with the same weights and the same kind of attention, and medians over the rounds
are compared.

    python benchmarks/text_speed.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from sppo.agents.batch import Choices, Experience
from sppo.agents.learners import LocalLearner
from sppo.agents.losses import aggregation_weights, clipped_surrogate
from sppo.agents.update import PolicyLoss, minimise
from sppo.experiments.process import tune_process
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import Prefixes, TextPolicy, sequences, tiny_model
from sppo.llm.tokenizer import character_tokenizer

N, LIMIT = 256, 64


def make_policy() -> TextPolicy:
    tokenizer = character_tokenizer("0123456789+-*=;,() abcdefgh")
    return TextPolicy(tiny_model(len(tokenizer), seed=0), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tune_process()
    policy = make_policy()
    engine = HFEngine(policy)
    rng = np.random.default_rng(0)
    prompts = [torch.from_numpy(rng.integers(3, 20, rng.integers(6, 25))) for _ in range(N)]
    width = max(map(len, prompts))
    padded = torch.zeros(N, width, dtype=torch.int64)
    mask = torch.zeros(N, width, dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        padded[i, width - len(prompt) :], mask[i, width - len(prompt) :] = prompt, 1

    def ours_generate() -> int:
        done = engine.generate(prompts, [LIMIT] * N, greedy=False, generator=np.random.default_rng(0))
        return sum(len(c.tokens) for c in done)

    @torch.inference_mode()
    def theirs_generate() -> int:
        out = policy.model.generate(
            input_ids=padded,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=LIMIT,
            pad_token_id=0,
            eos_token_id=1,
        )
        new = out[:, width:]
        return int((new != 0).sum())

    done = engine.generate(prompts, [LIMIT] * N, greedy=False, generator=np.random.default_rng(1))
    data = as_experience(prompts, done)
    real = int(data.traj.valid.sum() + data.traj.inputs.lengths.sum())
    learner = LocalLearner(policy, learning_rate=0.0, max_grad_norm=1.0, adam_eps=1e-8)

    def ours_train() -> int:
        minimise(
            learner,
            PolicyLoss(policy, 0.2, 0.2),
            data,
            n_epochs=1,
            n_minibatches=1,
            generator=np.random.default_rng(0),
            microbatch_size=32,
        )
        return real

    ids = sequences(data.traj)
    attention = torch.arange(ids.shape[1]) < (data.traj.inputs.lengths + data.traj.lengths)[:, None]

    def theirs_train() -> int:
        learner.zero_grad()
        logits = policy.model(input_ids=ids, attention_mask=attention.long()).logits
        log_p = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        lengths, t = data.traj.inputs.lengths, data.traj.valid.shape[1]
        logprobs = log_p.gather(1, (lengths[:, None] - 1 + torch.arange(t)).clamp(max=log_p.shape[1] - 1))
        loss = clipped_surrogate(logprobs, data.traj.logprobs, data.advantages, clip_low=0.2, clip_high=0.2)
        (loss * data.weight / data.share.sum()).sum().backward()
        learner.step()
        return real

    contenders: dict[str, Callable[[], int]] = {
        "generate": ours_generate,
        "transformers.generate": theirs_generate,
        "train": ours_train,
        "padded transformers": theirs_train,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(args.rounds + 1):
        for name, once in contenders.items():
            started = time.perf_counter()
            tokens = once()
            if i:  # the first round warms up
                rates[name].append(tokens / (time.perf_counter() - started))
    for name, values in rates.items():
        print(f"{name:24s}{statistics.median(values):10,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})")

    def ratio(ours: str, theirs: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True)), 2)

    figures = {
        "generate_vs_transformers": ratio("generate", "transformers.generate"),
        "train_vs_padded": ratio("train", "padded transformers"),
        "rounds": args.rounds,
    }
    print(json.dumps(figures))


def as_experience(prompts: list[torch.Tensor], done: list) -> Experience:
    lengths = torch.tensor([len(c.tokens) for c in done])
    actions = torch.nn.utils.rnn.pad_sequence([c.tokens for c in done], batch_first=True)
    logprobs = torch.nn.utils.rnn.pad_sequence([c.logprobs for c in done], batch_first=True)
    valid = torch.arange(actions.shape[1]) < lengths[:, None]
    weight, share = aggregation_weights(valid)
    traj = Choices(inputs=Prefixes.of(prompts), actions=actions, logprobs=logprobs, valid=valid)
    advantages = torch.randn(len(done), 1, generator=torch.Generator().manual_seed(0)) * valid
    return Experience(traj=traj, weight=weight, share=share, advantages=advantages)


if __name__ == "__main__":
    main()
