"""Text to token ids and back: a character-level tokenizer for tiny models, and any that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

PAD, STOP, UNKNOWN = "<pad>", "<stop>", "<unk>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token per character of `alphabet`, after <pad>, <stop> and <unk>."""
    if len(set(alphabet)) != len(alphabet):
        raise ValueError(f"each character of the alphabet must stand once, got {alphabet!r}")
    vocabulary = {token: i for i, token in enumerate([PAD, STOP, UNKNOWN, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=STOP, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def load_tokenizer(source: str, **kwargs: Any) -> Any:
    """The tokenizer beside a model, or in its .gguf file.

    Raises:
        ValueError: if it has no stop token.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, **kwargs)
        # transformers takes the first token of a text for the stop token here; the file says which it is.
        stop = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name).eos_token_id
        tokenizer.eos_token = None if stop is None else tokenizer.convert_ids_to_tokens(stop)
        tokenizer.clean_up_tokenization_spaces = False  # or each saved copy warns that it is ignored
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {source} has no stop (eos) token: no answer could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any id does
    return tokenizer


def encode_prompt(tokenizer: Any, prompt: str | list[dict[str, str]]) -> list[int]:
    """Token ids of a plain prompt, or of chat messages through the tokenizer's template."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        if tokenizer.chat_template is None:
            raise ValueError("the prompt is a list of chat messages, and the tokenizer has no chat template")
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return list(ids)
