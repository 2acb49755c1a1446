"""The memory of a run on text, before it starts: what each rank holds, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sppo.experiments.shapes import Shape
from sppo.experiments.text_config import check_over
from sppo.llm.limits import LOGITS, SHORT, TOKENS

Sees = Literal["steps", "start"] | None

PREFILL = 8192  # tokens of prompts that vLLM reads at a time
WIDE = 4  # bytes of a number in weights that learn, their gradients and each of Adam's two moments
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What besides the models' shapes decides the memory of a run.

    Args:
        ranks: that share the run; with more than one, networks are sharded.
        sharded: so they are on one rank, as torchrun starts it.
        shard_over: ranks that the policy is cut over; by default all.
        critic_shard_over: ranks that the critic is cut over.
        rows: each rank's, in one forward and backward pass.
        critic_rows: the same of the critic; by default `rows`.
        value_rows: each rank's, in one pass outside autograd, as far as TOKENS allows.
        generated: each rank's responses that are generated side by side.
        prompt: tokens of a prompt.
        asked: tokens of the longest prompt that is only answered, in an evaluation; by default `prompt`.
        response: tokens of a response.
        dtype: of the arithmetic.
        engine_dtype: of what generates: vLLM's copy, keys and values; by default `dtype`.
        checkpointing: only the inputs of layers are kept for the backward pass.
        offload: beside a GPU, weights, gradients and moments rest in the memory of the CPU; of sharded networks alone.
        lora: rank of the policy's adapters; None where the whole policy learns.
        critic: what of the critic learns.
        critic_lora: rank of its adapters.
        other_body: the critic starts from another model than the policy, so that beside adapters frozen weights of its
            own are there too.
        reference: a frozen copy of the policy is kept (a KL term, DPO).
        engine: "hf" generates with the policy's weights (sharded, with a whole copy of them), "vllm" with its own,
            which on a CPU stay there during updates; "apart" is a vLLM on GPUs of its own.
        kv_cache_gib: what vLLM takes for keys and values; by default 1 on a CPU, and on a GPU what `engine_gib` leaves.
        engine_gib: what vLLM takes of a GPU in all; by default what weights and all responses could need.
        on_gpu: where attention never keeps a table of all pairs of tokens.
    """

    ranks: int = 1
    sharded: bool = False
    shard_over: int | None = None
    critic_shard_over: int | None = None
    rows: int = 1
    critic_rows: int | None = None
    value_rows: int = 1
    generated: int = 64
    prompt: int = 512
    asked: int | None = None
    response: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    engine_dtype: Literal["float32", "bfloat16"] | None = None
    checkpointing: bool = False
    offload: bool = False
    lora: int | None = None
    critic: Literal["full", "lora", "head"] = "full"
    critic_lora: int = 16
    other_body: bool = False
    reference: bool = False
    engine: Literal["hf", "vllm", "apart"] = "hf"
    kv_cache_gib: float | None = None
    engine_gib: float | None = None
    on_gpu: bool = False

    def __post_init__(self) -> None:
        check_over(self)

    @property
    def narrow(self) -> int:
        """Bytes of a number in the arithmetic."""
        return 4 if self.dtype == "float32" else 2

    def over(self, part: str) -> int:
        """How many ranks a part is cut over."""
        own = self.critic_shard_over if part == "critic" else self.shard_over
        return own or self.ranks

    @property
    def shards(self) -> bool:
        return self.sharded or self.offload or self.ranks > 1

    @property
    def offloads(self) -> bool:
        """Without a GPU there is no other memory to rest in."""
        return self.offload and self.on_gpu


@dataclass(frozen=True)
class Plan:
    """Bytes of one rank."""

    name: str
    """Of whose plan it is."""
    held: dict[str, int]
    """What is there all the time: weights, gradients and optimizer of the policy, and all that of the critic."""
    phases: dict[str, dict[str, int]]
    """What comes and goes with generation, the critic's values, the two updates, and the writing of the policy: one of
    them at a time."""
    host: int = 0
    """What rests in the memory of the CPU beside a GPU."""

    @property
    def peak(self) -> int:
        return sum(self.held.values()) + max(sum(parts.values()) for parts in self.phases.values())

    def most(self, part: str) -> int:
        """The most of a part in any phase."""
        return max(parts.get(part, 0) for parts in self.phases.values())


