"""The memory plan against hand-worked numbers, and against what processes then take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tyro

from sppo.agents import AGENTS
from sppo.experiments.memory import GIB, Sees, Setting, plan
from sppo.experiments.plan_command import COLUMNS, PlanCommand
from sppo.experiments.room import check_fits, device_bytes, machine_bytes
from sppo.experiments.shapes import SHAPES, Shape, shape_of

CHILD = Path(__file__).with_name("memory_child.py")
TINY = Shape(hidden=4, layers=2, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocab=10, tied=True)
RANDOM = Shape(hidden=512, layers=12, heads=8, kv_heads=4, head_dim=64, intermediate=1408, vocab=8000, tied=True)


def test_weights_by_hand() -> None:
    # a layer: q and o 4 x 4, k and v 4 x 2, gate, up and down 4 x 8, two norms of 4: 32 + 16 + 96 + 8
    assert TINY.layer == 152
    # embeddings 10 x 4, which are the output layer too, and the last norm of 4
    assert TINY.weights == 2 * 152 + 44
    assert replace(TINY, tied=False).weights == TINY.weights + 40
    assert replace(TINY, biases=True).layer == 152 + 4 + 2 + 2
    assert TINY.body == TINY.weights + 4 + 1
    # rank 3, each layer: q and o 3 x 8, k and v 3 x 6, three of 3 x 12
    assert TINY.adapters(3) == 2 * (48 + 36 + 108)


def test_published_models_have_their_sizes() -> None:
    # the hub says 1.78 B, 7.62 B and 135 M
    assert [round(SHAPES[name].weights / 1e7) for name in SHAPES] == [178, 762, 13]


def test_shapes_are_read_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    assert shape_of(str(tmp_path)) == TINY
    model = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == TINY.weights
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    with pytest.raises(ValueError, match="no 'hidden_size'"):
        shape_of(str(tmp_path))
    with pytest.raises(ValueError, match="'nosuch' is not known; known: r1-distill"):
        shape_of("nosuch")


def test_what_is_held_by_hand() -> None:
    n, small = TINY.weights, replace(TINY, layers=1)
    one = plan(TINY, Setting(), "start", small)
    assert one.held == {"weights": 4 * n, "gradients": 4 * n, "optimizer": 8 * n, "critic": 16 * small.body}
    two = plan(TINY, Setting(ranks=2), "start")
    assert two.held == {
        "weights": 2 * n,
        "optimizer": 4 * n,
        "critic": 6 * TINY.body,
        "engine": 4 * n,
    }
    # between updates, ranks hold no gradients
    assert two.phases["policy"]["gradients"] == 2 * n and two.phases["critic"]["gradients"] == 2 * TINY.body
    lora = plan(TINY, Setting(lora=3, critic="lora", critic_lora=1), "steps")
    # adapters 384 and 128 (rank 1, without the head of 5), and not a second body
    assert lora.held == {"weights": 4 * (n + 384), "gradients": 4 * 384, "optimizer": 8 * 384, "critic": 16 * (128 + 5)}
    assert plan(TINY, Setting(lora=3, critic="head"), "steps").held["critic"] == 16 * 5
    assert plan(TINY, Setting(lora=3, critic="head"), "steps", replace(TINY, layers=1)).held["critic"] == 16 * 5
    assert plan(TINY, Setting(lora=3, critic="head", other_body=True), "steps").held["critic"] == 16 * 5 + 4 * TINY.body
    assert plan(TINY, Setting(critic="head"), "steps").held["critic"] == 16 * 5 + 4 * TINY.body
    assert "critic" not in plan(TINY, Setting(), None).held
    # 3 responses of 5 + 6 tokens, keys and values of 2 layers with 2 numbers of 4 bytes
    cache = plan(TINY, Setting(generated=3, prompt=5, response=6), None).phases["generation"]["KV cache"]
    assert cache == 3 * 11 * 2 * 2 * 2 * 4


def test_the_policy_is_copied_to_be_saved() -> None:
    n, lora = TINY.weights, TINY.weights + 384

    def copied(**setting: Any) -> int:
        return plan(TINY, Setting(**setting), None).phases["saving"]["copy"]

    assert copied() == copied(ranks=2) == 4 * n, "weights are views of one tensor, or gathered"
    assert copied(lora=3) == 4 * lora and copied(lora=3, ranks=2) == 8 * lora, "gathered, and merged in a copy"
    # in a GPU's memory, only what is merged there
    assert copied(on_gpu=True) == copied(on_gpu=True, ranks=2) == copied(on_gpu=True, ranks=2, lora=3) == 0
    assert copied(on_gpu=True, lora=3) == 4 * lora


def test_options_save_what_they_promise() -> None:
    shape = SHAPES["r1-distill-qwen-7b"]
    base = Setting(rows=4, prompt=1024, response=7168, ranks=4, engine="vllm", on_gpu=True, kv_cache_gib=8)

    def peak(sees: Sees = "start", small: Shape | None = None, **change: Any) -> int:
        return plan(shape, replace(base, **change), sees, small).peak

    assert peak(checkpointing=True) < 0.6 * peak()
    assert peak(dtype="bfloat16") < peak()
    assert peak(ranks=8) < peak()
    assert peak(offload=True) < peak()
    assert peak(lora=16) < peak()
    assert peak(critic="head") < peak(critic="lora") < peak(critic="full")
    assert peak(None) < peak(small=SHAPES["r1-distill-qwen-1.5b"]) < peak() <= peak("steps")
    # what is held shrinks with ranks, a row's activations do not
    plans = [plan(shape, replace(base, ranks=n), "steps") for n in (2, 4)]
    assert plans[0].held["optimizer"] == 2 * plans[1].held["optimizer"]
    assert plans[0].phases["policy"]["activations"] == plans[1].phases["policy"]["activations"]


def test_networks_are_cut_over_a_divisor_of_the_ranks() -> None:
    with pytest.raises(ValueError, match="critic_shard_over must divide the number of ranks, 4, got 3"):
        Setting(ranks=4, critic_shard_over=3)


def test_offload_is_of_gpus() -> None:
    here, there = (plan(TINY, Setting(ranks=2, offload=True, on_gpu=gpu), "start") for gpu in (False, True))
    assert here == plan(TINY, Setting(ranks=2), "start") and here.held["optimizer"] == 4 * TINY.weights
    assert there.held["optimizer"] == there.held["weights"] == 0


def test_one_rank_holds_what_ranks_hold() -> None:
    """As torchrun starts it: a whole copy generates, the critic has frozen weights of its own, layers are gathered."""
    n, body, one = TINY.weights, TINY.body, Setting(sharded=True)
    made = plan(TINY, one, "start")
    assert made.held == {"weights": 4 * n, "optimizer": 8 * n, "critic": 12 * body, "engine": 4 * n}
    assert made.phases["policy"]["gradients"] == 4 * n and made.phases["critic"]["gradients"] == 4 * body
    # the outside of 44, two layers of 152 and the buffer of one, at 4 bytes; a layer's gradients and copy, at 8
    assert made.phases["policy"]["gathered"] == 4 * (44 + 3 * 152) + 8 * 152
    assert plan(TINY, replace(one, lora=3, critic="head"), "start").held == {
        "weights": 4 * (n + 384),
        "optimizer": 8 * 384,
        "critic": 12 * 5 + 4 * body,
        "engine": 4 * n,
    }
    assert plan(TINY, replace(one, reference=True), None).held["weights"] == 8 * n
    for more, engine in ({}, {"engine": 4 * n}), ({"engine": "vllm"}, {}):
        resting = plan(TINY, Setting(offload=True, on_gpu=True, **more), "start")
        assert resting.held == {"weights": 0, "optimizer": 0, "critic": 0, **engine}
        assert resting.phases["policy"]["gradients"] == resting.phases["critic"]["gradients"] == 0


def test_vllm_holds_a_copy_and_what_it_is_given() -> None:
    """TINY is tied, vLLM's copy is not; on a CPU both stay there during updates, on a GPU it sleeps then."""
    copy, there = 4 * (TINY.weights + 40), Setting(engine="vllm", generated=3, prompt=5, response=6, on_gpu=True)
    cpu = plan(TINY, replace(there, on_gpu=False), None)
    assert cpu.held["engine"] == copy and cpu.held["KV cache"] == GIB
    assert plan(TINY, replace(there, on_gpu=False, kv_cache_gib=2), None).held["KV cache"] == 2 * GIB
    gpu = plan(TINY, there, None)
    assert gpu.phases["generation"]["engine"] == copy and not {"engine", "KV cache"} & {
        *gpu.held,
        *gpu.phases["policy"],
    }
    assert gpu.phases["generation"]["KV cache"] == 3 * 11 * 2 * 2 * 2 * 4
    assert sum(plan(TINY, replace(there, engine_gib=5), None).phases["generation"].values()) == 5 * GIB
    assert plan(TINY, replace(there, engine_gib=5, kv_cache_gib=3), None).phases["generation"]["KV cache"] == 3 * GIB
    assert plan(TINY, replace(there, engine="apart"), None).phases["generation"] == {}


