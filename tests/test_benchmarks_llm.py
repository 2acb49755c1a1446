"""The benchmarks of a training step on text: what they count, and that they run; neither speed nor a GPU is tested."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import against_trl
import llm_step
from llm_case import TINY, Case, make_agent, small_critic
from llm_measures import PARTS, Memory, forward_flops, measure, step_flops
from llm_step import ALGORITHMS, work

MINI = replace(TINY, hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, intermediate=24, vocab=32)
CASE = Case(
    algorithm="sppo",
    policy=MINI,
    critic=replace(MINI, layers=1),
    responses=8,
    prompt_length=4,
    completion_length=6,
    microbatch=4,
    rounds=1,
)


def test_flops_worked_out_by_hand() -> None:
    # A layer: query and output 16 x 16 each, key and value 16 x 8 each, three matrices of 16 x 24: 1920 weights.
    # Three tokens see 1 + 2 + 3 = 6 tokens, through queries of width 16.
    # 2 layers x (2 x 1920 x 3 + 4 x 16 x 6) + one distribution 2 x 32 x 16 = 23808 + 1024
    assert forward_flops(MINI, 3, outputs=1) == 24832


def test_flops_are_those_that_torch_counts() -> None:
    """But for attention to later tokens, and for the angles of positions, which torch counts too."""
    agent = make_agent(CASE)
    traj = agent.sampler.rollout(agent.starts())
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        agent.policy.evaluate(traj)
    # 8 rows x 2 layers x 4 x 16 x (10 x 10 pairs - 55 that are needed), and 2 x 4 frequencies x 10 positions
    besides = 8 * 2 * 4 * 16 * 45 + 2 * 4 * 10
    assert counted.get_total_flops() == step_flops(CASE)["old log-probabilities"] + besides


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_measured(algorithm: str) -> None:
    case = replace(CASE, algorithm=algorithm)
    measured, flops = measure(case), step_flops(case)
    assert tuple(measured["seconds"]) == PARTS and set(measured["peaks"]) == set(PARTS)
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    assert (flops["values"] == 0) == (algorithm == "grpo")
    figures = llm_step.figures_of(case, measured, rate=1e9)
    assert figures["tokens_per_s"] == pytest.approx(48 / sum(measured["seconds"].values()), rel=1e-3)


def test_work_grows_from_grpo_to_ppo() -> None:
    small, start, steps, none = (
        sum(step_flops(replace(CASE, algorithm=name)).values()) for name in ("sppo-small", "sppo", "ppo", "grpo")
    )
    assert none < small < start < steps


def test_nothing_stops_a_response() -> None:
    agent = make_agent(replace(CASE, responses=64))
    traj = agent.sampler.rollout(agent.starts())
    assert set(traj.lengths.tolist()) == {6}
    assert bool((traj.actions == agent.policy.tokenizer.eos_token_id).any())


def test_memory_is_the_peak_since_the_last_restart() -> None:
    memory = Memory("cpu")
    block = torch.ones(2**24)  # 64 MiB
    held = memory.peak()
    assert held > 60 * 2**20
    del block
    memory.restart()
    assert memory.peak() < held - 50 * 2**20


def test_small_critics_read_the_policys_tokens() -> None:
    assert small_critic("7b", None).hidden == 1536 and small_critic("7b", None).vocab == 152064
    assert small_critic("tiny", None) == replace(TINY, layers=1)


def test_the_command_ends_with_a_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llm_step, "in_own_process", lambda job, device: work(json.loads(json.dumps(job))))
    sizes = ["--responses", "8", "--prompt-length", "4", "--completion-length", "4", "--rounds", "1"]
    options = ["--algorithms", "sppo", "grpo", *sizes, "--png", str(tmp_path / "step.png")]
    monkeypatch.setattr(sys, "argv", ["llm_step.py", *options])
    with pytest.raises(SystemExit) as ended:
        llm_step.main()
    assert not ended.value.code
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["algorithms"]) == {"sppo", "grpo"} and told["matmul_gflops"] > 0 and told["failed"] == []
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_one_rank_is_sharded_as_on_a_gpu() -> None:
    """In a process of its own, since it joins a process group."""
    measured = llm_step.in_own_process(asdict(replace(CASE, sharded=True)), "cpu")
    assert measured is not None and set(measured["peaks"]) == set(PARTS)


def test_our_side_of_the_comparison_takes_turns() -> None:
    """TRL's side needs TRL, which has an environment of its own."""
    turns: list[int] = []
    sizes = argparse.Namespace(rows=16, microbatch=8, tokens=3)
    model = against_trl.tiny_model(18, seed=0, hidden=16, layers=1, heads=1)
    before = model.get_input_embeddings().weight.clone()
    against_trl.our_steps(model, sizes, lambda: turns.append(int(torch.equal(model.lm_head.weight, before))), steps=2)
    assert turns == [1, 0, 0, 0]  # before and after each of two steps: the first changes the weights


def test_bars_against_trl_that_are_missed_are_named() -> None:
    bars = {"tokens_per_s_ratio": "at least 1", "peak_memory_ratio": "at most 1"}
    assert against_trl.misses({"tokens_per_s_ratio": 1.0, "peak_memory_ratio": 1.0, "bars": bars}) == []
    assert against_trl.misses({"tokens_per_s_ratio": 0.9, "peak_memory_ratio": 1.1, "bars": bars}) == [
        "tokens_per_s_ratio must be at least 1, got 0.9",
        "peak_memory_ratio must be at most 1, got 1.1",
    ]
