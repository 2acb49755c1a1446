"""`sppo study`: the start policies that its runs need are made, and no others."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fake_runs import write_run

from sppo.experiments.evidence import commands
from sppo.experiments.evidence.commands import EXPERTS, StudyCommand, make_starts
from sppo.experiments.evidence.studies import CARTPOLE, CARTPOLE_SEEDS, STARTS_MADE
from sppo.experiments.experts import ExpertConfig, expert_config
from sppo.experiments.packed import unpack
from sppo.experiments.sft import SFTConfig, WindowMissed, sft_config

FOLDER = STARTS_MADE / "25" / "0.05" / "PrecisionCartPole-v0"
CONFIG = sft_config(CARTPOLE, env_kwargs={"horizon": 25}, low=0.05, high=0.2)


class Asked(Exception):
    """For start policies, which are not made here."""


def test_only_the_starts_of_the_chosen_runs_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(wanted: set[Path]) -> None:
        raise Asked(wanted)

    monkeypatch.setattr(commands, "make_starts", ask)
    monkeypatch.setattr(commands, "make_text_starts", ask)
    for name, only, wanted in (
        ("cartpole-map", "25/0.05/ppo", FOLDER),
        ("text", "spell_backward/ppo", STARTS_MADE / "text" / "spell_backward"),
    ):
        with pytest.raises(Asked) as asked:
            StudyCommand(name=name, only=only)()
        assert asked.value.args == ({wanted},)


def test_runs_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="no run of chain-map begins with '9'; the first is 10/0.01/ppo/seed0"):
        StudyCommand(name="chain-map", only="9")()


def test_all_names_are_packed_and_nothing_else_that_lies_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The base of CartPole's dials has seven names, of which the first is a folder."""
    first = "PrecisionCartPole-v0/episodes per update/64"
    for below in (first, "PrecisionCartPole-v0/an older dial/1"):
        write_run(tmp_path / below, "ppo", 0)
    monkeypatch.setattr(commands, "execute", lambda *_, **__: None)
    StudyCommand(name="dials", only="PrecisionCartPole-v0/critic warm-up/0/ppo/seed0", out=tmp_path)()
    packed = {run.name: run for run in unpack(tmp_path / "dials.json.gz")}
    dials = (
        "critic learning rate/0.001",
        "critic warm-up/0",
        "gae lambda/1",
        "reward noise/0",
        "shared network/0",
        "start spread/0.05",
    )
    names = {f"PrecisionCartPole-v0/{dial}/ppo/seed0" for dial in dials}
    assert packed.keys() == {f"{first}/ppo/seed0", *names}
    assert len({run.success_rate for run in packed.values()}) == 1


def write(config: SFTConfig) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{config.seed % 100}.safetensors").touch()
    (FOLDER / f"{config.seed % 100}.json").write_text(json.dumps({"config": asdict(config)}))


def test_starts_that_were_cloned_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The seed may be another, where the file's own missed the window; without anything missing no expert is needed."""
    monkeypatch.chdir(tmp_path)
    for seed in CARTPOLE_SEEDS:
        write(replace(CONFIG, seed=seed + 100 * (seed == 3)))
    make_starts({FOLDER})
    write(replace(CONFIG, seed=4, high=0.3))
    with pytest.raises(ValueError, match=f"{FOLDER} was made with high = 0.3, and 0.2 is asked for: delete it"):
        make_starts({FOLDER})
    (FOLDER / "4.json").unlink()
    with pytest.raises(ValueError, match=f"cannot read how {FOLDER} was made from 4.json"):
        make_starts({FOLDER})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ExpertConfig]:
    """The experts that are trained, in a folder without any: nothing but their records and empty files are written."""
    asked: list[ExpertConfig] = []

    def train_expert(env_id: str, out: Path, *, config: ExpertConfig) -> None:
        asked.append(config)
        out.mkdir(parents=True)
        (out / "expert.json").write_text(json.dumps({"config": asdict(config)}))
        (out / "episodes.safetensors").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sppo.experiments.experts.train_expert", train_expert)
    monkeypatch.setattr(commands, "_make_start", lambda *_: None)
    return asked


def test_an_expert_is_trained_once_and_one_that_was_trained_otherwise_is_refused(asked: list[ExpertConfig]) -> None:
    for _ in range(2):
        make_starts({FOLDER})
    assert asked == [expert_config(CARTPOLE, env_kwargs={"horizon": 25})]
    record = EXPERTS / "h25" / "PrecisionCartPole-v0" / "expert.json"
    record.write_text(json.dumps({"config": asdict(replace(asked[0], gamma=0.9))}))
    with pytest.raises(ValueError, match=f"{record.parent} was made with gamma = 0.9, and 0.98 is asked for: delete"):
        make_starts({FOLDER})
    record.unlink()
    with pytest.raises(ValueError, match=f"cannot read how {record.parent} was made from expert.json"):
        make_starts({FOLDER})
    assert len(asked) == 1


def test_another_seed_is_tried_only_where_the_window_was_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def clone(config: SFTConfig, demonstrations: dict[str, object], file: Path) -> None:
        tried.append(config.seed)
        if not demonstrations:
            raise ValueError("the expert's episodes lack actions")
        if config.seed < 200:
            raise WindowMissed("no policy could be found")

    monkeypatch.setattr("sppo.experiments.sft.clone", clone)
    monkeypatch.setattr("sppo.experiments.sft.read_demonstrations", lambda _: {"actions": []})
    commands._make_start(CONFIG, Path(), Path("7.safetensors"))
    assert tried == [7, 107, 207]
    monkeypatch.setattr("sppo.experiments.sft.read_demonstrations", lambda _: {})
    with pytest.raises(ValueError, match="lack actions"):
        commands._make_start(CONFIG, Path(), Path("7.safetensors"))
    assert tried[3:] == [7]
