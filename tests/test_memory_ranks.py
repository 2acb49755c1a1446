"""The memory plan of a run that ranks share, two or one, against what each of them then takes."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest

pytest.importorskip("math_verify", reason="needs the extra sppo[math]")
pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

import transformers
from launched import done, torchrun
from small_runs import assert_looks_whole, records

from sppo.experiments.memory import GIB
from sppo.llm.tokenizer import character_tokenizer

CHILD = (str(Path(__file__).with_name("sharded_memory.py")),)
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n"
TRAIN = "--episodes 48 --evals 1 --eval-episodes 8 --checkpoint-freq 1 --settings n_minibatches 1 n_epochs 1".split()
"""The critic's first prediction, and two updates of 16 responses: in the second, Adam has its moments."""
CASES = {
    "sppo": (12, ["--text"]),
    "ppo": (19, ["--text", "shard_dtype", "bfloat16", "checkpointing", "true"]),
}


def model(folder: Path, layers: int) -> Path:
    """Random: 40 million weights in 12 layers, 60 million in 19."""
    tokenizer = character_tokenizer(string.printable)
    tokenizer.chat_template = TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident set from /proc")
@pytest.mark.parametrize(("agent", "ranks"), [("sppo", 2), ("ppo", 2), ("sppo", 1)])
def test_each_rank_takes_what_was_predicted(
    agent: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run, from reading the model to writing it: within 20% on each rank, checkpoints included."""
    layers, more = CASES[agent]
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    rows = [{"question": f"{i:02d} {'ab' * 45}?", "answer": str(i)} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))  # freed memory goes back at once, not into holes
    where = ["--task", data, "--task-options", "test_share", 0.2, "--model", model(tmp_path / "model", layers)]
    sizes = ["episodes_per_update", 16, "microbatch_size", 8 * ranks]
    text = [*more, "max_completion_length", 50, "threads", 1]
    done(*torchrun(ranks, *CHILD), "train", *where, "--agent", agent, *TRAIN, *sizes, *text, "--out", run)
    assert_looks_whole(run)
    assert len(records(run / "progress.jsonl")) == 2
    for rank in range(ranks):
        told = json.loads((run / f"{rank}.json").read_text())
        print(f"{agent}, rank {rank}: predicted {told['planned'] / GIB:.2f} GiB, measured {told['rise'] / GIB:.2f} GiB")
        assert told["planned"] > GIB
        assert told["rise"] == pytest.approx(told["planned"], rel=0.2)
