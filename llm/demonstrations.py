"""Demonstrations of a task, as the experience that the log-likelihood loss reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sppo.agents.batch import Choices, Experience
from sppo.agents.losses import aggregation_weights
from sppo.agents.reference import evaluate
from sppo.llm.policy import Prefixes
from sppo.llm.sampler import TextSampler


def demonstrated(
    sampler: TextSampler, rows: Iterable[int], generator: np.random.Generator, **options: Any
) -> Experience:
    """A demonstration for each of these prompts, of which all tokens weigh alike, the stop token at their end included.

    Those longer than the token budget are left out.

    Args:
        sampler: whose prompts, and whose policy's tokens; prompts are written as they are when it samples.
        rows: indices of prompts.
        generator: draws demonstrations, where a prompt has several.
        options: of the task's demonstrations.

    Raises:
        ValueError: if the task has none, or all are too long.
    """
    task, tokenizer = sampler.task, sampler.policy.tokenizer
    if not hasattr(task, "demonstration"):
        raise ValueError(f"the task {task.name} has no demonstrations to learn from")
    prefixes: list[Tensor] = []
    actions: list[Tensor] = []
    shortest = None
    for row in rows:
        text = task.demonstration(sampler.prompts[row], generator, **options)
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        shortest = min(len(ids), shortest or len(ids))
        if len(ids) <= sampler.horizon:
            prefixes.append(sampler.prefix(row))
            actions.append(torch.tensor(ids))
    if not actions:
        raise ValueError(
            f"no demonstration of {task.name} fits into max_completion_length = {sampler.horizon} tokens: the shortest "
            f"has {shortest}"
        )
    lengths = torch.tensor([len(one) for one in actions])
    padded = pad_sequence(actions, batch_first=True)
    valid = torch.arange(padded.shape[1]) < lengths[:, None]
    weight, share = aggregation_weights(valid)
    traj = Choices(inputs=Prefixes.of(prefixes), actions=padded, logprobs=torch.zeros(valid.shape), valid=valid)
    return Experience(traj=traj, weight=weight, share=share)


def mean_loss(policy: Any, data: Experience) -> float:
    """-log pi per token, outside autograd."""
    return -float((evaluate(policy, data.traj, None) * data.weight).sum() / data.share.sum())
