"""Start models of the studies on text: how often they are taught to miss, and that they are of the runs' tasks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppo.experiments.evidence import text_starts
from sppo.experiments.evidence.studies import STUDIES
from sppo.experiments.evidence.text_starts import (
    SUCCESSES,
    TERMS,
    chains_start,
    make_text_starts,
    recipes,
    step_miss,
)
from sppo.experiments.tasks import task
from sppo.llm.tasks.arithmetic import ArithmeticTask


def test_chances_of_a_step_to_miss() -> None:
    """Two steps at 1/2 each come out right in 1/4 of chains; eleven at 0.9 in 0.9^11 = 0.314."""
    assert step_miss(3, 0.25) == pytest.approx(0.5)
    assert step_miss(12, 0.9**11) == pytest.approx(0.1)


@pytest.mark.parametrize("horizon", TERMS)
def test_demonstrations_of_chains_fit_and_come_out_right_so_often(horizon: int) -> None:
    """Of 1000 chains; three standard errors of 0.5 are 0.047."""
    terms = TERMS[horizon]
    chains = ArithmeticTask(terms=(terms, terms), operands=(1, 20), train_size=1000, test_size=1)
    prompts, rng = chains.prompts("train"), np.random.default_rng(0)
    for success in SUCCESSES:
        options = recipes()[chains_start(horizon, success)]["last_options"]
        shown = [chains.demonstration(prompt, rng, **options) for prompt in prompts]
        right = [chains.score(prompt, said).reward for prompt, said in zip(prompts, shown, strict=True)]
        assert np.mean(right) == pytest.approx(success, abs=3 * np.sqrt(success * (1 - success) / 1000))
        assert max(map(len, shown)) < horizon


@pytest.mark.parametrize("name", ["text", "text-map"])
def test_runs_start_from_models_taught_their_task(name: str) -> None:
    """The options of the task and the token budget are those of the runs."""
    made = recipes()
    for _, config in STUDIES[name].runs():
        if config.start == "auto":
            continue  # from a model that ships
        settings, about = made[Path(config.start)], task(config.env_id)
        assert config.env_id == f"text/{settings['task']}"
        assert settings["task_options"] == {**about.env_kwargs, **config.env_kwargs}
        assert settings["max_completion_length"] == {**about.text, **config.text}["max_completion_length"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """What is taught, in a folder without any model: nothing but the record is written."""
    made: list[Path] = []

    def fine_tune(config: Any, out: Path, **_: Any) -> None:
        made.append(out)
        out.mkdir(parents=True)
        (out / "sft.json").write_text(json.dumps({"config": asdict(config)}))

    monkeypatch.setattr("sppo.llm.sft.fine_tune", fine_tune)
    monkeypatch.chdir(tmp_path)
    return made


def test_what_is_missing_is_made_after_what_it_starts_from(made: list[Path]) -> None:
    cells = [chains_start(horizon, 0.5) for horizon in TERMS]
    make_text_starts(cells[1:])
    assert made == [text_starts.SKILLED, *cells[1:]]
    make_text_starts(cells)
    assert made[3:] == cells[:1]


@pytest.mark.parametrize("changed", [chains_start(24, 0.5), text_starts.SKILLED])
def test_a_model_of_another_recipe_is_refused(changed: Path, made: list[Path]) -> None:
    """It, and what starts from it; how often it was looked at while it learned may differ."""
    make_text_starts([chains_start(24, 0.5)])
    record = json.loads((changed / "sft.json").read_text())
    record["config"] |= {"check_every": 7, "check_prompts": 0, "check_demonstrations": 1}
    (changed / "sft.json").write_text(json.dumps(record))
    make_text_starts([chains_start(24, 0.5)])
    record["config"]["warmup"] = 31
    (changed / "sft.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{changed} was made with warmup = 31, and 30 is asked for: delete it"):
        make_text_starts([chains_start(24, 0.5), chains_start(64, 0.5)])
    assert len(made) == 2, "nothing is made before all is checked"
