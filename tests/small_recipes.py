"""Recipes made small: the first rows of the real files, and random models of the same families."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import transformers
from pyarrow import parquet

from sppo.experiments import prompts, text_memory
from sppo.experiments.recipes import RECIPES, teach_line
from sppo.llm import sft_command
from sppo.llm.tasks.rows import find_data
from sppo.llm.tokenizer import character_tokenizer

FILES = {  # in a small folder of data -> the real file that its first rows are of; DAPO stands in for DeepScaleR
    "dapo-math-17k.parquet": "dapo-math-17k.parquet",
    "deepscaler.parquet": "dapo-math-17k.parquet",
    "math500.parquet": "math500.parquet",
    "amc23.parquet": "amc23.parquet",
    "gsm8k-train.jsonl": "gsm8k-train.jsonl",
    "gsm8k-test.jsonl": "gsm8k-test.jsonl",
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}\n{% endif %}"


@contextmanager
def first_rows(folder: Path) -> Iterator[Path]:
    """The first 40 rows of each real file, as the whole data there is."""
    for name, real in FILES.items():
        try:
            source = find_data((real,))
        except FileNotFoundError as error:
            pytest.skip(f"the real data files are not at hand: {error}")
        if source.suffix == ".parquet":
            parquet.write_table(parquet.read_table(source).slice(0, 40), folder / name)
        else:
            (folder / name).write_text("".join(source.read_text().splitlines(keepends=True)[:40]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPPO_DATA", str(folder))
        forget()
        yield folder
    forget()


def forget() -> None:
    """What was read from another folder."""
    prompts._cached.cache_clear()
    text_memory._longest_prompt.cache_clear()


def small_models(folder: Path) -> dict[str, Path]:
    """A random model of two layers of each family, the critic's of one; all read the same characters."""
    tokenizer = character_tokenizer(string.printable)
    tokenizer.chat_template = TEMPLATE
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id,
    }
    qwen, llama = transformers.Qwen2Config, transformers.LlamaConfig
    kinds = {"r1-distill-qwen-7b": (qwen, 2), "r1-distill-qwen-1.5b": (qwen, 1), "smollm2": (llama, 2)}
    for name, (config, layers) in kinds.items():
        transformers.set_seed(0)
        made = config(**shape, num_hidden_layers=layers)
        transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in kinds}


def teach(name: str, out: Path, model: object, *fewer: object) -> Path:
    """Where the model is that a recipe starts from: `model`, after a few gradient steps."""
    line = teach_line(name, out)
    assert line is not None and line[:3] == ["python", "-m", "sppo.llm.sft"]
    words = [str(model) if word == RECIPES[name].model else word for word in line[3:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sft", *words, *map(str, fewer)])
        sft_command.main()
    return Path(line[-1])
