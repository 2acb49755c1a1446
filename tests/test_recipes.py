"""Recipes: their lines are what they say, and each runs with a small model of its family and the real data files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")
pytest.importorskip("pyarrow", reason="needs the extra sppo[data]")
pytest.importorskip("math_verify", reason="needs the extra sppo[math]")

from safetensors.torch import load_file
from small_recipes import first_rows, small_models, teach
from small_runs import assert_looks_whole, assert_same_run, newest_checkpoint, records

from sppo.experiments import ranks, text_memory
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.evaluate import Eval
from sppo.experiments.memory import GIB
from sppo.experiments.recipes import RECIPES, ShowRecipe, eval_line, run_config, teach_line, train_line
from sppo.experiments.run import run
from sppo.experiments.run_commands import Train
from sppo.experiments.shapes import SHAPES
from sppo.experiments.shared_run import run_shared
from sppo.llm.sources import find_model

RUNS = [(name, agent) for name, it in RECIPES.items() for agent in it.agents]
FEW = "--gradient-steps 2 --check-demonstrations 4 --threads 1".split()
SMOKE = [("dapo-7b-small-critic", "sppo"), ("gsm8k-135m", "grpo")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with first_rows(tmp_path_factory.mktemp("data")) as folder:
        yield folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only one that torchrun started."""
    one = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "localhost"}
    for name, value in {**one, "MASTER_PORT": 29000 + os.getpid() % 1000}.items():
        monkeypatch.setenv(name, str(value))
    ranks.ranks.cache_clear()
    yield
    if ranks.ranks.cache_info().currsize:
        ranks.ranks().leave()
    ranks.ranks.cache_clear()


def small(config: RunConfig, models: dict[str, Path]) -> RunConfig:
    """Three updates of a few short responses; everything else is the recipe's."""
    per_prompt = {"grpo": 8, "rloo": 5 if "preset" in config.settings else 4}.get(config.agent, 2)
    critic = config.text.get("critic")
    return replace(
        config,
        start=str(models["r1-distill-qwen-7b"]) if config.start.startswith("r1") else config.start,
        settings={**config.settings, "episodes_per_update": 2 * per_prompt, "n_minibatches": 2, "microbatch_size": 4},
        text={
            **config.text,
            "engine": "hf",
            "kv_cache_gib": None,
            "max_completion_length": 8,
            "max_prompt_length": 400,
            "threads": 1,
            **({} if critic is None else {"critic": str(models[critic])}),
        },
        total_seconds=None,
        total_episodes=5 * per_prompt,
        n_evals=1,
        n_eval_episodes=4,
        checkpoint_freq=1,
    )


class Stopped(Exception):
    """By the test."""


def train(config: RunConfig, folder: Path, stop_after: int = 99) -> None:
    """To the end, or to just before the checkpoint of this update."""
    shares: list[float] = []

    def report(folder: Path, share: float, success: float) -> None:
        shares.append(share)
        if len(shares) == stop_after:
            raise Stopped

    if ranks.started() is None:
        run([config], [folder], resume=True, report=report)
    else:
        run_shared(config, folder, ranks.ranks(), resume=True, report=report)


@pytest.mark.parametrize(
    ("name", "agent"), [r if r in SMOKE else pytest.param(*r, marks=pytest.mark.slow) for r in RUNS]
)
def test_a_recipe_trains_is_evaluated_stops_and_goes_on_bit_for_bit(
    name: str, agent: str, data: Path, models: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if RECIPES[name].ranks:
        request.getfixturevalue("one_rank")
    if RECIPES[name].taught:
        teach(name, tmp_path / "runs", models["smollm2"], *FEW, "--batch-size", 4, "--max-completion-length", 700)
    config = small(run_config(name, agent, tmp_path / "runs"), models)
    whole, stopped = tmp_path / "runs" / name / agent / "seed0", tmp_path / "stopped"
    train(config, whole)
    assert_looks_whole(whole)
    assert len(records(whole / "evals.jsonl")) >= 2 and len(records(whole / "progress.jsonl")) >= 2
    with pytest.raises(Stopped):
        train(config, stopped, stop_after=2)
    assert newest_checkpoint(stopped).name == "00000001"
    train(config, stopped)
    assert_same_run(stopped, whole)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (stopped, whole)]
    assert weights[0] == weights[1]

    line = eval_line(name, agent, tmp_path / "runs")
    if RECIPES[name].benchmarks:
        assert line is not None and line[line.index("--task") + 1 :][:2] == ["amc23", "math500"], "the files at hand"
        fewer = "--engine hf --dtype float32 --prompts 2 --n 2 --max-completion-length 8 --threads 1".split()
        tyro.cli(Eval, args=[*line[2:], *fewer])()
        assert "amc23" in (tmp_path / "runs" / "eval" / name / agent / "summary.md").read_text()
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_the_real_small_model_is_taught_and_trains_and_goes_on(data: Path, tmp_path: Path) -> None:
    """SmolLM2-135M on GSM8K by the recipe's own lines, with few prompts and short responses."""
    try:
        find_model("smollm2")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    shorter = [*FEW, "--batch-size", 2, "--max-completion-length", 160]
    taught, run = teach("gsm8k-135m", tmp_path / "runs", "smollm2", *shorter), tmp_path / "run"
    about = json.loads((taught / "sft.json").read_text())
    assert about["parameters"] == SHAPES["smollm2"].weights
    # A model of dialogues knows something of sums in words: far less than ln 49152 = 10.8 for each token.
    assert 0.5 < about["held_out_loss"] < 4
    config = small(run_config("gsm8k-135m", "sppo", tmp_path / "runs"), {})
    with pytest.raises(Stopped):
        train(config, run, stop_after=2)
    assert newest_checkpoint(run).name == "00000001"
    train(config, run)
    assert_looks_whole(run)
    assert [r["time/n_updates"] for r in records(run / "progress.jsonl")] == [1, 2]
    assert [r["split"] for r in records(run / "completions.jsonl")].count("test") >= 8, (
        "two evaluations of four prompts"
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (taught, run / "model"))
    assert before.keys() == after.keys()
    # Two gradient steps in each of two updates, and Adam's steps are of at most the learning rate, 1e-5.
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 1e-6 < moved < 1e-4
    shutil.rmtree(tmp_path)


