"""Settings that come from outside, from a command line or a file: names and types are checked before use."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sppo.llm.tasks.names import unknown

T = TypeVar("T")


def json_values(options: Mapping[str, str]) -> dict[str, Any]:
    """The words of a command line as JSON values where they are such (numbers, true, null, [64,64]), else as words."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {name.replace("-", "_"): value(text) for name, text in options.items()}


def make(kind: type[T], values: Mapping[str, Any], what: str = "setting") -> T:
    """A dataclass from values whose names and types are checked; JSON's lists become tuples where those are wanted.

    Raises:
        ValueError: for an unknown name, with the nearest, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(typing.cast(Any, kind))]
    fitted = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(unknown(what, name, known))
        if isinstance(value, list) and typing.get_origin(hints[name]) is tuple:
            value = tuple(value)
        if not _is_a(value, hints[name]):
            raise ValueError(f"{what} {name} must be {_words(hints[name])}, got {value!r}")
        fitted[name] = value
    return kind(**fitted)


def check_made(file: Path, config: Any, free: Collection[str] = ()) -> None:
    """The `config` that a JSON file says its folder was made with must be this one, but for the settings `free`.

    Raises:
        ValueError: naming the folder and the first setting that differs; or if the file cannot be read.
    """
    try:
        made = make(type(config), json.loads(file.read_text("utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read how {file.parent} was made from {file.name}: {error!r}") from error
    for field in dataclasses.fields(config):
        was, now = getattr(made, field.name), getattr(config, field.name)
        if field.name not in free and was != now:
            raise ValueError(
                f"{file.parent} was made with {field.name} = {was!r}, and {now!r} is asked for: delete it to make anew"
            )


def _is_a(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _words(hint: Any) -> str:
    """A type as a sentence has it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(one) for one in arguments)
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a list, each {_words(arguments[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", types.NoneType: "null"}
    return names.get(hint, "a mapping" if origin is dict else str(hint))
