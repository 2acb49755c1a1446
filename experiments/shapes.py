"""The shapes of transformers (the Llama and Qwen families): how many weights they have, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a transformer's configuration decides its memory."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    biases: bool = False

    @property
    def queries(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values, of all heads that have their own."""
        return self.kv_heads * self.head_dim

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        qkv = self.queries + 2 * self.keys
        matrices = self.hidden * (qkv + self.queries + 3 * self.intermediate)
        return matrices + 2 * self.hidden + (qkv if self.biases else 0)

    @property
    def outside(self) -> int:
        """Weights outside the layers, the output layer of a language model included."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def weights(self) -> int:
        """Of the language model."""
        return self.layers * self.layer + self.outside

    @property
    def body(self) -> int:
        """Of a critic: without the output layer, with a scalar head."""
        return self.layers * self.layer + self.vocab * self.hidden + 2 * self.hidden + 1

    def adapters(self, rank: int) -> int:
        """Of adapters on every matrix of every layer: A and B together, rank x (inputs + outputs)."""
        d, q, k, f = self.hidden, self.queries, self.keys, self.intermediate
        return self.layers * rank * (2 * (d + q) + 2 * (d + k) + 3 * (d + f))

    @staticmethod
    def of_config(config: Mapping[str, Any]) -> Shape:
        """From a config.json of transformers.

        Raises:
            ValueError: if it lacks what a shape needs.
        """
        try:
            heads = config["num_attention_heads"]
            return Shape(
                hidden=config["hidden_size"],
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                intermediate=config["intermediate_size"],
                vocab=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
                biases=str(config.get("model_type", "")).startswith("qwen2") or bool(config.get("attention_bias")),
            )
        except KeyError as missing:
            raise ValueError(f"the model's configuration has no {missing}, which its memory depends on") from None


SHAPES = {
    "r1-distill-qwen-1.5b": Shape(
        hidden=1536, layers=28, heads=12, kv_heads=2, head_dim=128, intermediate=8960, vocab=151936, biases=True
    ),
    "r1-distill-qwen-7b": Shape(
        hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocab=152064, biases=True
    ),
    "smollm2": Shape(
        hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152, tied=True
    ),
}
"""The models of the paper, and SmolLM2-135M."""


def shape_of(model: str) -> Shape:
    """The shape of a model by name, of those that ship, or of a save_pretrained folder.

    Raises:
        ValueError: for what is none of these.
    """
    from sppo.llm.sources import MODELS

    if model in SHAPES:
        return SHAPES[model]
    for folder in (MODELS / model, Path(model)):
        if (folder / "config.json").is_file():
            return Shape.of_config(json.loads((folder / "config.json").read_text()))
    raise ValueError(f"the shape of {model!r} is not known; known: {', '.join(SHAPES)}, and folders with a config.json")