def test_ranks_hold_no_gradients_between_updates(data: Path, models: dict[str, Path], one_rank: None) -> None:
    (agent,) = make_agents([resolve(small(run_config("dapo-7b", "sppo"), models))])
    before = [p.to_local().clone() for p in agent.policy.parameters()]
    agent.train_once()
    after = list(agent.policy.parameters())
    assert any(not torch.equal(old, new.to_local()) for old, new in zip(before, after, strict=True))
    for learner in (agent.learner, agent.critic_learner):
        assert all(p.grad is None for p in (*learner.parameters, *learner.slices))


@pytest.mark.parametrize(("name", "agent"), RUNS)
def test_a_line_is_its_run(name: str, agent: str) -> None:
    begin, *words = " ".join(train_line(name, agent)).split(" train ")
    it = RECIPES[name]
    assert begin == (
        f"torchrun --standalone --nproc-per-node {it.ranks} -m sppo.experiments.cli" if it.ranks else "sppo"
    )
    command = tyro.cli(Train, args=words[0].split())
    assert command.chosen() == run_config(name, agent)
    assert command.out == Path("runs") / name / agent / "seed0"
    if it.taught:
        teach = teach_line(name)
        assert teach is not None and teach[-1] == run_config(name, agent).start, "it starts from what is taught"


def test_checkpoints_are_an_hour_of_responses_apart() -> None:
    """Of 512, 4096 and 1024 responses at 7B, 1024 in an hour; of 256 and 2048 at 1.5B, 4096 in an hour."""
    assert [run_config("dapo-7b", agent).checkpoint_freq for agent in ("sppo", "grpo", "remax")] == [2, 1, 1]
    assert [run_config("deepscaler-1.5b", agent).checkpoint_freq for agent in ("sppo", "grpo")] == [16, 2]


def test_the_published_settings_are_there(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name, prompt, decay in (("deepscaler-1.5b", 1024, 0.01), ("dapo-7b", 2048, 0.1)):
        for agent in RECIPES[name].agents:
            config = resolve(run_config(name, agent))
            s, t = config.settings, config.text
            assert (s["learning_rate"], s["n_epochs"], s["clip_range"], s["max_grad_norm"]) == (1e-6, 1, 0.2, 1.0)
            assert (s["weight_decay"], s["kl_coef"]) == (decay, 0.001 if agent in ("rloo", "remax") else 0.0)
            assert (t["temperature"], t["max_prompt_length"], t["max_completion_length"]) == (0.6, prompt, 8192)
            assert (s["critic_warmup"], s.get("num_generations")) == (
                50 if agent == "ppo" else 0,
                {"grpo": 8, "rloo": 5}.get(agent),
            )
    small_critic = resolve(run_config("dapo-7b-small-critic", "sppo"))
    assert small_critic.text["critic"] == "r1-distill-qwen-1.5b"
    assert small_critic.settings["critic_learning_rate"] == 5e-6


def test_a_rank_of_each_recipe_leaves_8_of_80_gib_and_the_page_says_how(
    data: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (root / "docs" / "RECIPES.md").read_text()
    shown = " ".join(page.replace("\\\n", " ").split())
    assert " ".join(train_line("dapo-7b-small-critic", "sppo")) in shown
    for name, agent in RUNS:
        it = RECIPES[name]
        with monkeypatch.context() as patch:
            if it.ranks:
                patch.setenv("RANK", "0")
                patch.setenv("WORLD_SIZE", str(it.ranks))
            patch.setattr(text_memory, "_longest_prompt", lambda *_, n=2048 if it.ranks else 300: n)  # tokens
            config = resolve(replace(run_config(name, agent), start="arithmetic"))
            made = text_memory.memory_plan(replace(config, start=it.model), on_gpu=True)
        assert made.peak < 72 * GIB, (name, agent)
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` | {agent} |")]
        assert f"| {made.peak / GIB:.1f} |" in row, (name, agent, made.peak / GIB)


def test_the_command_lists_and_prints_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    ShowRecipe()()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)
    ShowRecipe(name="gsm8k-135m", agents=("sppo", "ppo"))()
    said = capsys.readouterr().out.splitlines()
    assert said == [*(" ".join(line) for line in lines("gsm8k-135m", "sppo", "ppo")), "sppo report runs/gsm8k-135m"]
    with pytest.raises(ValueError, match="unknown recipe 'dapo-7'; did you mean 'dapo-7b'"):
        ShowRecipe(name="dapo-7")()
    with pytest.raises(ValueError, match="recipe dapo-7b-small-critic: unknown agent 'ppo'; did you mean 'sppo'"):
        ShowRecipe(name="dapo-7b-small-critic", agents=("ppo",))()


def lines(name: str, *agents: str) -> list[Any]:
    return [teach_line(name), *(train_line(name, agent) for agent in agents)]
