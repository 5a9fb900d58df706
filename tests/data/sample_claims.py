"""Every claim that a step of a sample problem makes with a sign, and whether it is so."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction

from tests.data.sample_formulas import DATE, NUMBER, day_number, later, weekday

_VALUE = rf"(?:{DATE}|{NUMBER})".replace("(\\d", "(?:\\d")
_SUM_OF_DAYS = re.compile(rf"{DATE} \+ (\d+) days? = {DATE}")
_EQUATION = re.compile(r"(?<![\w.])(-log10\([\d.]+\)|[\d(][\d.()+*/-]*) ([=≈]) (\d+(?:\.\d+)?)(?![\d-])")
_COMPARISON = re.compile(rf"({_VALUE}) ([<>]=?) ({_VALUE})(?: (<) ({_VALUE}))?")
_WEEKDAY = re.compile(rf"(?:{DATE}, an? (\w+day))|(?:an? (\w+day), {DATE})")


def claims(text: str) -> Iterator[tuple[str, bool]]:
    """Each thing that the text claims with a sign, and whether it is so. A sign that belongs to no claim is one that is not."""
    for match in _SUM_OF_DAYS.finditer(text):
        yield match[0], later(match[1], int(match[2])) == match[3]
    text = _SUM_OF_DAYS.sub("", text)
    for match in _WEEKDAY.finditer(text):
        yield match[0], weekday(match[1] or match[4]) == (match[2] or match[3])
    for match in _EQUATION.finditer(text):
        yield match[0], _holds(match[1], match[2], match[3])
    text = _EQUATION.sub("", text)
    for match in _COMPARISON.finditer(text):
        yield match[0], _compares(match[1], match[2], match[3]) and (not match[4] or _compares(match[3], match[4], match[5]))
    rest = _COMPARISON.sub("", text)
    if re.search("[=≈<>]", rest):
        yield rest, False


def _holds(left: str, sign: str, right: str) -> bool:
    value = evaluated(left)
    if sign == "=":
        return value == Fraction(right)
    half = Fraction(1, 2 * 10 ** len(right.partition(".")[2]))
    return value != Fraction(right) and abs(value - Fraction(right)) < half


def _compares(left: str, sign: str, right: str) -> bool:
    a, b = (day_number(text) if "-" in text else Fraction(text) for text in (left, right))
    return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[sign]


def evaluated(expression: str) -> Fraction:
    """The exact value of + - * / and brackets; of -log10(x) that of its nearest float, or of a whole number."""
    if expression.startswith("-log10("):
        value = -math.log10(float(expression[7:-1]))
        return Fraction(round(value)) if Fraction(expression[7:-1]) == Fraction(1, 10 ** round(value)) else Fraction(value)

    return eval(re.sub(NUMBER, r"Fraction('\1')", expression), {"Fraction": Fraction})
