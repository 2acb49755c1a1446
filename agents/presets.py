"""Published settings by name: `SPPO(env, **PRESETS["sppo"]["1.5b"])`; what they leave out is the default.

All are of language models and sized for them: batches of hundreds of prompts, learning rates of 1e-6.
"""

from __future__ import annotations

from typing import Any

# As most trainers of language models have it.
_TEXT: dict[str, Any] = {"adam_eps": 1e-8, "max_grad_norm": 1.0}
_ONE_PASS = _TEXT | {"learning_rate": 1e-6, "n_epochs": 1}
_KL_IN_REWARD: dict[str, Any] = {"kl_coef": 0.001, "kl_in": "reward", "kl_estimator": "k1"}

# The runs of arXiv 2604.08865: batches of 256 and 512 prompts, in minibatches of 128 and 32.
_SMALL = _ONE_PASS | {"episodes_per_update": 256, "n_minibatches": 2, "weight_decay": 0.01}
_LARGE = _ONE_PASS | {"episodes_per_update": 512, "n_minibatches": 16, "weight_decay": 0.1}
_SMALL_GROUPS, _LARGE_GROUPS = (
    {
        "grpo": size | {"num_generations": 8, "episodes_per_update": 8 * size["episodes_per_update"]},
        "rloo": size | _KL_IN_REWARD | {"num_generations": 5, "episodes_per_update": 5 * size["episodes_per_update"]},
        # As many greedy episodes again.
        "remax": size | _KL_IN_REWARD | {"episodes_per_update": 2 * size["episodes_per_update"]},
    }
    for size in (_SMALL, _LARGE)
)

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "ppo": {
        "1.5b": _SMALL | {"critic_learning_rate": 1e-5, "critic_warmup": 50},
        "7b": _LARGE | {"critic_learning_rate": 1e-5, "critic_warmup": 50},
    },
    "sppo": {
        "1.5b": _SMALL | {"critic_learning_rate": 5e-6},
        "7b": _LARGE | {"critic_learning_rate": 1e-5},
        "7b-small-critic": _LARGE | {"critic_learning_rate": 5e-6},
    },
    "grpo": {
        "1.5b": _SMALL_GROUPS["grpo"],
        "7b": _LARGE_GROUPS["grpo"],
        # arXiv 2402.03300, section 4.2; one optimiser step per batch.
        "deepseekmath": _ONE_PASS
        | {
            "episodes_per_update": 1024,
            "num_generations": 64,
            "n_minibatches": 1,
            "kl_coef": 0.04,
            "aggregation": "sequence_mean",
        },
    },
    "rloo": {"1.5b": _SMALL_GROUPS["rloo"], "7b": _LARGE_GROUPS["rloo"]},
    "remax": {"1.5b": _SMALL_GROUPS["remax"], "7b": _LARGE_GROUPS["remax"]},
    # arXiv 2503.14476, section 4.1: 512 prompts, 16 responses each; the last 4096 of 20480 tokens are penalised.
    "dapo": {
        "paper": _ONE_PASS
        | {"episodes_per_update": 8192, "num_generations": 16, "n_minibatches": 16, "overlong_buffer": 0.2},
    },
    # arXiv 2507.18071, section 5.1: each batch in four minibatches.
    "gspo": {"paper": _TEXT | {"n_epochs": 1, "n_minibatches": 4}},
    # arXiv 2305.18290, appendix B.
    "dpo": {"paper": _TEXT | {"beta": 0.1, "learning_rate": 1e-6}},
    # arXiv 2410.01679, appendix, and its code; there eight of the 512 episodes share a prompt.
    "vineppo": {
        "paper": _TEXT
        | {
            "learning_rate": 1e-6,
            "episodes_per_update": 512,
            "n_epochs": 2,
            "n_minibatches": 8,
            "num_continuations": 9,
            "kl_coef": 1e-4,
            "normalize_advantage": True,
        },
    },
    # arXiv 2505.23564.
    "spo-chain": {"gsm8k": _TEXT | {"num_continuations": 9}, "math": _TEXT | {"num_continuations": 4}},
    # Likewise, but for the number of trees in an update, here one.
    "spo-tree": {
        "gsm8k": _TEXT | {"branching": (6, 6, 6), "segment_length": 30, "episodes_per_update": 216},
        "math": _TEXT | {"branching": (6, 6, 6), "segment_length": 600, "episodes_per_update": 216},
    },
}
