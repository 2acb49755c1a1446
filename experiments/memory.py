"""The memory of a run on text, before it starts: what each rank holds, part by part, and whether the device has it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

Algorithm = Literal["ppo", "sppo", "sppo-small", "grpo"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)

LOGITS = 2**22  # held at a time by TextPolicy
SHORT = 128  # tokens up to which attention is plain on a CPU
PREFILL = 8192  # tokens of prompts that vLLM reads at a time
WIDE = 4  # bytes of a number in weights that learn, their gradients and each of Adam's two moments
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a transformer's configuration decides its memory (the Llama and Qwen families)."""

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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What besides the models' shapes decides the memory of a run.

    Args:
        ranks: that share the run; with more than one, networks are sharded.
        rows: each rank's, in one forward and backward pass.
        value_rows: each rank's, in one pass of the critic outside autograd.
        generated: each rank's responses that are generated side by side.
        prompt: tokens of a prompt.
        response: tokens of a response.
        dtype: of the arithmetic.
        checkpointing: only the inputs of layers are kept for the backward pass.
        offload: weights, gradients and moments rest in the memory of the CPU.
        lora: rank of the policy's adapters; None where the whole policy learns.
        critic: what of the critic learns.
        critic_lora: rank of its adapters.
        reference: a frozen copy of the policy is kept (a KL term, DPO).
        engine: "hf" generates with the policy's weights (sharded, with a whole copy of them), "vllm" with its own.
        kv_cache_gib: what vLLM takes for keys and values; by default all that the responses could need.
        on_gpu: where attention never keeps a table of all pairs of tokens.
    """

    ranks: int = 1
    rows: int = 1
    value_rows: int = 1
    generated: int = 64
    prompt: int = 512
    response: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    offload: bool = False
    lora: int | None = None
    critic: Literal["full", "lora", "head"] = "full"
    critic_lora: int = 16
    reference: bool = False
    engine: Literal["hf", "vllm"] = "hf"
    kv_cache_gib: float | None = None
    on_gpu: bool = False

    @property
    def narrow(self) -> int:
        """Bytes of a number in the arithmetic."""
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Plan:
    """Bytes of one rank."""

    algorithm: str
    held: dict[str, int]
    """What is there all the time: weights, gradients and optimizer of the policy, and all that of the critic."""
    phases: dict[str, dict[str, int]]
    """What comes and goes with generation, the critic's values, and the two updates: one of them at a time."""

    @property
    def peak(self) -> int:
        return sum(self.held.values()) + max(sum(parts.values()) for parts in self.phases.values())

    def most(self, part: str) -> int:
        """The most of a part in any phase."""
        return max(parts.get(part, 0) for parts in self.phases.values())


