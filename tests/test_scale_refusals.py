"""What a run at scale cannot be started with is refused in one line that names it, before anything is written."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra sppo[llm]")

from fake_text import toy_policy

from sppo.experiments import cli, text
from sppo.experiments.config import RunConfig
from sppo.experiments.domains import resolve
from sppo.experiments.text_config import TextConfig
from sppo.llm.fsdp import join
from sppo.llm.policy import TextPolicy, load_model
from sppo.llm.sources import find_model
from sppo.llm.tokenizer import load_tokenizer


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What a run with these settings ends with, on the command line."""

    def of(*text: object) -> object:
        run = ["sppo", "train", "--task", "arithmetic", "--out", tmp_path / "run", "--text", *text]
        monkeypatch.setattr(sys, "argv", list(map(str, run)))
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not (tmp_path / "run").exists()
        return end.value.code  # which Python prints, and exits with 1

    return of


@pytest.mark.parametrize(
    ("package", "text", "hint"),
    [
        ("vllm", ("engine", "vllm"), "vLLM is not installed: pip install 'sppo[vllm]'"),
        ("vllm", ("engine", "vllm-server"), "vLLM is not installed: pip install 'sppo[vllm]'"),
        ("peft", ("lora_rank", 4), "adapters need PEFT: pip install sppo[lora]"),
        ("peft", ("critic_kind", "head"), "adapters need PEFT: pip install sppo[lora]"),
    ],
)
def test_a_missing_extra_is_named(
    package: str, text: tuple[object, ...], hint: str, refusal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "sppo.llm.lora", raising=False)
    assert refusal(*text).startswith(f"sppo: {hint}")


def test_a_critic_that_reads_other_tokens_is_named(refusal: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    toy_policy().save_pretrained(other)
    assert refusal("critic", other) == (
        f"sppo: the critic's model {other} numbers its tokens otherwise than the policy's: it cannot read them"
    )


def test_a_critic_of_responses_must_embed_what_the_policy_can_sample(tmp_path: Path) -> None:
    source = find_model("arithmetic")
    model, tokenizer = load_model(source), load_tokenizer(source)
    n = model.config.vocab_size
    model.resize_token_embeddings(n + 2)
    TextPolicy(model, tokenizer).save_pretrained(tmp_path)
    few = {"terms": [2, 3], "operands": [1, 9], "train_size": 40, "test_size": 12}
    run = RunConfig(env_id="text/arithmetic", env_kwargs=few, start=str(tmp_path), text={"critic": "arithmetic"})
    for start in (lambda config: text.check([config]), lambda config: text.make_agents([config])):
        start(resolve(replace(run, agent="sppo")))
        with pytest.raises(ValueError, match=f"model arithmetic must embed .*the policy can sample, {n + 2}, got {n}$"):
            start(resolve(replace(run, agent="ppo")))


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match="started 2 processes and there are 1 GPUs: --nproc-per-node must be at most 1"
    ):
        join()
    dry = RunConfig(env_id="text/arithmetic", env_kwargs={"train_size": 40, "test_size": 12})
    with pytest.raises(ValueError, match="started 2 processes and there are 1 GPUs"):
        text.check([resolve(dry)])


def test_gpus_of_a_server_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(text, "require_vllm", lambda: None)
    monkeypatch.setattr(text, "fits", lambda config: None)

    def checked(devices: str | int) -> None:
        run = RunConfig(env_id="text/arithmetic", env_kwargs={"train_size": 40, "test_size": 12})
        text.check([resolve(replace(run, text={"engine": "vllm-server", "engine_devices": devices}))])

    checked(1)
    with pytest.raises(ValueError, match="engine_devices 1,2 are not all there: .* and there are 2"):
        checked("1,2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # of more, which the server may have
    checked("1,2")


def test_gpus_of_a_server_are_refused_where_they_are_nobodys_or_everybodys(refusal: Any) -> None:
    assert refusal("engine", "vllm", "engine_devices", 1) == (
        "sppo: engine_devices 1 are of engine vllm-server, and it is vllm"
    )
    with pytest.raises(ValueError, match="engine_devices 1,2 would have to hold a server of each of the 4 ranks"):
        TextConfig(engine="vllm-server", engine_devices="1,2", ranks=4)
    assert TextConfig(engine="vllm-server", engine_devices=1).engine_devices == 1