def plan(policy: Shape, setting: Setting, critic_sees: Sees, critic: Shape | None = None, *, name: str = "it") -> Plan:
    """What one rank needs.

    Args:
        policy: its shape.
        setting: everything else.
        critic_sees: what the algorithm's critic reads: the prompt ("start"), every token ("steps"), or there is none.
        critic: the shape of the critic's body; by default the policy's.
        name: of whose plan it is, for tables and messages.
    """
    s, length = setting, setting.prompt + setting.response
    body = critic or policy
    learn = policy.weights if s.lora is None else policy.adapters(s.lora)
    held = {"weights": policy.weights + (0 if s.lora is None else learn), "optimizer": 2 * learn}
    gradients = {"policy": learn}
    if s.reference:
        held["weights"] += policy.weights if s.shards else learn
    if critic_sees is not None:
        own = {"full": body.body, "lora": body.adapters(s.critic_lora) + body.hidden + 1, "head": body.hidden + 1}
        lent = s.lora is not None and not s.other_body and not s.shards
        frozen = 0 if s.critic == "full" or lent else body.body
        held["critic"] = 3 * own[s.critic] + frozen
        gradients["critic"] = own[s.critic]
    if not s.shards:  # ranks hold none between updates
        held["gradients"] = gradients.pop("policy")
        if "critic" in gradients:
            held["critic"] += gradients.pop("critic")
    resting = {name: -(-n * WIDE // s.over(name)) for name, n in held.items()}
    passing = {name: -(-n * WIDE // s.over(name)) for name, n in gradients.items()}
    host = 0
    if s.offloads:
        host = sum(resting.values()) + max(passing.values())
        resting, passing = dict.fromkeys(resting, 0), dict.fromkeys(passing, 0)
    if s.engine == "hf" and s.shards:
        resting["engine"] = policy.weights * WIDE

    generation = _generation(policy, s)
    if s.engine == "vllm" and not s.on_gpu:  # where it cannot sleep
        resting |= {part: generation.pop(part) for part in ("engine", "KV cache")}
    phases: dict[str, dict[str, int]] = {
        "generation": generation,
        "policy": _update(policy, s, s.rows * length, True, policy.outside),
    }
    chunk = min(LOGITS, s.rows * s.response * policy.vocab)
    phases["policy"]["logits"] = 5 * WIDE * chunk
    if s.reference or s.engine != "hf" or s.dtype != "float32":  # then log-probabilities are computed again
        again = int(_read(s, length) * _passing(policy, s, length))
        phases["log-probabilities"] = {"activations": again, "logits": 5 * WIDE * chunk}
    if critic_sees is not None:
        seen = length if critic_sees == "steps" else s.prompt
        outside = body.vocab * body.hidden
        phases["values"] = {"activations": int(_read(s, seen) * _passing(body, s, seen))}
        phases["critic"] = _update(body, s, (s.critic_rows or s.rows) * seen, s.critic != "head", outside)
    phases["saving"] = _saving(policy, s)
    for phase, n in passing.items():
        phases[phase]["gradients"] = n
    return Plan(name, resting, phases, host)


def _read(s: Setting, seen: int) -> int:
    """Tokens in one pass outside autograd."""
    return min(s.value_rows * seen, max(seen, TOKENS))


def _kept(shape: Shape, s: Setting) -> float:
    """Bytes that one layer keeps of a token for the backward pass.

    Of each of the two norms its input, that normalised, and its output; of attention queries, keys, values and output;
    of the perceptron its gate before and after the activation, the other factor and the product.
    """
    d, q, k, f, n = shape.hidden, shape.queries, shape.keys, shape.intermediate, s.narrow
    # In bfloat16 a sharded layer reads narrow inputs; else they are wide, with a narrow copy for each of 5 products.
    norms = 6 * d * 4 if n == 4 else (2 * 8 * d if s.shards else 2 * 8 * d + 5 * d * 2)
    return norms + n * (2 * q + 2 * k + 4 * f) + 4 * shape.heads


def _passing(shape: Shape, s: Setting, length: int | None = None) -> float:
    """Bytes of a token that come and go while one layer computes; outside autograd, attention to rows of a short
    `length` is plain on a CPU, with the probabilities of all pairs."""
    pairs = 4 * 2 * shape.queries
    if length is not None and length <= SHORT and not s.on_gpu:
        pairs = 3 * 4 * shape.heads * length
    return max(3 * s.narrow * shape.intermediate, pairs) + 3 * 4 * shape.hidden


def _update(shape: Shape, s: Setting, tokens: int, learns: bool, outside: int) -> dict[str, int]:
    """The forward and backward passes of one microbatch on one rank."""
    layer, ends = _kept(shape, s), 3 * 4 * shape.hidden
    if not learns:  # nothing is kept of a frozen body
        kept = 0.0
    elif s.checkpointing:
        kept = shape.layers * shape.hidden * (s.narrow if s.shards else 4) + layer
    else:
        kept = shape.layers * layer
    parts = {"activations": int(tokens * (kept + _passing(shape, s) + ends))}
    if s.shards:
        # Two layers are gathered ahead, with the buffer that they arrive in; gradients are whole until they are summed.
        whole = outside + 2 * shape.layer + max(outside, shape.layer)
        parts["gathered"] = s.narrow * whole + (s.narrow + WIDE) * max(outside, shape.layer)
    elif s.narrow != WIDE:
        parts["gathered"] = s.narrow * shape.layers * shape.layer  # autocast keeps narrow copies of the matrices
    return parts


def _saving(shape: Shape, s: Setting) -> dict[str, int]:
    """The whole policy once more: gathered or copied in the memory of the CPU, and copied where it is to merge adapters
    into it. Of ranks, the first's alone."""
    whole = WIDE * (shape.weights + (0 if s.lora is None else shape.adapters(s.lora)))
    merges = s.lora is not None
    if s.on_gpu:
        return {"copy": whole if merges and not s.shards else 0}
    return {"copy": 2 * whole if merges and s.shards else whole}


def _generation(shape: Shape, s: Setting) -> dict[str, int]:
    """Keys and values of all tokens, the probabilities of one step, and the reading of the prompts."""
    if s.engine == "apart":
        return {}
    s = replace(s, dtype=s.engine_dtype or s.dtype)
    prompt = max(s.prompt, s.asked or 0)
    length, read = prompt + s.response, s.generated * prompt
    cache = s.generated * length * 2 * shape.layers * shape.keys * s.narrow
    parts = {"logits": s.generated * shape.vocab * 4 * WIDE}
    if s.engine == "vllm":
        read = min(read, PREFILL)
        own_output = shape.vocab * shape.hidden if shape.tied else 0  # vLLM's copy is never tied
        parts["engine"] = (shape.weights + own_output) * s.narrow
    parts["activations"] = int(read * _passing(shape, s, prompt))
    if s.engine == "vllm":
        given = s.kv_cache_gib if s.on_gpu else s.kv_cache_gib or 1
        if given is not None:
            cache = int(given * GIB)
        elif s.engine_gib is not None:
            cache = max(0, int(s.engine_gib * GIB) - sum(parts.values()))
    return {"KV cache": cache, **parts}