def plan(policy: Shape, setting: Setting, algorithm: Algorithm, critic: Shape | None = None) -> Plan:
    """What one rank needs.

    Args:
        policy: its shape.
        setting: everything else.
        algorithm: "sppo-small" is SPPO whose critic has a smaller body than the policy.
        critic: the shape of the critic's; by default the policy's.
    """
    s, length = setting, setting.prompt + setting.response
    body = critic or policy
    learn = policy.weights if s.lora is None else policy.adapters(s.lora)
    held = {"weights": policy.weights + (0 if s.lora is None else learn), "gradients": learn, "optimizer": 2 * learn}
    if s.reference:
        held["weights"] += learn if s.ranks == 1 else policy.weights
    if algorithm != "grpo":
        own = {"full": body.body, "lora": body.adapters(s.critic_lora) + body.hidden + 1, "head": body.hidden + 1}
        lent = s.lora is not None and critic is None and s.ranks == 1  # frozen weights of the policy, read by both
        frozen = 0 if s.critic == "full" or lent else body.body
        held["critic"] = 4 * own[s.critic] + frozen
    resting = {name: -(-n * WIDE // s.ranks) for name, n in held.items()}
    if s.offload:
        resting = dict.fromkeys(resting, 0)
    if s.engine == "hf" and s.ranks > 1:
        resting["engine"] = policy.weights * WIDE

    generation = _generation(policy, s)
    if s.engine == "vllm":
        generation["engine"] = policy.weights * s.narrow
    phases: dict[str, dict[str, int]] = {
        "generation": generation,
        "policy": _update(policy, s, s.rows * length, length, True, policy.outside),
    }
    chunk = min(LOGITS, s.rows * s.response * policy.vocab)
    phases["policy"]["logits"] = 5 * WIDE * chunk
    if algorithm != "grpo":
        seen = length if algorithm == "ppo" else s.prompt
        outside = body.vocab * body.hidden
        phases["values"] = {"activations": int(s.value_rows * seen * _passing(body, s, seen))}
        phases["critic"] = _update(body, s, s.rows * seen, seen, s.critic != "head", outside)
    return Plan(algorithm, resting, phases)


def _kept(shape: Shape, s: Setting, length: int) -> float:
    """Bytes that one layer keeps of a token for the backward pass.

    Of each of the two norms its input, that normalised, and its output; of attention queries, keys, values and output,
    with the probabilities of all pairs where it is plain; of the perceptron its gate before and after the activation,
    the other factor and the product.
    """
    d, q, k, f, n = shape.hidden, shape.queries, shape.keys, shape.intermediate, s.narrow
    # In bfloat16 a sharded layer reads narrow inputs; else they are wide, with a narrow copy for each of 5 products.
    norms = 6 * d * 4 if n == 4 else (2 * 8 * d if s.ranks > 1 else 2 * 8 * d + 5 * d * 2)
    if _plain(s, length):
        return norms + n * (4 * q + 4 * f) + shape.heads * length * (4 if n == 4 else 6)
    return norms + n * (2 * q + 2 * k + 4 * f) + 4 * shape.heads


def _passing(shape: Shape, s: Setting, length: int) -> float:
    """Bytes of a token that come and go while one layer computes."""
    pairs = 3 * 4 * shape.heads * length if _plain(s, length) else 4 * 2 * shape.queries
    return max(3 * s.narrow * shape.intermediate, pairs) + 3 * 4 * shape.hidden


def _plain(s: Setting, length: int) -> bool:
    return not s.on_gpu and length <= SHORT


def _update(shape: Shape, s: Setting, tokens: int, length: int, learns: bool, outside: int) -> dict[str, int]:
    """The forward and backward passes of one microbatch on one rank."""
    layer, ends = _kept(shape, s, length), 3 * 4 * shape.hidden
    if not learns:  # nothing is kept of a frozen body
        kept = 0.0
    elif s.checkpointing:
        kept = shape.layers * shape.hidden * (s.narrow if s.ranks > 1 else 4) + layer
    else:
        kept = shape.layers * layer
    parts = {"activations": int(tokens * (kept + _passing(shape, s, length) + ends))}
    if s.ranks > 1 or s.offload:
        # Two layers are gathered ahead, with the buffer that they arrive in; gradients are whole until they are summed.
        whole = outside + 2 * shape.layer + max(outside, shape.layer)
        parts["gathered"] = s.narrow * whole + (s.narrow + WIDE) * max(outside, shape.layer)
    elif s.narrow != WIDE:
        parts["gathered"] = s.narrow * shape.layers * shape.layer  # autocast keeps narrow copies of the matrices
    return parts


def _generation(shape: Shape, s: Setting) -> dict[str, int]:
    """Keys and values of all tokens, the probabilities of one step, and the reading of the prompts."""
    length, read = s.prompt + s.response, s.generated * s.prompt
    cache = s.generated * length * 2 * shape.layers * shape.keys * s.narrow
    if s.engine == "vllm":
        read = min(read, PREFILL)
        cache = cache if s.kv_cache_gib is None else int(s.kv_cache_gib * GIB)
    return {
        "KV cache": cache,
        "logits": s.generated * shape.vocab * 4 * WIDE,
        "activations": int(read * _passing(shape, s, s.prompt)),
    }


PARTS = ("weights", "gradients", "optimizer", "critic", "engine", "activations", "logits", "KV cache", "gathered")


def table(plans: list[Plan]) -> str:
    """Parts by plan in GiB; of what comes and goes the most that any phase has, so that columns exceed their peak."""
    rows = [["GiB per rank", *(p.algorithm for p in plans)]]
    for part in PARTS:
        values = [p.held.get(part, 0) + p.most(part) for p in plans]
        if any(values):
            rows.append([part, *(f"{v / GIB:.2f}" for v in values)])
    rows.append(["peak", *(f"{p.peak / GIB:.2f}" for p in plans)])
    rows.append(["in", *(max(p.phases, key=lambda name, p=p: sum(p.phases[name].values())) for p in plans)])  # type: ignore[misc]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(lines)


def check_fits(made: Plan, device_bytes: int) -> None:
    """Refuse a plan that needs more than a device has.

    Raises:
        ValueError: with the numbers, and what helps.
    """
    if made.peak <= device_bytes:
        return
    parts = {name: made.held.get(name, 0) + made.most(name) for name in PARTS}
    largest = sorted((name for name in parts if parts[name]), key=lambda name: -parts[name])[:4]
    raise ValueError(
        f"{made.algorithm} needs {made.peak / GIB:.1f} GiB per rank and the device has {device_bytes / GIB:.1f} GiB: "
        + ", ".join(f"{name} {parts[name] / GIB:.1f}" for name in largest)
        + "; more ranks, a smaller microbatch, checkpointing, bfloat16, a smaller critic, LoRA or offload would help"
    )


def device_bytes(ranks_here: int = 1) -> int:
    """Memory of this process's GPU, or its share of what the machine has free."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    return free // ranks_here


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Print what each rank's memory will hold, before anything is run."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A save_pretrained folder, a model that ships, or one of: r1-distill-qwen-1.5b, r1-distill-qwen-7b, smollm2."""
    small_critic: str | None = None
    """The model whose shape the small critic has; by default MODEL's."""
    small_critic_layers: int | None = None
    """Of its layers, how many the small critic keeps; by default a quarter of MODEL's, all of another's."""
    setting: Annotated[Setting, tyro.conf.arg(name="")] = field(default_factory=Setting)
    device_gib: float | None = None
    """Refuse what does not fit into so much."""

    def __call__(self) -> None:
        policy = shape_of(self.model)
        small = shape_of(self.small_critic) if self.small_critic else policy
        layers = self.small_critic_layers or (small.layers if self.small_critic else max(1, policy.layers // 4))
        small = replace(small, layers=min(small.layers, layers))
        critics: dict[Algorithm, Shape | None] = {"sppo-small": small}
        plans = [plan(policy, self.setting, name, critics.get(name)) for name in ALGORITHMS]
        print(table(plans))
        if self.device_gib is not None:
            for made in plans:
                check_fits(made, int(self.device_gib * GIB))
