"""Supervised fine-tuning on demonstrations, and the model that ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import toy_policy

from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, load_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sft import TextSFTConfig, as_demonstrations, fine_tune
from sppo.llm.sources import MODELS
from sppo.llm.tasks import make_task
from sppo.llm.tokenizer import load_tokenizer


def test_a_demonstration_is_its_tokens_and_the_stop_token():
    policy = toy_policy()
    prompts = make_task("arithmetic").prompts("train")[:2]
    data = as_demonstrations(policy, prompts, ["ab", "a=b;"])
    stop = policy.tokenizer.eos_token_id
    assert data.traj.lengths.tolist() == [3, 5]
    assert data.traj.actions[0].tolist()[:3] == [3, 4, stop]
    assert data.traj.actions[1].tolist() == [3, 5, 4, 6, stop]
    assert data.share.sum() == 8


def test_a_model_is_written_with_what_it_can_do(tmp_path: Path):
    lines: list[str] = []
    config = TextSFTConfig(gradient_steps=3, check_every=2, check_prompts=4, batch_size=4)
    about = fine_tune(config, tmp_path, report=lines.append)
    assert [line.split()[0] for line in lines] == ["2", "3"]
    assert json.loads((tmp_path / "sft.json").read_text()) == json.loads(json.dumps(about))
    assert load_model(str(tmp_path)).num_parameters() == about["parameters"]


@pytest.mark.slow
def test_the_model_that_ships_does_what_its_record_says():
    folder = MODELS / "arithmetic"
    about = json.loads((folder / "sft.json").read_text())
    policy = TextPolicy(load_model(str(folder)), load_tokenizer(str(folder)))
    config = about["config"]
    task = make_task("arithmetic", terms=tuple(config["terms"]), operands=tuple(config["operands"]))
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
