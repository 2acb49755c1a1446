"""Supervised fine-tuning on demonstrations, and the model that ships."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import ToyTask, toy_policy, toy_sampler

from sppo.agents.learners import LocalLearner
from sppo.agents.update import LogLikelihoodLoss, minimise
from sppo.llm.demonstrations import demonstrated, mean_loss
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, load_model, tiny_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sft import RECIPES, TextSFTConfig, fine_tune
from sppo.llm.sft_command import main
from sppo.llm.sources import MODELS
from sppo.llm.tasks import make_task
from sppo.llm.tasks.rows import data_folder
from sppo.llm.tokenizer import character_tokenizer, load_tokenizer

FEW = {"task_options": {"terms": [2, 5], "operands": [1, 20], "train_size": 500, "test_size": 64}, "threads": 1}
CHAT = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}>"


class Shown(ToyTask):
    """Whatever is asked, `ba` is the answer, repeated as often as the prompt has letters."""

    name = "shown"

    def demonstration(self, prompt, generator, times=1):
        return "ba" * len(prompt.prompt) * times


def shown_sampler(**options: Any) -> TextSampler:
    """Prompts of 2, 4 and 6 tokens by turns."""
    sampler = toy_sampler(toy_policy(spread=3), **{"max_completion_length": 20, **options})
    sampler.task = Shown()
    return sampler


def test_a_demonstration_is_its_tokens_and_the_stop_token_after_the_prompt_that_is_sampled_from() -> None:
    sampler = shown_sampler()
    data = demonstrated(sampler, [1, 0], np.random.default_rng(0))
    a, b, stop = 3, 4, sampler.policy.tokenizer.eos_token_id
    assert data.traj.lengths.tolist() == [9, 5] and data.share.sum() == 14
    assert data.traj.actions[0].tolist() == [b, a] * 4 + [stop]
    assert data.traj.actions[1].tolist()[:5] == [b, a, b, a, stop]
    asked = sampler.rollout(np.array([1, 0])).inputs
    assert torch.equal(data.traj.inputs.ids, asked.ids) and torch.equal(data.traj.inputs.lengths, asked.lengths)


def test_the_gradient_is_that_of_transformers_own_loss_with_prompts_masked() -> None:
    sampler = shown_sampler()
    model = sampler.policy.model
    data = demonstrated(sampler, range(3), np.random.default_rng(0))
    ids, labels = torch.zeros(3, 19, dtype=torch.int64), torch.full((3, 19), -100)
    for i, (prompt, n) in enumerate(zip(data.traj.inputs.lengths.tolist(), data.traj.lengths.tolist(), strict=True)):
        ids[i, :prompt] = data.traj.inputs.ids[i, :prompt]
        ids[i, prompt : prompt + n] = data.traj.actions[i, :n]
        labels[i, prompt : prompt + n] = data.traj.actions[i, :n]
    theirs = model(input_ids=ids, labels=labels).loss
    want = torch.cat([g.flatten() for g in torch.autograd.grad(theirs, list(model.parameters()))])
    assert mean_loss(sampler.policy, data) == pytest.approx(float(theirs.detach()), abs=1e-5)
    learner = LocalLearner(sampler.policy, learning_rate=1e-3, max_grad_norm=1e9, adam_eps=1e-8)
    loss, rng = LogLikelihoodLoss(sampler.policy), np.random.default_rng(0)
    minimise(learner, loss, data, n_epochs=1, n_minibatches=1, generator=rng, microbatch_steps=20)
    torch.testing.assert_close(learner.grad, want, rtol=0, atol=1e-5)
    assert want.norm() > 0.1


def test_what_is_too_long_is_left_out_and_what_cannot_be_learned_from_is_named() -> None:
    """Of 5, 9 and 13 tokens."""
    rng = np.random.default_rng(0)
    assert demonstrated(shown_sampler(max_completion_length=9), range(3), rng).traj.lengths.tolist() == [5, 9]
    with pytest.raises(ValueError, match="no demonstration of shown fits .* = 4 tokens: the shortest has 5"):
        demonstrated(shown_sampler(max_completion_length=4), range(3), rng)
    for settings, told in (
        ({"task": "addition"}, "addition names no alphabet for a new model"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"model": "nosuch"}, "unknown model 'nosuch'"),
        ({**FEW, "max_completion_length": 510}, "none of the 500 prompts has at most 2 tokens .*context is 512"),
    ):
        with pytest.raises(ValueError, match=told):
            fine_tune(TextSFTConfig(**settings), Path("nowhere"))
    sampler = toy_sampler()
    sampler.task.name = "toy"
    with pytest.raises(ValueError, match="the task toy has no demonstrations"):
        demonstrated(sampler, [0], rng)


def test_a_model_is_written_with_what_it_can_do_and_learned_from(tmp_path: Path) -> None:
    lines: list[str] = []
    small = {"gradient_steps": 3, "last_steps": 1, "check_every": 2, "check_prompts": 4, "batch_size": 4}
    config = TextSFTConfig(**{**RECIPES["arithmetic"], **small, **FEW, "check_demonstrations": 4})
    about = fine_tune(config, tmp_path, report=lines.append)
    assert [line.split()[0] for line in lines] == ["2", "3"] and "held out loss" in lines[0]
    assert json.loads((tmp_path / "sft.json").read_text()) == json.loads(json.dumps(about))
    assert load_model(str(tmp_path)).num_parameters() == about["parameters"]
    assert (about["demonstrations"], about["left_out"], about["success_rate_prompts"]) == (12, 0, 4)
    more = {**small, **FEW, "model": str(tmp_path), "check_prompts": 0, "max_completion_length": 56}
    again = fine_tune(TextSFTConfig(**more), tmp_path / "again", report=lines.append)
    assert again["held_out_loss"] != about["held_out_loss"] and "success_rate" not in again


def test_looks_change_nothing_of_what_is_learned(tmp_path: Path) -> None:
    """One look at the end, or one with answers after each step: the same weights to the last bit."""
    for name, looks in (
        ("few", {"check_every": 9, "check_demonstrations": 0, "check_prompts": 0}),
        ("many", {"check_every": 1, "check_demonstrations": 4, "check_prompts": 4}),
    ):
        small = {"gradient_steps": 4, "last_steps": 2, "batch_size": 4, "warmup": 2}
        config = TextSFTConfig(**{**RECIPES["arithmetic"], **small, **FEW, **looks})
        fine_tune(config, tmp_path / name, report=lambda _: None)
    few, many = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("few", "many"))
    assert few == many


def test_arithmetic_is_learned_from_new_weights(tmp_path: Path) -> None:
    """A uniform guess among 18 tokens loses ln 18 = 2.89; measured after 40 gradient steps: 2.05 on held-out chains."""
    short = {"gradient_steps": 40, "warmup": 5, "learning_rate": 3e-3, "batch_size": 16, "last_steps": 0}
    config = TextSFTConfig(**{**RECIPES["arithmetic"], **short, **FEW, "check_prompts": 0})
    assert fine_tune(config, tmp_path, report=lambda _: None)["held_out_loss"] < 2.3


@pytest.mark.skipif(not (data_folder() / "gsm8k-train.jsonl").exists(), reason="GSM8K is not in $SPPO_DATA")
def test_any_model_is_taught_the_solutions_of_gsm8k(tmp_path: Path) -> None:
    """Two layers of random weights that read characters; measured after 25 gradient steps: 3.03, from ln 99 = 4.60."""
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tokenizer.chat_template = CHAT
    model = tiny_model(len(tokenizer), seed=0, hidden=32, layers=2, heads=2)
    model.config.max_position_embeddings = 1024
    TextPolicy(model, tokenizer).save_pretrained(tmp_path / "start")
    config = TextSFTConfig(
        model=str(tmp_path / "start"),
        task="gsm8k",
        gradient_steps=25,
        batch_size=8,
        learning_rate=1e-2,
        warmup=2,
        max_completion_length=300,
        microbatch_steps=2048,
        check_demonstrations=16,
        check_prompts=2,
        dtype="bfloat16",
        threads=1,
    )
    about = fine_tune(config, tmp_path / "taught", report=lambda _: None)
    assert about["held_out_loss"] < 3.5 and about["left_out"] > 0
    policy = TextPolicy(load_model(str(tmp_path / "taught")), load_tokenizer(str(tmp_path / "taught")))
    task = make_task("gsm8k")
    sampler = TextSampler(task, policy, HFEngine(policy), max_completion_length=300, prompts=task.prompts("test")[:16])
    data = demonstrated(sampler, [0], np.random.default_rng(0))
    assert sampler.text(data.traj.actions[0]).endswith("#### 18"), "Janet's ducks"
    assert task.score(sampler.prompts[0], sampler.text(data.traj.actions[0])).reward == 1


def test_the_command_takes_the_tasks_recipe_and_options_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["sft", "--out", str(tmp_path), *words.split()])
        main()

    run("--task-options terms [2,3] train_size 40 test_size 8 --gradient-steps 2 --batch-size 4 --check-prompts 2")
    config = json.loads((tmp_path / "sft.json").read_text())["config"]
    assert config["task_options"] == {"terms": [2, 3], "operands": [1, 20], "train_size": 40, "test_size": 8}
    assert config["learning_rate"] == 1e-3 and config["last_options"] == {"p_wrong": {"+": 0.05, "-": 0.5}}
    for words, told in (
        ("--task nosuch", "sft: unknown task 'nosuch'"),
        ("--task addition", "sft: the task addition names no alphabet for a new model"),
        ("--task-options nosuch 1", "sft: task arithmetic: .*'nosuch'"),
    ):
        with pytest.raises(SystemExit, match=told):
            run(words)


@pytest.mark.slow
def test_the_model_that_ships_does_what_its_record_says():
    folder = MODELS / "arithmetic"
    about = json.loads((folder / "sft.json").read_text())
    policy = TextPolicy(load_model(str(folder)), load_tokenizer(str(folder)))
    config = about["config"]
    task = make_task(config["task"], **config["task_options"])
    sampler = TextSampler(
        task,
        policy,
        HFEngine(policy),
        max_completion_length=config["max_completion_length"],
        prompts=task.prompts("test"),
    )
    with torch.inference_mode():
        rate = float(sampler.rollout(np.arange(len(sampler.prompts))).success.float().mean())
    # Two estimates from 512 prompts each: their difference has a standard error of at most 0.031.
    assert abs(rate - about["success_rate"]) < 0.1
