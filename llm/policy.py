"""Causal language models as policies."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from sppo.agents.batch import Choices, Rows
from sppo.llm.limits import LOGITS, SHORT
from sppo.llm.passes import a_pass, device_of
from sppo.llm.tasks.base import Prompt
from sppo.llm.tokenizer import encode_prompt

_log = logging.getLogger(__name__)

SHARED = 8  # tokens from which on a beginning that all rows share is worth a pass of its own


@dataclass(frozen=True)
class Prefixes:
    """The states in which rows began: token prefixes, right-padded."""

    ids: Tensor  # (B, P) int64
    lengths: Tensor  # (B,) int64, at least 1

    def __getitem__(self, rows: Rows) -> Prefixes:
        return Prefixes(self.ids[rows], self.lengths[rows])

    @staticmethod
    def of(prefixes: list[Tensor]) -> Prefixes:
        """Padded from ragged."""
        lengths = torch.tensor([len(p) for p in prefixes])
        return Prefixes(nn.utils.rnn.pad_sequence(prefixes, batch_first=True), lengths)


def load_model(source: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A causal language model from a save_pretrained folder, a hub name, or a .gguf file (dequantised)."""
    path = Path(source)
    if path.exists():  # a bar is for what takes long: a download
        transformers_logging.disable_progress_bar()
    if path.suffix != ".gguf":
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=dtype)
    # What it keeps from here on are plain weights: saved as a folder, they must not be taken for a quantised file's.
    del model.config.quantization_config
    model.hf_quantizer = None
    return model


def tiny_model(vocab_size: int, *, seed: int, hidden: int = 128, layers: int = 4, heads: int = 4) -> nn.Module:
    """A new Llama of about 0.8 million parameters (at the defaults), with weights drawn from `seed`."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


class TextPolicy(nn.Module):
    """A causal language model as a policy over tokens, at a sampling temperature.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        temperature: logits are divided by it, in sampling and in evaluation alike.
        dtype: of matrix products, in sampling, evaluation and critics alike; the weights stay as they are.

    Raises:
        ValueError: if the tokenizer has ids that the model does not know, or the model changes its logits after its
            output layer in a way that is not reproduced here.
    """

    memoryless = False

    def __init__(
        self, model: Any, tokenizer: Any, *, temperature: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}; use greedy for the mode")
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        n_outputs = model.get_output_embeddings().weight.shape[0]
        if len(tokenizer) > n_outputs:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens and the model knows {n_outputs}")
        for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            if getattr(model.config, name, None) not in (None, 1.0):
                raise ValueError(f"models with {name} are not supported")
        # Kept at the body, where its copies, the critics', have them too.
        model.base_model.products, model.base_model.fused = dtype, model.config._attn_implementation
        model.eval()  # no dropout: recomputed log-probabilities must equal the sampled ones

    @property
    def base(self) -> Any:
        """The model without its output layer."""
        return self.model.base_model

    @property
    def device(self) -> torch.device:
        return device_of(self.base)

    @property
    def context(self) -> int | None:
        """Tokens that the model can read, prompt and response together; None where nothing bounds them."""
        length: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return length

    def with_room(
        self, prompts: Sequence[Prompt], max_completion_length: int, max_prompt_length: int | None = None
    ) -> list[Prompt]:
        """The prompts that leave room for a response in the context, and are not longer than told.

        Raises:
            ValueError: if none does.
        """
        limits = [max_prompt_length, None if self.context is None else self.context - max_completion_length]
        limit = min((n for n in limits if n is not None), default=None)
        if limit is None:
            return list(prompts)
        kept = [p for p in prompts if len(encode_prompt(self.tokenizer, p.prompt)) <= limit]
        n, n_kept = len(prompts), len(kept)
        if not kept:
            raise ValueError(
                f"none of the {n} prompts has at most {limit} tokens (the model's context is {self.context}, "
                f"max_completion_length {max_completion_length}, max_prompt_length {max_prompt_length})"
            )
        if n_kept < n:
            _log.warning("%d of %d prompts are longer than %d tokens; left out", n - n_kept, n, limit)
        return kept

    def reads(self, traj: Choices) -> Tensor:
        """(B,) tokens of each row in one pass."""
        return traj.sizes

    @a_pass
    def evaluate(self, traj: Choices, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of the tokens, 0 where not valid."""
        rows, cols = traj.valid.nonzero(as_tuple=True)
        lengths = traj.inputs.lengths
        states, shared = hidden_states(self.base, sequences(traj), lengths)
        hidden = states[rows, lengths[rows] - 1 - shared + cols]  # (N, D)
        tokens = traj.actions[rows, cols]
        chunk = max(1, LOGITS // self.model.get_output_embeddings().weight.shape[0])
        with products(self.base):
            parts = [
                checkpoint(self._chunk, h, t, entropy, use_reentrant=False)
                for h, t in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
            ]
        empty = torch.zeros(traj.valid.shape, device=hidden.device)
        spread = [empty.index_put((rows, cols), torch.cat([part[i] for part in parts])) for i in range(1 + entropy)]
        return spread[0], spread[1] if entropy else None

    def _chunk(self, hidden: Tensor, tokens: Tensor, entropy: bool) -> tuple[Tensor, ...]:
        log_p = self.log_distribution(hidden)
        logprobs = log_p.gather(1, tokens[:, None]).squeeze(1)
        return (logprobs, -(log_p.exp() * log_p).sum(1)) if entropy else (logprobs,)

    def log_distribution(self, hidden: Tensor) -> Tensor:
        """(n, V) log-probabilities of the next token at the sampling temperature, from the last layer (n, D)."""
        logits = self.model.get_output_embeddings()(hidden).float()
        return (logits if self.temperature == 1 else logits / self.temperature).log_softmax(-1)

    def save_pretrained(self, folder: Path) -> None:
        """Write the model and its tokenizer as transformers does."""
        state = {name: _apart(tensor.detach()) for name, tensor in self.model.state_dict().items()}
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {}) if self._is_tied() else set()
        self.model.save_pretrained(folder, state_dict={k: v for k, v in state.items() if k not in tied})
        self.tokenizer.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):
            weights.chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read them

    def _is_tied(self) -> bool:
        return self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight


