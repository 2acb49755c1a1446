"""docs/ALGORITHMS.md: its example runs, and it names every algorithm, setting and preset."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from small_agents import chain

from sppo.agents import AGENTS, AgentConfig, ControlSampler
from sppo.agents.config import make_config
from sppo.agents.presets import PRESETS
from sppo.agents.stack import can_stack


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "ALGORITHMS.md").read_text("utf-8")


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_example_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = dedent("\n".join(x for x in section(page, "Add an algorithm").splitlines() if x[:4] in ("", "    ")))
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    monkeypatch.setattr("sppo.agents.AGENTS", dict(AGENTS))
    example: Any = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", example)  # where dataclasses look for it
    exec(compile(code, "docs/ALGORITHMS.md", "exec"), example.__dict__)
    agent, kind = example.agent, example.Quantile
    assert agent.num_episodes == 640 and agent.n_updates == 10
    assert agent.config.q == 0.75 and agent.reference is not None
    held_out = np.arange(256)
    trained, fresh = (ControlSampler(chain(), policy=p).rollout(held_out) for p in (agent.policy, kind(chain()).policy))
    assert trained.success.float().mean() > fresh.success.float().mean() + 0.2
    env = chain()
    assert can_stack([kind(env, seed=seed) for seed in range(2)])
    agent.save(tmp_path)
    assert kind.load(tmp_path, chain()).n_updates == 10
    with pytest.raises(ValueError, match=r"q must be in \[0, 1\], got 2"):
        kind(chain(), q=2)


def test_every_algorithm_has_its_row_and_its_file(page: str, root: Path) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\]\(\.\./(agents/\w+\.py)\)", section(page, "The table"), re.M)
    assert [name for name, _ in rows] == list(dict.fromkeys(name for name, _ in rows))
    assert {name for name, _ in rows} == set(AGENTS)
    for name, file in rows:
        assert AGENTS[name].__module__ == f"sppo.agents.{Path(file).stem}" and (root / file).exists()


def test_every_shared_setting_is_in_a_table(page: str) -> None:
    names = set(re.findall(r"`(\w+)`", section(page, "Switches that all have") + section(page, "Names elsewhere")))
    assert {field.name for field in fields(AgentConfig)} - {"seed"} <= names


def test_presets_are_listed_and_make_agents(page: str) -> None:
    text = section(page, "Published settings")
    assert set(PRESETS) <= set(AGENTS)
    for name, presets in PRESETS.items():
        [row] = re.findall(rf"^\|[^|]*`{name}`[^|]*\|(.*)$", text, re.M)
        for preset, settings in presets.items():
            assert f"`{preset}`" in row
            AGENTS[name](chain(), **settings)


# Published figures, literally: (name of the algorithm, of the preset, or None for the defaults) and settings.
PUBLISHED: dict[tuple[str, str | None], dict[str, Any]] = {
    ("ppo", None): {"clip_range": 0.2, "gamma": 1.0, "gae_lambda": 1.0, "kl_coef": 0.0, "normalize_advantage": False},
    ("sppo", None): {"clip_range": 0.2, "kl_coef": 0.0, "normalize_advantage": False, "critic_warmup": 0},
    ("ppo-bce", None): {"value_loss": "bce"},
    ("grpo", None): {"num_generations": 8, "std_correction": 0},
    ("drgrpo", None): {"aggregation": "constant_horizon"},
    ("dapo", None): {"clip_range": 0.2, "clip_range_high": 0.28, "aggregation": "token_mean"},
    ("gspo", None): {"clip_range": 3e-4, "clip_range_high": 4e-4, "aggregation": "sequence_mean"},
    ("vineppo", None): {"num_continuations": 9},
    ("spo-chain", None): {"cut_threshold": 0.9, "mask_threshold": 0.9, "cut_interval": 5, "num_continuations": 9},
    ("spo-tree", None): {"mask_threshold": 0.9, "scale_by_std": False},
    # Batches of 256 or 512 prompts in minibatches of 128 or 32, one pass.
    ("sppo", "1.5b"): {
        "learning_rate": 1e-6,
        "critic_learning_rate": 5e-6,
        "episodes_per_update": 256,
        "n_minibatches": 2,
        "n_epochs": 1,
        "critic_warmup": 0,
    },
    ("sppo", "7b"): {"critic_learning_rate": 1e-5, "episodes_per_update": 512, "n_minibatches": 16, "n_epochs": 1},
    ("sppo", "7b-small-critic"): {"critic_learning_rate": 5e-6},
    ("ppo", "1.5b"): {"critic_learning_rate": 1e-5, "critic_warmup": 50, "gamma": 1.0, "gae_lambda": 1.0},
    ("ppo", "7b"): {"critic_learning_rate": 1e-5, "critic_warmup": 50, "episodes_per_update": 512},
    # 256 and 512 prompts, with 8 or 5 responses to each, or one and a greedy one.
    ("grpo", "1.5b"): {"num_generations": 8, "episodes_per_update": 2048, "n_minibatches": 2, "kl_coef": 0.0},
    ("grpo", "7b"): {"num_generations": 8, "episodes_per_update": 4096, "n_minibatches": 16, "kl_coef": 0.0},
    ("rloo", "1.5b"): {"num_generations": 5, "episodes_per_update": 1280, "kl_coef": 0.001, "kl_in": "reward"},
    ("rloo", "7b"): {"num_generations": 5, "episodes_per_update": 2560, "kl_coef": 0.001, "kl_in": "reward"},
    ("remax", "1.5b"): {"episodes_per_update": 512, "kl_coef": 0.001, "kl_in": "reward", "learning_rate": 1e-6},
    ("remax", "7b"): {"episodes_per_update": 1024, "kl_coef": 0.001, "kl_in": "reward", "n_minibatches": 16},
    ("grpo", "deepseekmath"): {"num_generations": 64, "kl_coef": 0.04, "aggregation": "sequence_mean"},
    ("dapo", "paper"): {"num_generations": 16, "overlong_buffer": 0.2, "clip_range_high": 0.28},
    ("gspo", "paper"): {"clip_range": 3e-4, "clip_range_high": 4e-4, "n_minibatches": 4},
    ("dpo", "paper"): {"beta": 0.1, "learning_rate": 1e-6},
    ("vineppo", "paper"): {"num_continuations": 9, "kl_coef": 1e-4, "episodes_per_update": 512, "n_epochs": 2},
    ("spo-chain", "gsm8k"): {"num_continuations": 9, "cut_interval": 5, "mask_threshold": 0.9},
    ("spo-chain", "math"): {"num_continuations": 4, "cut_interval": 5, "mask_threshold": 0.9},
    ("spo-tree", "gsm8k"): {"branching": (6, 6, 6), "segment_length": 30, "mask_threshold": 0.9},
    ("spo-tree", "math"): {"branching": (6, 6, 6), "segment_length": 600, "mask_threshold": 0.9},
}


def test_published_figures() -> None:
    assert {key for key in PUBLISHED if key[1] is not None} == {(a, p) for a, known in PRESETS.items() for p in known}
    for (name, preset), figures in PUBLISHED.items():
        config = make_config(AGENTS[name].Config, {} if preset is None else PRESETS[name][preset])
        assert {key: getattr(config, key) for key in figures} == figures, (name, preset)
        if preset is not None:
            assert (config.adam_eps, config.max_grad_norm) == (1e-8, 1.0), (name, preset)
            decay = 0.01 if preset == "1.5b" else 0.1 if preset.startswith("7b") else 0.0
            assert config.weight_decay == decay, (name, preset)
