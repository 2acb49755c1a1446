"""Text to token ids and back: a character-level tokenizer for tiny models, and any that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

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
    """The tokenizer beside a model, or in its .gguf file; `other_stops` are the model's stop tokens besides its own.

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
        ends: list[int] = []
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
        ends = _ends(source)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {source} has no stop (eos) token: no answer could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any id does
    tokenizer.other_stops = sorted({*ends} - {tokenizer.eos_token_id})
    return tokenizer


def _ends(source: str) -> list[int]:
    """What a model's generation config, where it has one, lets an answer end with: of chats, often the end of a turn
    and that of a text."""
    try:
        ends = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        return []
    return [] if ends is None else [ends] if isinstance(ends, int) else ends


def encode_prompt(tokenizer: Any, prompt: str | list[dict[str, str]]) -> list[int]:
    """Token ids of a plain prompt, begun as the tokenizer begins a text, or of chat messages through its template."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        if ids[-1:] == [tokenizer.eos_token_id]:  # some end a text too: but this one is to go on
            ids = ids[:-1]
    else:
        if tokenizer.chat_template is None:
            raise ValueError("the prompt is a list of chat messages, and the tokenizer has no chat template")
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return list(ids)
