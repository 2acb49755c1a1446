"""Reading answers as text."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo.llm.verifier_text import clean, last_box, last_hashes, members, quantity, rational, word


@pytest.mark.parametrize(
    ("response", "inside"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{5}, no: \boxed{7}.", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right\}}", r"\left\{ x \right\}"),
        (r"\boxed{x=\boxed{5}}", r"x=\boxed{5}"),
        (r"\boxed{a \boxed{5} and so on", "5"),
        (r"\boxed{7} and \boxed{5", "7"),
        (r"}} \boxed{5}", "5"),
        (r"{ \boxed{5}", "5"),
        (r"\boxed{}", ""),
        ("\\boxed{a\nb}", "a\nb"),
    ],
)
def test_last_box(response: str, inside: str) -> None:
    found = last_box(response)
    assert found is not None and found[0] == inside


@pytest.mark.parametrize("response", ["", "5", r"\boxed", r"\boxed{", r"\boxed 5", r"boxed{5}", r"\boxed{5\}", "}{"])
def test_no_box(response: str) -> None:
    assert last_box(response) is None


def test_box_among_very_many() -> None:
    began = time.perf_counter()
    assert last_box("\\boxed{" * 100_000) is None
    found = last_box("{" * 300_000 + r"\boxed{5}" + "\\boxed{" * 100_000)
    assert found is not None and found[0] == "5"
    assert time.perf_counter() - began < 5


def test_last_hashes() -> None:
    found = last_hashes("a #### 5\n so #### 1,234 \nend")
    assert found is not None and found[0] == "1,234"
    assert last_hashes("### 5") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", Fraction(5)),
        ("-5", Fraction(-5)),
        ("007", Fraction(7)),
        ("5.", Fraction(5)),
        (".35625", Fraction(57, 160)),
        ("27.0", Fraction(27)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1 000 000", Fraction(10**6)),
        ("3/4", Fraction(3, 4)),
        ("-3/-4", Fraction(3, 4)),
        (r"\frac{14}{3}", Fraction(14, 3)),
        (r"-\frac12", Fraction(-1, 2)),
        (r"\frac{270}7", Fraction(270, 7)),
        (r"\frac 34", Fraction(3, 4)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"-137 \frac{1}{2}", Fraction(-275, 2)),
        ("1 1/2", Fraction(3, 2)),
        (r"6.72 \times 10^{-5}", Fraction(672, 10**7)),
        ("4.5e3", Fraction(4500)),
        ("(5)", Fraction(5)),
        ("{5}", Fraction(5)),
    ],
)
def test_rational(text: str, value: Fraction) -> None:
    assert rational(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 7",
        "12 34",
        "1,23",
        "5,7",
        r"\frac{5}{0}",
        "5/0",
        "x",
        "5x",
        "1e9999",
        "５",
        "٥",
        "--5",
        "5-",
        "1_000",
        "inf",
    ],
)
def test_not_rational(text: str) -> None:
    assert rational(text) is None


@given(st.fractions())
def test_every_fraction_is_read_exactly(value: Fraction) -> None:
    a, b = value.numerator, value.denominator
    assert rational(f"{a}/{b}") == rational(rf"\frac{{{a}}}{{{b}}}") == value


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    cleaned = clean(text)
    quantity(cleaned), members(cleaned), word(cleaned), last_box(text)


def test_clean_keeps_row_separators() -> None:
    assert clean(r"$\left( 3,\, \dfrac{\pi}{2} \right)$.") == r"( 3, \frac{\pi}{2} )"
    assert clean(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}") == r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"
    assert clean(r"11,\! 111,\! 100") == "11,111,100"


def test_quantity_takes_off_units() -> None:
    assert quantity(clean(r"864 \mbox{ inches}^2"))[:3] == ("864", "inche2", 864)
    assert quantity(clean(r"\$18.90"))[:3] == ("18.90", "dollar", Fraction(189, 10))
    assert quantity(clean(r"90^\circ"))[:3] == ("90", "degree", 90)
    assert quantity(clean(r"50\%")) == ("50", "", 50, True)
    for kept in (r"5 \text{ million}", r"5 \text{ or seven}", "5t", r"\sin 30^\circ"):
        assert quantity(clean(kept)).number is None


def test_members_of_an_equation() -> None:
    assert members("x=2+3=5") == ["x", "2+3", "5"]
    assert members("x=1,000") == ["x", "1,000"]
    assert members("f(x, y)=5") == ["f(x, y)", "5"]
    for whole in ("x=5,y=7", r"x \le 5", r"x=5 \text{ or } x=7", "{x=5}", "x=", "5"):
        assert members(whole) == [whole]


def test_words() -> None:
    assert word(r"\text{Evelyn}") == word("Evelyn") == "evelyn"
    assert word(r"\text{(C)}") == word("(C)") == word(r"(\text{C})") == "c"
    assert word("p - q") is word("xy") is word("5") is word(r"\pi") is None