def test_what_is_read_outside_autograd_is_bounded() -> None:
    """Of 100 rows of 1000 tokens, as many at a time as 32 768 tokens hold, on one process and on each rank."""
    for ranks in (1, 2):
        there = Setting(ranks=ranks, value_rows=100, prompt=600, response=400, dtype="bfloat16", on_gpu=True)
        phases = plan(TINY, there, "steps").phases
        # bytes of a token in TINY: 3 x 2 x 8 of the perceptron or 8 x 4 of queries, and 12 x 4
        assert phases["values"]["activations"] == phases["log-probabilities"]["activations"] == 32768 * (48 + 48)
        assert plan(TINY, replace(there, value_rows=2), "steps").phases["values"]["activations"] == 2000 * 96
    assert "log-probabilities" not in plan(TINY, Setting(), "steps").phases
    asked = plan(TINY, Setting(generated=3, prompt=5, asked=9, response=6), None)
    assert asked.phases["generation"]["KV cache"] == 3 * 15 * 2 * 2 * 2 * 4


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    made = plan(SHAPES["r1-distill-qwen-7b"], Setting(on_gpu=True), "steps", name="ppo")
    with pytest.raises(ValueError, match=r"ppo needs 2\d\d\.\d GiB per rank and the device has 80\.0 GiB: critic 10"):
        check_fits(made, 80 * GIB)
    check_fits(made, 400 * GIB, 0)
    assert 2**28 < device_bytes() < 2**48 and device_bytes(2) < device_bytes()
    assert machine_bytes(2) == machine_bytes() // 2


