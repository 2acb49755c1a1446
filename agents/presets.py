"""Published settings by name: `SPPO(env, **PRESETS["sppo"]["1.5b"])`; what they leave out is the default.

Those of language models are sized for them: batches of hundreds of prompts, learning rates of 1e-6.
"""

from __future__ import annotations

from typing import Any

from sppo.agents import remax, spo_chain, spo_tree

# The runs of arXiv 2604.08865: one pass, gradients clipped at 1.
_ONE_PASS: dict[str, Any] = {"learning_rate": 1e-6, "n_epochs": 1, "max_grad_norm": 1.0}
_SMALL = _ONE_PASS | {"episodes_per_update": 256, "n_minibatches": 2}
_LARGE = _ONE_PASS | {"episodes_per_update": 512, "n_minibatches": 16}

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
    # arXiv 2402.03300, section 4.2; one optimiser step per batch.
    "grpo": {
        "deepseekmath": {
            "learning_rate": 1e-6,
            "episodes_per_update": 1024,
            "num_generations": 64,
            "n_epochs": 1,
            "n_minibatches": 1,
            "kl_coef": 0.04,
            "aggregation": "sequence_mean",
        },
    },
    # As the rival in arXiv 2604.08865.
    "rloo": {
        "1.5b": _SMALL
        | {
            "episodes_per_update": 1280,
            "num_generations": 5,
            "kl_coef": 0.001,
            "kl_in": "reward",
            "kl_estimator": "k1",
        },
    },
    # arXiv 2503.14476, section 4.1: 512 prompts, 16 responses each; the last 4096 of 20480 tokens are penalised.
    "dapo": {
        "paper": {
            "learning_rate": 1e-6,
            "episodes_per_update": 8192,
            "num_generations": 16,
            "n_epochs": 1,
            "n_minibatches": 16,
            "overlong_buffer": 0.2,
        },
    },
    # arXiv 2507.18071, section 5.1: each batch in four minibatches.
    "gspo": {"paper": {"n_epochs": 1, "n_minibatches": 4}},
    # arXiv 2305.18290, appendix B.
    "dpo": {"paper": {"beta": 0.1, "learning_rate": 1e-6}},
    "remax": remax.PRESETS,
    "spo-chain": spo_chain.PRESETS,
    "spo-tree": spo_tree.PRESETS,
}
