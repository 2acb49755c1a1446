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
            agent = AGENTS[name](chain(), **settings)
            assert all(getattr(agent.config, key) == value for key, value in settings.items())
