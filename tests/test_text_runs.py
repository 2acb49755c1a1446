"""Runs of language models: the same folders and the same way to go on, with responses and a model besides."""

from __future__ import annotations

import gc
import json
import re
import signal
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import toy_policy
from small_runs import SUMS, assert_looks_whole, assert_same_run, in_child, quiet_run, records, scalars
from test_resume import kill_at_file_operation

from sppo.experiments import text
from sppo.experiments.config import read_config
from sppo.experiments.domains import make_agents, resolve
from sppo.experiments.responses import FirstPrediction
from sppo.experiments.run import load_run, run
from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, load_model
from sppo.llm.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run per agent."""
    folders = {}
    for agent in ("sppo", "grpo"):
        folders[agent] = tmp_path_factory.mktemp(agent)
        run([replace(SUMS, agent=agent)], [folders[agent]])
    return folders


def test_a_run_leaves_responses_reasons_and_a_model(whole: dict[str, Path]) -> None:
    folder = whole["sppo"]
    assert_looks_whole(folder)
    said = records(folder / "completions.jsonl")
    updates = len(records(folder / "progress.jsonl"))
    assert Counter((r["split"], r["n_updates"]) for r in said if r["split"] == "train") == {
        ("train", n): 3 for n in range(1, updates + 1)
    }
    evaluated = {r["n_updates"] for r in records(folder / "evals.jsonl")}
    assert {r["n_updates"] for r in said if r["split"] == "test"} == evaluated and len(evaluated) >= 3
    for r in said:
        assert r["length"] <= 12 and r["reward"] == (r["reason"] == "ok") and (r["stopped"] or r["length"] == 12)
    for record in records(folder / "progress.jsonl"):
        shares = {tag: value for tag, value in record.items() if tag.startswith("reward/")}
        assert sum(shares.values()) == pytest.approx(1)
        assert shares.get("reward/ok", 0) == pytest.approx(record["rollout/success_rate"])
        assert 0 <= record["rollout/cut_off"] <= 1
    held = [record["memory/peak_gib"] for record in records(folder / "progress.jsonl", timed=True)]
    assert 0.1 < held[0] and held == sorted(held), "torch alone is some hundred MB, and a peak does not go down"
    assert "rollout/cut_off" in scalars(folder)
    policy = TextPolicy(load_model(str(folder / "model")), load_tokenizer(str(folder / "model")))
    agent = load_run(folder)
    for name, weight in agent.policy.model.state_dict().items():
        assert torch.equal(policy.model.state_dict()[name], weight), name


def test_another_model_for_the_critic_is_forgotten_once_its_body_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, loaded, load = resolve(SUMS), [], text.load_model
    start = text.find_model(config.start)
    TextPolicy(load(start), load_tokenizer(start)).save_pretrained(tmp_path)

    def noted(source: str) -> Any:
        model = load(source)
        loaded.append(weakref.ref(model.get_input_embeddings().weight))
        return model

    monkeypatch.setattr(text, "load_model", noted)
    [agent] = make_agents([replace(config, text={**config.text, "critic": str(tmp_path)})])
    gc.collect()
    policys, critics = loaded
    assert policys() is not None and critics() is None
    own, theirs = agent.policy.base.state_dict(), agent.critic.base.state_dict()
    assert theirs and all(torch.equal(weight, own[name]) for name, weight in theirs.items())


def test_the_evaluation_answers_the_same_prompts_every_time(whole: dict[str, Path]) -> None:
    prompts: dict[int, list[str]] = {}
    for folder in whole.values():
        for r in records(folder / "completions.jsonl"):
            if r["split"] == "test":
                prompts.setdefault((hash(folder), r["n_updates"]), []).append(r["prompt"])
    assert len(set(map(tuple, prompts.values()))) == 1


def test_tensorboard_shows_what_is_answered(whole: dict[str, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole["sppo"]), size_guidance={"tensors": 0})
    events.Reload()
    shown = events.Tensors("completions/test/text_summary")
    said = [r for r in records(whole["sppo"] / "completions.jsonl") if r["split"] == "test"]
    assert [e.step for e in shown] == sorted({r["env_steps"] for r in said})
    first = shown[0].tensor_proto.string_val[0].decode()
    for r in said[:3]:
        assert f"    {r['prompt']}\n\n    {r['response'] or ' '}\n\nreward {r['reward']:g} ({r['reason']})" in first


@pytest.mark.parametrize("agent", ["sppo", "grpo"])
def test_killed_at_random_file_operations(agent: str, whole: dict[str, Path], tmp_path: Path) -> None:
    config = replace(SUMS, agent=agent)
    codes = []
    for n in np.random.default_rng(0).integers(20, 120, 4):

        def work(n: int = int(n)) -> None:
            kill_at_file_operation(n, tmp_path)
            quiet_run([config], [tmp_path])

        codes.append(in_child(work))
    assert set(codes) <= {0, -signal.SIGKILL} and -signal.SIGKILL in codes
    quiet_run([config], [tmp_path])
    assert_same_run(tmp_path, whole[agent])
    assert_looks_whole(tmp_path)
    ours, other = (folder / "model" / "model.safetensors" for folder in (tmp_path, whole[agent]))
    assert ours.read_bytes() == other.read_bytes()


def test_a_critic_begins_at_the_success_rate_and_its_price_is_counted(tmp_path: Path) -> None:
    agent = make_agents([resolve(SUMS)])[0]
    first = FirstPrediction(None)
    first.on_training_start(agent)
    tokens = agent.sampler.counts["env_steps"]
    assert tokens > 8 and agent.sampler.counts["episodes"] == 8
    traj = agent.sampler.rollout(np.arange(6))
    values = agent.critic.value(traj)
    assert values.std() == 0 and 0.05 < values[0] < 0.95
    FirstPrediction(0.3).on_training_start(agent)
    assert agent.critic.value(traj)[0] == pytest.approx(0.3)
    ppo = make_agents([resolve(replace(SUMS, agent="ppo"))])[0]
    FirstPrediction(0.3).on_training_start(ppo)
    assert ppo.critic.values(traj)[0, 0] == pytest.approx(0.3), "squared error: no logit"


@pytest.mark.parametrize(("kind", "settings"), [("ppo", {}), ("sppo", {"value_loss": "squared_error"})])
def test_where_rewards_are_charged_a_critic_begins_at_the_success_rate_too(kind: str, settings: dict[str, Any]) -> None:
    """The policy has not moved away from its reference yet, so nothing is charged; of 8 episodes, 1/16 to 15/16."""
    settings = {**SUMS.settings, "kl_coef": 0.1, "kl_in": "reward", **settings}
    agent = make_agents([resolve(replace(SUMS, agent=kind, settings=settings))])[0]
    seen: list[float] = []
    agent.sampler.on_scored = lambda responses: seen.extend(response.reward for response in responses)
    FirstPrediction(None).on_training_start(agent)
    agent.sampler.on_scored = None
    traj = agent.sampler.rollout(np.arange(6))
    values = agent.critic.values(traj)[:, 0] if kind == "ppo" else agent.critic.value(traj)
    assert len(seen) == 8 and values.std() == 0
    assert values[0] == pytest.approx(min(max(np.mean(seen), 1 / 16), 15 / 16), abs=1e-5)


def test_what_does_not_fit_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, kind: type[Exception] = ValueError, **changes: Any) -> None:
        config = replace(SUMS, **changes)
        with pytest.raises(kind, match=message):
            text.check([resolve(config)])

    refused("unknown model 'arithmatic'; did you mean 'arithmetic'", start="arithmatic")
    refused("unknown task 'gsm9k'; did you mean 'gsm8k'", env_id="text/gsm9k", env_kwargs={})
    refused("task arithmetic, options .*'<=' not supported", env_kwargs={"terms": "x"})
    refused("unknown model 'nonsense'; known: arithmetic", text={"critic": "nonsense"})
    refused("unknown setting 'temprature'; did you mean 'temperature'", text={"temprature": 1.0})
    refused("top_k is refused: .* the whole softmax's", text={"top_k": 50})
    refused("max_completion_length must be positive, got 0", text={"max_completion_length": 0})
    refused("critic_start must be in", text={"critic_start": 1.5})
    refused(
        "chain_sum needs a model to start from: name one with --model",
        env_id="text/reasoning_gym:chain_sum",
        env_kwargs={},
    )
    misplaced = {"env_id": "CartPole-v1", "text": {"temperature": 1.0}}
    refused("settings of a language model, temperature, do not fit CartPole-v1", **misplaced)
    data = tmp_path / "questions.jsonl"
    data.write_text("")
    refused("questions.jsonl", env_id=f"text/{data}", start="arithmetic", env_kwargs={})
    data.write_text(json.dumps({"prompt": "1+1=", "answer": None}) + "\n")
    refused("1 rows have no gold answer", env_id=f"text/{data}", start="arithmetic", env_kwargs={})
    (tmp_path / "dapo-math-17k.parquet").write_bytes(b"")
    monkeypatch.setenv("SPPO_DATA", str(tmp_path))
    refused("amc23", FileNotFoundError, env_id="text/amc23", start="arithmetic", env_kwargs={})


def test_prompts_that_leave_no_room_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    config = resolve(replace(SUMS, text={**SUMS.text, "max_prompt_length": 6}, env_kwargs={"terms": [2, 3]}))
    agent = make_agents([config])[0]
    assert 0 < len(agent.sampler.prompts) < 20_000
    assert all(len(p.prompt) <= 6 for p in agent.sampler.prompts)
    assert f"{20_000 - len(agent.sampler.prompts)} of 20000 prompts are longer than 6 tokens; left out" in caplog.text
    with pytest.raises(ValueError, match="none of the 40 prompts has at most 2 tokens"):
        make_agents([resolve(replace(SUMS, text={**SUMS.text, "max_prompt_length": 2}))])
    with pytest.raises(ValueError, match=r"none of the 40 prompts .*the model's context is 512"):
        make_agents([resolve(replace(SUMS, text={"max_completion_length": 511}))])


def test_a_run_can_be_made_again_from_its_folder(whole: dict[str, Path], tmp_path: Path) -> None:
    run([read_config(whole["grpo"])], [tmp_path])
    assert_same_run(tmp_path, whole["grpo"])


def test_another_task_can_be_what_is_evaluated() -> None:
    config = resolve(replace(SUMS, text={**SUMS.text, "eval_task": "arithmetic"}))  # its defaults: operands to 99
    agent = make_agents([config])[0]
    sampler, starts = text.held_out(agent, config)
    assert len(starts) == 16 and len(sampler.prompts) == 512
    largest = [max(int(n) for p in s.prompts for n in re.findall("[0-9]+", p.prompt)) for s in (sampler, agent.sampler)]
    assert largest[0] > 90 and largest[1] == 20


def test_a_critic_of_another_model_must_read_the_same_tokens(tmp_path: Path) -> None:
    toy_policy().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="numbers its tokens otherwise than the policy's"):
        make_agents([resolve(replace(SUMS, text={**SUMS.text, "critic": str(tmp_path)}))])
    agent = make_agents([resolve(replace(SUMS, text={**SUMS.text, "critic": "arithmetic"}))])[0]
    assert agent.critic.base.config.num_hidden_layers == 1


def test_prompts_that_serve_both_splits_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(30)))
    config = replace(SUMS, env_id=f"text/{data}", start="arithmetic", env_kwargs={"chat": False, "suffix": ""})
    text.check([resolve(config)])
    assert "30 prompts are in both splits" in caplog.text
    caplog.clear()
    text.check([resolve(replace(config, env_kwargs={**config.env_kwargs, "test_share": 0.5}))])
    assert "both splits" not in caplog.text
    with pytest.raises(ValueError, match="has no prompts in its split"):
        text.check([resolve(replace(config, env_kwargs={**config.env_kwargs, "test_share": 1e-9}))])


def test_what_limits_training_prompts_does_not_change_what_is_evaluated() -> None:
    config = resolve(replace(SUMS, text={**SUMS.text, "max_prompt_length": 6}, env_kwargs={"terms": [2, 3]}))
    agent = make_agents([config])[0]
    sampler, _ = text.held_out(agent, config)
    assert len(sampler.prompts) == 512 and max(len(p.prompt) for p in sampler.prompts) > 6


def test_an_engine_has_room_for_what_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training prompts of up to 6 characters; those of the evaluation are longer and are answered all the same."""
    rooms = []

    def engine(policy: TextPolicy, max_model_len: int | None, **_: Any) -> HFEngine:
        rooms.append(max_model_len)
        return HFEngine(policy)

    monkeypatch.setattr(text, "VLLMEngine", engine)
    limited = {**SUMS.text, "engine": "vllm", "max_prompt_length": 6}
    config = resolve(replace(SUMS, text=limited, env_kwargs={"terms": [2, 3]}))
    (agent,) = make_agents([config])
    sampler, _ = text.held_out(agent, config)
    assert rooms == [max(len(p.prompt) for p in sampler.prompts) + 12]
    make_agents([resolve(replace(config, text={**limited, "max_prompt_length": 100}))])
    assert rooms[1:] == [112]
