"""Reading answers as text: the last box, numbers as exact fractions, units, equations. No symbolic mathematics here."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")


def last_box(text: str) -> tuple[str, int] | None:
    """The inside of the last balanced \\boxed{} or \\fbox{}, outermost if nested, and where it ends; None without one.

    Escaped braces do not count, and a box that is never closed does not hide the ones before it or inside it.
    """
    open_braces: list[tuple[bool, int]] = []
    found: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            if open_braces:
                is_box, start = open_braces.pop()
                if is_box:
                    found = (start, match.start())
        elif token.endswith("{") and token != "\\{":
            open_braces.append((len(token) > 1, match.end()))
    return None if found is None else (text[found[0] : found[1]], found[1])


def last_hashes(text: str) -> tuple[str, int] | None:
    """GSM8K's way: what follows the last `####` on its line, and where it ends; None without one."""
    found = None
    for match in _HASHES.finditer(text):
        found = match
    return None if found is None else (found.group(1).strip(), found.end())


_REPLACED = [
    (re.compile(r"\\(?:boxed|fbox)\s*(?=\{)"), ""),
    (re.compile(r"\\(?:[dtc]frac)(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:mbox|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit)\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![a-zA-Z])"), ""),
    (re.compile(r"(?<!\\)\\(?:!\s*|[()\[\]])"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\$"), ""),
    (re.compile(r"\\text\s*\{\s*(?:percent|per cent)\s*\}|(?<=[\d ])(?:percent|per cent)$"), r"\\%"),
]
_UNICODE = str.maketrans({"−": "-", "–": "-", "\u00a0": " ", "×": "\\times ", "°": "^\\circ", "π": "\\pi "})


def clean(text: str) -> str:
    """The same answer without what is only for show: spacing, sizes, fonts, dollar signs around it, a full stop."""
    text = text.translate(_UNICODE)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = re.sub(" +", " ", text).strip()
    while text.endswith((".", ",", ";")) and not text.endswith("\\"):
        text = text[:-1].rstrip()
    return text


_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_ARGUMENT = rf"(?:\{{\s*({_NUMBER})\s*\}}|([0-9]))"
_FRACTION = rf"\\frac\s*{_ARGUMENT}\s*{_ARGUMENT}"
_PLAIN = re.compile(_NUMBER)
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[+-]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_SLASH = re.compile(rf"({_NUMBER}) ?/ ?({_NUMBER})")
_LATEX_FRACTION = re.compile(rf"([+-]?) ?{_FRACTION}")
_MIXED = re.compile(rf"([+-]?) ?([0-9]+) ?{_FRACTION}|([+-]?)([0-9]+) ([0-9]+)/([0-9]+)")
_EXPONENT = r"(?:\{ ?([+-]?[0-9]{1,3}) ?\}|([0-9]))"
_SCIENTIFIC = re.compile(rf"({_NUMBER}) ?(?:[eE]([+-]?[0-9]{{1,3}})|(?:\\times|\\cdot|\*) ?10 ?\^ ?{_EXPONENT})")


def rational(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number or power-of-ten form; None for all else.

    1,234 and 1 234 are 1234; 5 7 is not a number. A denominator of zero gives None."""
    text = text.strip()
    while len(text) > 2 and text[0] + text[-1] in ("{}", "()") and not any(c in text[1:-1] for c in "{}()"):
        text = text[1:-1].strip()
    try:
        if _PLAIN.fullmatch(text):
            return Fraction(text.rstrip(".") if text.endswith(".") else text)
        if _GROUPED.fullmatch(text):
            return Fraction(text.replace(",", "").replace(" ", ""))
        if match := _SLASH.fullmatch(text):
            return Fraction(match[1]) / Fraction(match[2])
        if match := _LATEX_FRACTION.fullmatch(text):
            sign, a, b, c, d = match.groups()
            value = Fraction(a or b) / Fraction(c or d)
            return -value if sign == "-" else value
        if match := _MIXED.fullmatch(text):
            sign, whole, a, b, c, d, sign2, whole2, e, f = match.groups()
            part = Fraction(e) / Fraction(f) if whole is None else Fraction(a or b) / Fraction(c or d)
            value = Fraction(whole or whole2) + part
            return -value if "-" in (sign, sign2) else value
        if match := _SCIENTIFIC.fullmatch(text):
            return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or match[4])
    except (ZeroDivisionError, ValueError):
        pass
    return None


class Quantity(NamedTuple):
    """An answer taken apart: what is left of the text, its unit ("" without), and the number it is, if it is one.

    `percent` is True where a per-cent sign was taken off: the number is then that of per cents."""

    text: str
    unit: str
    number: Fraction | None
    percent: bool


_UNIT = re.compile(r"(.*[^ ]) ?\\text ?\{([A-Za-z ./]*)\} ?(?:\^ ?\{?([0-9])\}?)?", re.DOTALL)
_WORDS = (
    "cm mm km kg mg ml ft inch inches foot feet yards miles mile meters metres minutes minute hours hour seconds "
    "second days day weeks months years dollars cents degrees units square sq cubic mph"
)
_PLAIN_UNIT = re.compile(rf"(.*[0-9}}]) ?((?:{_WORDS.replace(' ', '|')})(?: [a-z]+)?) ?(?:\^ ?\{{?([0-9])\}}?)?")
_DEGREES = re.compile(r"(.+?) ?(?:\^ ?(?:\{ ?\\circ ?\}|\\circ)|\\degree)")
# Words that are not units: what they join or multiply would be lost.
_NOT_UNITS = frozenset(
    "or and not nor no but to than maybe either both with without if is are be hundred thousand million billion "
    "trillion dozen half halves third thirds quarter times plus minus less more about mod modulo base".split()
)


def quantity(text: str) -> Quantity:
    """Take unit, dollar, degree and per-cent signs off a cleaned answer."""
    unit, percent = "", False
    body = text
    if body.startswith("\\$"):
        body, unit = body[2:].strip(), "dollar"
    if match := _DEGREES.fullmatch(body):
        if rational(match[1]) is not None:
            body, unit = match[1], "degree"
    if match := _UNIT.fullmatch(body) or _PLAIN_UNIT.fullmatch(body):
        words = match[2].lower().replace(".", " ").split()
        if words and not _NOT_UNITS & set(words) and "\\text" not in match[1]:
            body, unit = match[1].strip(), "".join(w.removesuffix("s") for w in words) + (match[3] or "")
    if body.endswith("%"):
        bare = body[:-1].removesuffix("\\").strip()
        if rational(bare) is not None:
            body, percent = bare, True
    return Quantity(body, unit, rational(body), percent)


_RELATIONS = re.compile(r"\\(?:neq?|leq?|geq?|lt|gt|equiv|implies|Rightarrow|to|text|quad|or|and|mid|in)(?![a-zA-Z])")
_COMMANDS = re.compile(r"\\[a-zA-Z]+")
_NAME = re.compile(r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_(?:[a-zA-Z0-9]|\{[a-zA-Z0-9]+\}))?(?: ?\([a-zA-Z0-9, ]*\))?")
_FUNCTIONS = frozenset({"\\pi", "\\infty", "\\emptyset"})


def members(text: str) -> list[str]:
    """The sides of an equation chain a = b = c, approximate ones too; [text] where it is not one plain chain."""
    if _RELATIONS.search(text) or any(c in text for c in "<>;&") or "\\\\" in text:
        return [text]
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"\\approx(?![a-zA-Z])|\\[{}]|[=,{}()\[\]]", text):
        token = match.group().removeprefix("\\")
        if token in ("{", "(", "["):
            depth += 1
        elif token in ("}", ")", "]"):
            depth -= 1
        elif token == ",":
            if depth == 0 and not re.match(r"[0-9]{3}(?![0-9])", text[match.end() :]):
                return [text]  # a list, not the 1,000 of one number
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return parts if all(parts[1:]) else [text]


def is_name(text: str) -> bool:
    """True for a single symbol, with or without index and arguments: x, a_1, f(x), \\theta."""
    return bool(_NAME.fullmatch(text)) and text not in _FUNCTIONS


def is_closed(text: str) -> bool:
    """True where no symbol stands in the text, so that it has one value of its own."""
    return not re.search(r"[a-zA-Z]", _COMMANDS.sub("", text))


def word(text: str) -> str | None:
    """The casefolded word of \\text{word}, \\text{(C)}, (C) or a bare word of four letters or more; else None.

    Shorter bare ones are products of variables."""
    inner = text.strip(" .")
    in_brackets = len(inner) > 2 and inner[0] + inner[-1] == "()"
    inner = inner[1:-1].strip() if in_brackets else inner
    if match := re.fullmatch(r"\\text ?\{([^{}\\]*)\}", inner):
        shown = match[1].strip(" .()").casefold()
        return shown if re.fullmatch(r"[a-z][a-z '-]*", shown) else None
    pattern = r"[a-z]" if in_brackets else r"[a-z]{4,}(?: [a-z]+)*"
    return inner.casefold() if re.fullmatch(pattern, inner, re.IGNORECASE) else None


def normal_form(cleaned: str) -> str:
    """One text for most of the ways to write a cleaned answer: numbers exact and without unit, words casefolded, no
    `x =`. 0.5, \\frac12 and x = 1/2 are all 1/2; 50% stays apart, as expressions do that only mathematics could tell
    to be equal."""
    sides = members(cleaned)
    if len(sides) == 2 and is_name(sides[0]):
        cleaned = sides[1]
    read = quantity(cleaned)
    if read.number is not None:
        return f"{read.number}%" if read.percent else str(read.number)
    return word(cleaned) or cleaned


def nesting(text: str) -> int:
    """How deep brackets of any kind are nested."""
    depth = deepest = 0
    for c in text:
        if c in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in ")]}":
            depth -= 1
    return deepest