def test_what_is_offloaded_must_fit_beside_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    there = Setting(ranks=2, offload=True, on_gpu=True)
    # weights and two moments of policy and critic, and the gradients of one of them: half on each rank
    made = plan(TINY, there, "start")
    assert made.host == 6 * TINY.weights + 6 * TINY.body + 2 * TINY.body
    assert plan(TINY, there, None).host == 8 * TINY.weights
    assert plan(TINY, replace(there, on_gpu=False), None).host == plan(TINY, Setting(on_gpu=True), None).host == 0
    check_fits(made, 400 * GIB, made.host)
    with pytest.raises(ValueError, match=r"it offloads 0\.0 GiB per rank and the machine has 0\.0 GiB .* for each"):
        check_fits(made, 400 * GIB, made.host - 1)
    tyro.cli(PlanCommand, args=["smollm2", "--offload", "--on-gpu"])()
    told = capsys.readouterr().out.splitlines()[-1].split()
    # 134.5 million numbers, 16 bytes of each; the critic's 12 more
    assert told == ["beside", "the", "GPU", "3.51", "3.51", told[-2], "2.00"]


def test_the_command_prints_a_column_per_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["smollm2", "--rows", "8"]
    tyro.cli(PlanCommand, args=command)()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["GiB", "per", "rank", *(name for name, _, _ in COLUMNS)]
    told = {line[0]: [float(x) for x in line[-4:]] for line in lines[1:-1]}
    assert told["weights"] == [0.5] * 4  # 134.5 M numbers of 4 bytes
    assert told["critic"][0] == told["critic"][1] > 2 * told["critic"][2] > told["critic"][3] == 0
    with pytest.raises(ValueError, match="ppo needs"):
        tyro.cli(PlanCommand, args=[*command, "--device-gib", "1"])()


CASES: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "sppo": ("sppo", None, {}),
    "sppo, small critic": ("sppo", 2, {}),
    "ppo, bfloat16": ("ppo", None, {"dtype": "bfloat16"}),
    "sppo, small critic, short rows": ("sppo", 2, {"prompt": 90, "response": 30, "rows": 12, "value_rows": 12}),
    "ppo, adapters": ("ppo", None, {"lora": 8, "critic": "lora", "critic_lora": 8}),
    "grpo, checkpointing": ("grpo", None, {"checkpointing": True}),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident set from /proc")
@pytest.mark.parametrize("name", CASES)
def test_a_process_takes_what_was_predicted(name: str) -> None:
    """An update of a random model of 40 million weights: the rise of the resident set is within 20% of the plan."""
    algorithm, layers, change = CASES[name]
    setting = Setting(**{"prompt": 150, "response": 50, "generated": 8, "value_rows": 8, "rows": 8, **change})
    # Without a critic's, it takes more weights to reach a gigabyte.
    shape = replace(RANDOM, layers=20) if algorithm == "grpo" or "lora" in change else RANDOM
    critic = None if layers is None else replace(shape, layers=layers)
    made = plan(shape, setting, AGENTS[algorithm].critic_sees, critic)
    assert made.peak > GIB
    case = {
        "shape": asdict(shape),
        "setting": asdict(setting),
        "critic_layers": layers,
        "agent": algorithm,
    }
    child = subprocess.run(
        [sys.executable, str(CHILD), json.dumps(case)],
        # Freed memory goes back at once: by default the C library keeps up to a quarter of it, in holes.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout.splitlines()[-1])
    print(f"{name}: predicted {made.peak / GIB:.2f} GiB, measured {told['rise'] / GIB:.2f} GiB, {made}")
    assert told["rise"] == pytest.approx(made.peak, rel=0.2)