def _apart(x: Tensor) -> Tensor:
    """On the CPU, since a GPU may have no room for copies, and sharing memory with nothing: safetensors refuses views
    of one tensor."""
    return x.cpu() if x.untyped_storage().nbytes() == x.nbytes else x.to("cpu", copy=True)


def sequences(traj: Choices) -> Tensor:
    """Prefix and tokens of each row, one after the other, right-padded: (B, L)."""
    lengths = traj.inputs.lengths
    width = int((lengths + traj.lengths).max())
    ids = traj.inputs.ids.new_zeros(len(lengths), width)
    n = min(width, traj.inputs.ids.shape[1])
    ids[:, :n] = torch.where(torch.arange(n, device=ids.device) < lengths[:, None], traj.inputs.ids[:, :n], 0)
    rows, cols = traj.valid.nonzero(as_tuple=True)
    ids[rows, lengths[rows] + cols] = traj.actions[rows, cols]
    return ids


def hidden_states(base: Any, ids: Tensor, lengths: Tensor) -> tuple[Tensor, int]:
    """The last layer's output (B, L - n, D) from column n on, and n: the columns before it are the same in all rows.

    They are read once, not once per row. Padding is on the right, where a causal model cannot see it, so no mask is
    needed.

    Args:
        base: a causal model's body.
        ids: (B, L) token ids.
        lengths: (B,) of the prefixes; from their last tokens on, states are wanted.
    """
    shared = 0 if getattr(base, "whole_rows", False) else shared_columns(ids, int(lengths.min()) - 1)
    choose_attention(base, ids.shape[1])
    with products(base):
        if not shared:
            return base(input_ids=ids, use_cache=False).last_hidden_state, 0
        cache: Any = DynamicCache(config=base.config)
        base(input_ids=ids[:1, :shared], past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
            layer.values = layer.values.expand(len(ids), -1, -1, -1)
        return base(input_ids=ids[:, shared:], past_key_values=cache, use_cache=True).last_hidden_state, shared


def shared_columns(ids: Tensor, most: int) -> int:
    """How many of the first `most` columns are the same in all rows; 0 where too few to matter."""
    same = (ids[:, :most] == ids[:1, :most]).all(0)
    n = int(same.cumprod(0).sum())
    return n if n >= SHARED and len(ids) > 1 else 0


def checkpoint_layers(base: Any) -> None:
    """Let a body keep only the inputs of its layers for the backward pass, and compute the rest again there."""
    base.whole_rows = True  # a second pass would write into the cache of a shared beginning again
    for layer in base.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def choose_attention(base: Any, length: int) -> None:
    """The faster attention for rows of this length; on other devices, and for bodies of no policy, as it is.

    For a backward pass plain attention would keep the probabilities of all pairs of tokens.
    """
    own = getattr(base, "fused", None)
    if own is None or device_of(base).type != "cpu":
        return
    wanted = "eager" if length <= SHORT and not torch.is_grad_enabled() else own
    if base.config._attn_implementation != wanted:
        base.set_attn_implementation(wanted)


def products(base: Any) -> torch.autocast:
    """In this context, matrix products are of the type that the body's policy was given."""
    dtype = getattr(base, "products", torch.float32)
    return torch.autocast(device_of(base).type, dtype, enabled=dtype != torch.float32)


def critic_base(
    model: Any, *, layers: int | None = None, dtype: torch.dtype | None = None, share_frozen: bool = False
) -> Any:
    """A copy of a causal model's body to put a critic's head on, cut to its first `layers` layers if given.

    `dtype` is of its matrix products; by default as in the policy that has this model. With `share_frozen`, weights of
    the model that do not learn are not copied but shared.
    """
    own = model.base_model
    base = copy.deepcopy(own, {id(p): p for p in own.parameters() if share_frozen and not p.requires_grad})
    if dtype is not None:
        base.products = dtype
    if layers is not None and not hasattr(base, "layers"):
        raise ValueError(f"the layers of {type(base).__name__} cannot be told apart: critic_layers must be left out")
    if layers is not None and layers < len(base.layers):
        base.layers = base.layers[:layers]
        base.config.num_hidden_layers = layers
    for parameter in base.parameters():
        parameter.grad = None
    return base
