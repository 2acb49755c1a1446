"""Is the answer in this response right? Mathematics, whatever a model may write, within a bounded time.

Numbers are compared exactly and here; everything else by math-verify in killable processes. docs/TASKS.md lists the
decisions; a verdict is data, and its reason is counted.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import NamedTuple

from sppo.llm import verifier_text as text
from sppo.llm.tasks.base import Score
from sppo.llm.verifier_pool import Pool

REASONS = tuple("ok wrong no_answer unparsable unevaluated too_long timeout died error bad_gold".split())
"""All that `Verifier` may answer."""

_OPERATORS = re.compile(
    r"\\(?:sum|prod|coprod|int|iint|oint|lim|limsup|liminf|max|min|sup|inf|gcd|lcm|det|arg|b?mod|pmod"
    r"|(?:text|operatorname) ?\{ ?(?:max|min|gcd|lcm|lim|mod) ?\})(?![a-zA-Z])"
    r"|\\[lc]?dots(?![a-zA-Z])|\.\.\."
)
_FOUR_OPERATIONS = re.compile(r"(?:[0-9. +\-*/(){}]|\\times|\\cdot|\\div|\\frac)+")
_BASE = re.compile(r"([0-9A-Z]+) ?_ ?(?:\{? ?([0-9]+) ?\}?)")
_DIGITS_APART = re.compile(r"[0-9] +[0-9]")
_IN_SET = re.compile(r"[a-zA-Z] ?\\in(?![a-zA-Z])")
_DEEP = 20  # brackets nested deeper than this are no answer, and take math-verify's grammar seconds

Pair = tuple[str, str]


class Side(NamedTuple):
    """A gold answer, prepared once."""

    text: str
    name: str | None  # the x of x = 5
    quantity: text.Quantity
    word: str | None
    base: Pair | None  # digits and base of 52_8


@lru_cache(maxsize=65536)
def _gold(answer: str) -> Side:
    cleaned = _strip_membership(text.clean(answer))
    parts, name = text.members(cleaned), None
    if len(parts) == 2 and text.is_name(parts[0]):
        name, cleaned = parts
    base = _BASE.fullmatch(cleaned)
    return Side(
        cleaned, name, text.quantity(cleaned), text.word(cleaned), (base[1], base[2]) if base is not None else None
    )


def _strip_membership(cleaned: str) -> str:
    match = _IN_SET.match(cleaned)
    return cleaned[match.end() :].strip() if match else cleaned


def equal_numbers(gold: text.Quantity, answer: text.Quantity) -> bool:
    """Exact equality; x% is x/100, and a per-cent sign may be left out, or added to a gold answer above 1.

    50% stands for 50%, 50 and 1/2; 50 for 50 and 50%; 1/2 for 1/2 and 50%, but not for 0.5%.
    """
    assert gold.number is not None and answer.number is not None
    a = gold.number / 100 if gold.percent else gold.number
    b = answer.number / 100 if answer.percent else answer.number
    if a == b:
        return True
    sign_optional = gold.percent != answer.percent and (gold.percent or abs(gold.number) > 1)
    return sign_optional and gold.number == answer.number


def decide(gold: Side, answer: str, *, claim: bool = False) -> str | Pair:
    """A reason where text alone decides, else the pair (gold, answer) that math-verify has to compare.

    Args:
        claim: the answer is an earlier side of an equation: 2 + 3 in 2 + 3 = 5 may stand unevaluated.
    """
    if answer == gold.text:
        return "ok"
    if gold.word is not None:
        said = text.word(answer) or answer.strip(" .()").casefold()
        return "ok" if said == gold.word else "wrong"
    if gold.base is not None and (match := _BASE.fullmatch(answer) or re.fullmatch("([0-9A-Z]+)()", answer)):
        return "ok" if match[1] == gold.base[0] and match[2] in ("", gold.base[1]) else "wrong"
    known, said_quantity = gold.quantity, text.quantity(answer)
    if known.unit and said_quantity.unit and known.unit != said_quantity.unit:
        return "wrong"
    if known.number is not None and said_quantity.number is not None:
        return "ok" if equal_numbers(known, said_quantity) else "wrong"
    body = said_quantity.text
    if known.number is not None:
        if "\\text" in body:
            return "wrong"
        if not claim and _FOUR_OPERATIONS.fullmatch(body):
            return "unparsable" if not re.search("[0-9]", body) or _DIGITS_APART.search(body) else "unevaluated"
    if _DIGITS_APART.search(body) or text.nesting(body) > _DEEP:
        return "unparsable"
    if set(_OPERATORS.findall(body)) - set(_OPERATORS.findall(known.text)):
        return "unevaluated"
    # math-verify takes the set {2, 4} for the open interval (2, 4).
    if known.text[:1] in "([" and known.text[-1:] in ")]" and body.startswith("\\{"):
        return "wrong"
    if known.percent or said_quantity.percent:
        return "wrong"
    return known.text, body


def judge(gold: Side, answer: str) -> str | list[Pair]:
    """A reason, or the comparisons of which all must come out equal.

    In an equation chain the last side is the answer. Sides that hold symbols name what was asked for; the other sides
    must be right too, so 6 = 5 is wrong whichever of the two was meant.
    """
    parts = [_strip_membership(answer)]
    if len(text.members(gold.text)) == 1:
        sides = text.members(parts[0])
        if len(sides) > 1:
            names = [side for side in sides if text.is_name(side)]
            values = [side for side in sides if not text.is_name(side)] or sides[-1:]
            if gold.name is not None and names and gold.name not in names:
                return "wrong"
            if gold.quantity.number is not None or text.is_closed(gold.text):
                parts = [values[-1], *(side for side in values[:-1] if text.is_closed(side))]
            else:
                parts = [values[-1]]
    pairs: list[Pair] = []
    for i, part in enumerate(parts):
        verdict = decide(gold, part, claim=i > 0)
        if isinstance(verdict, tuple):
            pairs.append(verdict)
        elif verdict != "ok":
            return verdict
    return pairs or "ok"


class Verifier:
    """Scores the boxed answer of a response against a gold answer: reward 1 or 0, and the reason.

    Safe to call from any thread. Answers beyond numbers go to worker processes, which start when first needed.

    Args:
        workers: processes at most; by default one per core, four at most.
        seconds: wall-clock limit of one comparison, whose worker is then killed.
        max_answer_length: characters inside the box; longer ones are too_long (or twice the gold answer's length).

    Raises:
        ImportError: without math-verify.
    """

    def __init__(self, *, workers: int | None = None, seconds: float = 3.0, max_answer_length: int = 400) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("the verifier needs math-verify: pip install sppo[math]")
        self.max_answer_length = max_answer_length
        self.pool = Pool(workers=workers, seconds=seconds, warm_up=("compare", ("\\frac{x}{2}", "(x-1)/2")))
        self.counts: Counter[str] = Counter()
        self._known: OrderedDict[Pair, str] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, response: str, gold: str, *, hashes: bool = False) -> Score:
        """The outcome of one response; see `verify_all`."""
        return self.verify_all([response], [gold], hashes=hashes)[0]

    def verify_all(self, responses: Sequence[str], golds: Sequence[str], *, hashes: bool = False) -> list[Score]:
        """Outcomes in order, whatever becomes of any one of them.

        Args:
            responses: (n,) texts; the last balanced box holds the answer.
            golds: (n,) answers as LaTeX or plain text, not boxed.
            hashes: accept GSM8K's `#### answer` too; the later of the two counts.
        """
        verdicts = [self._first_look(response, gold, hashes) for response, gold in zip(responses, golds, strict=True)]
        asked = dict.fromkeys(pair for verdict in verdicts if isinstance(verdict, list) for pair in verdict)
        results = self._compare(list(asked))
        scores = []
        for verdict in verdicts:
            if isinstance(verdict, list):
                verdict = next((results[pair] for pair in verdict if results[pair] != "ok"), "ok")
            scores.append(Score(float(verdict == "ok"), verdict))
        with self._lock:
            self.counts.update(score.reason for score in scores)
        return scores

    def answer(self, response: str, *, hashes: bool = False) -> str | None:
        """What a response answers, as `verifier_text.normal_form` writes it; None where nothing that short is boxed."""
        said = _said(response, hashes)
        if said is None or len(said) > self.max_answer_length:
            return None
        return text.normal_form(text.clean(said)) or None

    def close(self) -> None:
        """Kill the workers; done at exit too."""
        self.pool.close()

    def _first_look(self, response: str, gold: str, hashes: bool) -> str | list[Pair]:
        answer = _said(response, hashes)
        if answer is None:
            return "no_answer"
        if len(answer) > max(self.max_answer_length, 2 * len(gold)):
            return "too_long"
        cleaned = text.clean(answer)
        if not cleaned:
            return "no_answer"
        if cleaned == text.clean(gold):
            return "ok"
        return judge(_gold(gold), cleaned)

    def _compare(self, pairs: list[Pair]) -> dict[Pair, str]:
        with self._lock:
            results = {pair: self._known[pair] for pair in pairs if pair in self._known}
        new = [pair for pair in pairs if pair not in results]
        replies = dict(zip(new, self.pool.ask_all("compare", new), strict=True))
        results.update({pair: str(r.result) if r.status == "ok" else r.status for pair, r in replies.items()})
        with self._lock:
            # Only verdicts are kept: a time-out may be the machine's fault, and is tried again.
            self._known.update({pair: results[pair] for pair, reply in replies.items() if reply.status == "ok"})
            while len(self._known) > 65536:
                self._known.popitem(last=False)
        return results


def _said(response: str, hashes: bool) -> str | None:
    """The inside of the last box, or what follows the last `####` where that counts and comes later."""
    found = [place for place in (text.last_box(response), text.last_hashes(response) if hashes else None) if place]
    return max(found, key=lambda place: place[1])[0] if found else None


@cache
def shared_verifier() -> Verifier:
    """The verifier that tasks share, so that they share its processes."""
    return Verifier()


def is_number(answer: str) -> Fraction | None:
    """The exact value of an answer that is a plain number, without unit or per-cent sign; None for all else."""
    return text.rational(text.clean(answer))
