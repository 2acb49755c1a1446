"""What the command line says, and what it refuses: one line, a non-zero exit, and nothing touched."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from small_runs import CHAIN, sppo

from sppo.agents import AGENTS
from sppo.agents.storage import save_policy
from sppo.experiments import cli
from sppo.experiments.config import to_json
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.memory import Setting
from sppo.experiments.plan_command import PlanCommand
from sppo.experiments.process import locked
from sppo.experiments.recipes import ShowRecipe
from sppo.experiments.run_commands import RunOptions
from sppo.experiments.settings import make
from sppo.experiments.tasks import TASKS

COMMANDS = {
    "train": (cli.Train, RunOptions),
    "compare": (cli.Compare, RunOptions),
    "experts": (cli.Experts,),
    "sft": (cli.SFT,),
    "eval": (cli.Eval,),
    "calibrate": (cli.Calibrate,),
    "plan": (PlanCommand, Setting),
    "recipe": (ShowRecipe,),
    "report": (cli.Report,),
    "watch": (cli.Watch,),
}
POSITIONAL = {
    ("report", "source"): "SOURCE",
    ("watch", "run"): "RUN",
    ("calibrate", "run"): "RUN",
    ("plan", "model"): "MODEL",
    ("recipe", "name"): "NAME",
}
CHAIN_ID = "sppo/SparseChain-v0"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """The command line, in this process and an empty folder: (what it printed, exit code or message)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[str, Any]:
        monkeypatch.setattr(sys, "argv", ["sppo", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return printed.out + printed.err, code

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Help.


def test_help_lists_the_commands(call: Any) -> None:
    text, code = call("--help")
    assert code == 0
    for name, (command, *_) in COMMANDS.items():
        summary = " ".join((command.__doc__ or "").split())
        assert re.search(rf"• {name} +{re.escape(summary[:40])}", text), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described(name: str, call: Any) -> None:
    """Every field of the command's dataclass has its option, and the option its sentence."""
    text, code = call(name, "--help")
    assert code == 0
    described = options(text)
    fields = [
        f.name
        for kind in COMMANDS[name]
        for f in dataclasses.fields(kind)
        if f.name not in ("run", "setting") or name in ("watch", "calibrate")
    ]
    for field in fields:
        option = POSITIONAL.get((name, field), "--" + field.replace("_", "-"))
        assert len(described.get(option, "")) > 15, (option, described)
    assert "--no-" not in text


def options(text: str) -> dict[str, str]:
    """What a help text says of each option."""
    found: dict[str, str] = {}
    option = ""
    for line in plain(text).splitlines():
        new = re.match(r" *(?:--[a-z-]+ [^,]+, )?(--[a-z-]+|RUN|SOURCE|MODEL|NAME)", line)  # an alias goes first
        option = new[1] if new else option
        said = re.split(r" {2,}", line.strip() if new else "  " + line.strip(), maxsplit=1)[1:]
        found[option] = (found.get(option, "") + " " + " ".join(said)).split("(default")[0].strip()
    return found


def plain(text: str) -> str:
    """Without colours and boxes."""
    return re.sub(r"\x1b\[[0-9;]*m|[│|+]", " ", text)


def test_the_agents_in_the_help_are_the_agents_there_are(call: Any) -> None:
    for name in ("train", "compare"):
        text = " ".join(plain(call(name, "--help")[0]).split())
        assert ", ".join(AGENTS) in text


# Bad input.


class OddActions(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.MultiBinary(3)


gym.register("OddActions-v0", entry_point=OddActions, max_episode_steps=8)
gym.register("Endless-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv")


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "id": (("--env", "sppo/PrecisionCartpole-v0"), "did you mean 'sppo/PrecisionCartPole-v0'?"),
    "agent": (("--agent", "spo"), "unknown agent 'spo'; did you mean 'sppo'?"),
    "option": (("--env-options", "horizn", 20), "horizon"),
    "option of the wrong type": (("--env-options", "horizon", "long"), "horizon"),
    "option of a foreign environment": (
        ("--env", "CartPole-v1", "--env-options", "suton", "true"),
        "refuses an option ('suton')",
    ),
    "setting": (("--settings", "learning_rat", 1), "unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
    "preset": (("--settings", "preset", "7c"), "unknown preset '7c'; known: 1.5b, 7b, 7b-small-critic"),
    "preset of an agent without": (("--agent", "tracker", "--settings", "preset", "7b"), "tracker has no presets"),
    "setting of the wrong type": (
        ("--settings", "learning_rate", "fast"),
        "learning_rate must be a number, got 'fast'",
    ),
    "setting that is not whole": (("--settings", "n_epochs", 1.5), "n_epochs must be a whole number, got 1.5"),
    "setting not among its choices": (
        ("--settings", "value_loss", "mse"),
        "must be 'squared_error' or 'bce', got 'mse'",
    ),
    "setting out of range": (("--settings", "n_epochs", 0), "n_epochs must be positive, got 0"),
    "no episodes": (("--episodes", 0), "total_episodes must be positive, got 0"),
    "no steps": (("--steps", 0), "total_steps must be positive, got 0"),
    "no evaluations": (("--evals", 0), "n_evals must be positive"),
    "success": (("--stop-at-success", 1.5), "stop_at_success must be in (0, 1], got 1.5"),
    "negative seed": (("--seed", -1), "seed must not be negative, got -1"),
    "missing start": (("--start", "nowhere"), "there is no start policy at nowhere"),
    "missing config": (("--config", "nowhere"), "cannot read the run's config"),
    "unwritable": (("--out", "/proc/nowhere"), "/proc/nowhere"),
    "actions": (("--env", "OddActions-v0"), "MultiBinary(3)"),
    "endless": (("--env", "Endless-v0"), "has no time limit and might never end"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case: str, call: Any, tmp_path: Path) -> None:
    arguments, message = BAD[case]
    chosen = () if "--env" in arguments or case in ("option", "option of the wrong type") else ("--env", CHAIN_ID)
    text, code = call("train", *chosen, *arguments)
    assert isinstance(code, str) and code.startswith("sppo: ") and message in code and "\n" not in code
    assert not text
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "--seeds", "0"), "seeds: at least one is needed, got 0"),
        (("compare", "--agents", "ppo", "pppo"), "unknown agent 'pppo'; did you mean 'ppo'?"),
        (("compare", "--processes", "0"), "processes: at least one is needed, got 0"),
        (("compare", "--env", "Pendulum"), "no environment is registered as 'Pendulum'; did you mean"),
        (("experts", "--env", "sppo/Hoper-v0"), "did you mean 'sppo/Hopper-v0'?"),
        (("experts", "--env", CHAIN_ID, "--settings", "steps", "3"), "unknown setting 'steps'"),
        (("sft", "--env", CHAIN_ID), "cannot read the expert's episodes"),
        (("sft", "--env", CHAIN_ID, "--fits", "0"), "fits: at least one is needed, got 0"),
        (("sft", "--env", CHAIN_ID, "--settings", "lwo", "0.1"), "unknown setting 'lwo'; did you mean 'low'?"),
        (("sft", "--env", CHAIN_ID, "--settings", "low", "0.5"), "low < high"),
        (("report", "nowhere"), "nowhere must be a folder of runs"),
        (("watch", "nowhere"), "cannot read the run's config"),
    ],
)
def test_other_commands_refuse_too(arguments: tuple[str, ...], message: str, call: Any, tmp_path: Path) -> None:
    text, code = call(*arguments)
    assert isinstance(code, str) and message in code and "\n" not in code
    assert not text and not list(tmp_path.iterdir())


