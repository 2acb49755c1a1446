"""Generation with transformers on any device, with a preallocated cache that drops finished rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from sppo.llm.engine import Completion, check_room, stop_tokens
from sppo.llm.policy import choose_attention, products, shared_columns

DROP_SHARE = 0.125  # of the rows must have finished before the cache is compacted: compacting copies it


class _Layer(DynamicLayer):
    """Keys and values in buffers of the final length, so that a step writes one column instead of copying all."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Where products are narrower than the rest, keys come from the rotation in the wide type: they are used in the
        # narrow one anyway.
        self.dtype, self.device = value_states.dtype, key_states.device
        rows, heads, _, _ = key_states.shape
        self.all_keys = value_states.new_empty(rows, heads, self.capacity, key_states.shape[-1])
        self.all_values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.keys, self.values = self.all_keys[:, :, :0], self.all_values[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.all_keys[:, :, self.length : end] = key_states
        self.all_values[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.all_keys[:, :, :end], self.all_values[:, :, :end]
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Only these rows from now on."""
        self.all_keys, self.all_values = self.all_keys[rows], self.all_values[rows]
        self.keys, self.values = self.all_keys[:, :, : self.length], self.all_values[:, :, : self.length]


def _draw(log_p: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row, by the inverse of the cumulative distribution: a random number per row, not per token."""
    cumulative = log_p.exp().cumsum(-1)
    uniform = torch.rand(len(log_p), 1, generator=generator, device=log_p.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform, right=True).squeeze(1).clamp(max=log_p.shape[1] - 1)


class HFEngine:
    """Samples from a TextPolicy's own weights; nothing to sync.

    Args:
        policy: a TextPolicy.
        stop_token_ids: tokens that end an answer; by default the model's, see `stop_tokens`.
        batch_size: prefixes generated side by side.
    """

    copies_weights = False

    def __init__(self, policy: Any, *, stop_token_ids: Sequence[int] | None = None, batch_size: int = 256) -> None:
        self.policy, self.batch_size = policy, batch_size
        self.stops = stop_tokens(policy.tokenizer, stop_token_ids)

    def sync(self) -> None:
        """The weights are the policy's own."""

    def generate(
        self,
        prefixes: Sequence[Tensor],
        max_new_tokens: Sequence[int],
        *,
        greedy: bool,
        generator: np.random.Generator,
    ) -> list[Completion]:
        """See `Engine.generate`.

        Raises:
            ValueError: for an empty prefix, or one that leaves no room in the model's context.
        """
        check_room(prefixes, max_new_tokens, self.policy.context)
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(prefixes)), key=lambda i: (len(prefixes[i]), i))
        done: dict[int, Completion] = {}
        seed = int(generator.integers(2**63 - 1))
        torch_generator = torch.Generator(self.policy.device).manual_seed(seed)
        with products(self.policy.model.base_model):
            for first in range(0, len(order), self.batch_size):
                rows = order[first : first + self.batch_size]
                limits = [max_new_tokens[i] for i in rows]
                parts = self._batch([prefixes[i] for i in rows], limits, greedy, torch_generator)
                done.update(zip(rows, parts, strict=True))
        return [done[i] for i in range(len(prefixes))]

    @torch.no_grad()  # in inference mode, autocast would convert the weights anew at every token
    def _batch(
        self, prefixes: list[Tensor], limits: list[int], greedy: bool, generator: torch.Generator
    ) -> list[Completion]:
        model, device, n = self.policy.model, self.policy.device, len(prefixes)
        right = nn.utils.rnn.pad_sequence(prefixes, batch_first=True)
        shared = shared_columns(right, min(map(len, prefixes)) - 1)
        width, longest = max(map(len, prefixes)), max(limits)
        choose_attention(model.base_model, width + longest)
        ids = torch.zeros(n, width, dtype=torch.int64, device=device)
        mask = torch.zeros(n, width + longest, dtype=torch.int64, device=device)
        mask[:, :shared] = 1
        for i, prefix in enumerate(prefixes):  # on the left, so that all rows write the same column of the cache
            rest = len(prefix) - shared
            ids[i, width - rest :] = prefix[shared:]
            mask[i, width - rest :] = 1  # and whatever is generated after it
        limit, stops = torch.tensor(limits, device=device), torch.tensor(self.stops, device=device)
        tokens = torch.zeros(n, longest, dtype=torch.int64, device=device)
        logprobs = torch.zeros(n, longest, device=device)
        lengths = torch.zeros(n, dtype=torch.int64, device=device)
        stopped = torch.zeros(n, dtype=torch.bool, device=device)
        layers = [_Layer(width + longest) for _ in range(model.config.num_hidden_layers)]
        cache = Cache(layers=list(layers))
        rows = torch.arange(n, device=device)[limit > 0]  # those in the cache; `alive` of them still generate
        alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        if shared and len(rows):  # what all begin with is read once
            model.base_model(input_ids=right[:1, :shared].to(device), past_key_values=cache, use_cache=True)
            for layer in layers:
                layer.keep(torch.zeros(len(rows), dtype=torch.int64, device=device))
        position = mask[:, :width].cumsum(1)[rows] - 1
        inputs, positions = ids[rows, shared:], position.clamp(min=0)[:, shared:]
        for t in range(longest):
            if not len(rows):
                break
            output = model.base_model(
                input_ids=inputs,
                attention_mask=mask[rows, : width + t],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            log_p = self.policy.log_distribution(output.last_hidden_state[:, -1])
            chosen = log_p.argmax(-1) if greedy else _draw(log_p, generator)
            tokens[rows, t] = chosen
            logprobs[rows, t] = log_p.gather(1, chosen[:, None]).squeeze(1)
            stop = torch.isin(chosen, stops)
            ended = alive & (stop | (limit[rows] <= t + 1))
            lengths[rows[ended]] = t + 1
            stopped[rows[ended]] = stop[ended]
            alive &= ~ended
            # Rows that have ended stay where they are: beyond the context a table of positions has no entry.
            inputs, positions = chosen[:, None], positions[:, -1:] + alive[:, None]
            n_alive = int(alive.sum())
            if n_alive == 0:
                break
            if n_alive <= (1 - DROP_SHARE) * len(rows):
                index = alive.nonzero().squeeze(1)
                rows, inputs, positions, alive = rows[index], inputs[index], positions[index], alive[index]
                for layer in layers:
                    layer.keep(index)
        tokens, logprobs = tokens.cpu(), logprobs.cpu()
        return [
            Completion(tokens=tokens[i, :k].clone(), logprobs=logprobs[i, :k].clone(), stopped=s)
            for i, (k, s) in enumerate(zip(lengths.tolist(), stopped.tolist(), strict=True))
        ]