def test_a_start_policy_that_does_not_fit(call: Any, tmp_path: Path) -> None:
    """Of another task, damaged, or without the JSON that describes it; in a dry run as well."""
    run = ("train", "--env", CHAIN_ID, "--out", tmp_path / "run", "--start")
    _, code = call(*run, "PrecisionCartPole-v0")
    assert re.search(r"does not fit: .* must be \(.*\), got \(", code)
    policy = make_agents([resolve(CHAIN)])[0].policy
    about = {"policy": {"net_arch": [16], "activation": "relu"}}
    save_policy(policy, tmp_path / "mine.safetensors", about)
    for dry in ((), ("--dry-run",)):
        (tmp_path / "mine.safetensors").write_bytes(b"damaged")
        assert "cannot read the policy" in call(*run, tmp_path / "mine.safetensors", *dry)[1]
    save_policy(policy, tmp_path / "mine.safetensors", about)
    assert call(*run, tmp_path / "mine.safetensors", "--dry-run")[1] == 0
    for content in ("{", "{}", "[]", '{"policy": {"net_arch": "wide"}}'):
        (tmp_path / "mine.json").write_text(content)
        assert "mine.json" in call(*run, tmp_path / "mine.safetensors")[1]
    assert not (tmp_path / "run").exists()


def test_folders_that_hold_something_else(call: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    chain = ("train", "--env", CHAIN_ID, "--out", out)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    assert "is not empty and holds no run" in call(*chain)[1]
    assert contents(tmp_path) == before
    (out / "notes.txt").unlink()
    (out / "config.json").write_text(json.dumps(to_json(resolve(make(type(CHAIN), {"env_id": CHAIN_ID})))))
    (out / "checkpoints" / "00000020").mkdir(parents=True)
    before = contents(tmp_path)
    assert "already holds this run; --resume goes on with it" in call(*chain)[1]
    for other, difference in (
        (("--agent", "ppo"), "its agent is 'sppo', not 'ppo'"),
        (("--settings", "n_epochs", 9), "its n_epochs is 4, not 9"),
        (("--env-options", "horizon", 9), "its horizon is None, not 9"),
    ):
        for extra in ((), ("--resume",), ("--dry-run",)):
            _, code = call(*chain, *other, *extra)
            assert "holds another run" in code and difference in code
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the run's config"),
        ("[1]", "must hold a JSON object"),
        ('{"sed": 3}', "unknown field 'sed'; did you mean 'seed'?"),
        ('{"seed": "three"}', "field seed must be a whole number, got 'three'"),
        ('{"settings": {"seeed": 1}}', "unknown setting 'seeed'; did you mean 'seed'?"),
        ('{"net_arch": ["x"]}', "field net_arch must be a list, each a whole number"),
    ],
)
def test_a_config_that_is_damaged(content: str, message: str, call: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    _, code = call("train", "--config", path, "--out", tmp_path / "run")
    assert message in code and str(path) in code or "setting" in content
    assert message in code and list(tmp_path.iterdir()) == [path]


# Dry runs.


def test_dry_runs_check_and_write_nothing(call: Any, tmp_path: Path) -> None:
    text, code = call("compare", "--env", "all", "--agents", "all", "--seeds", 1, "--dry-run")
    shown = [json.loads(line) for line in text.splitlines()]
    assert code == 0 and len(shown) == len(TASKS) * len(AGENTS)
    assert {one["env_id"] for one in shown} == set(TASKS) and {one["agent"] for one in shown} == set(AGENTS)
    assert all(one["start"] == f"{one['env_id'].split('/')[1]}/0.safetensors" for one in shown)
    text, code = call("experts", "--dry-run")
    assert code == 0 and all(env_id in text for env_id in TASKS)
    assert not list(tmp_path.iterdir())


# In a real process.


def test_an_error_that_shows_only_while_running(tmp_path: Path) -> None:
    """Outcomes outside SPPO's range."""
    done = sppo("train", "--env", "CartPole-v1", "--episodes", 64, "--out", tmp_path / "run")
    assert done.returncode == 1
    *warnings, error = done.stderr.splitlines()
    assert re.fullmatch(rf"sppo: {tmp_path}/run: .*\[0, 1\].*", error), done.stderr
    assert all("does not report" in warning for warning in warnings)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_that_never_got_to_a_checkpoint_makes_way(call: Any, tmp_path: Path) -> None:
    """What failed at once, for a setting that does not suit, is not in the way of the next attempt."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(to_json(resolve(CHAIN))))
    arguments = ("train", "--env", CHAIN_ID, "--agent", "ppo", "--out", out)
    assert call(*arguments, "--dry-run")[1] == 0
    with locked([out]):
        assert "another process is at work" in call(*arguments)[1]
    assert json.loads((out / "config.json").read_text())["agent"] == "sppo"
