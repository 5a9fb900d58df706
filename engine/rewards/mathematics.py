"""Mathematical equality of an answer and a reference, by the library math-verify (extra `math`), with what cheats it closed off.

Left out: the library's own choice among several answers. What is compared is one expression, found here, or nothing.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

from engine.rewards.answers import boxed, extract_answer, side_by_side

LIMIT_SECONDS = 2.0  # of comparing one answer
_MAX_CHARACTERS = 300  # of an answer: a longer one is prose or a list

_SPAN = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SAID = re.compile(r"\b(?:answer|result|solution)\b(?:\s+(?:is|must\s+be))?\s*[:=]?", re.IGNORECASE)
_FUNCTIONS = re.compile(r"\\[A-Za-z]+|\b(?:arc)?(?:sin|cos|tan)h?\b|\b(?:sqrt|log|exp)\b")
_PROSE = re.compile(r"[^\W\d_]{3,}")
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBERS = re.compile(rf"(?<![\w.])[-+]?\$?(?:{_NUMBER})(?:/[0-9]+)?%?")
# A number that needs no computing, and a unit: 12, -3.5, 3/4, \frac{3}{4}, 2 \times 10^{3}, 50\%, 12 \text{ cm}.
_LITERAL = re.compile(
    rf"""[-+]?\s*\\?\$?\s*(?:\\[dt]?frac\s*\{{\s*-?\s*[0-9.]+\s*\}}\s*\{{\s*[0-9.]+\s*\}}|\\[dt]?frac\s*[0-9]\s*[0-9]
        |(?:{_NUMBER})(?:\s*/\s*[0-9.]+)?)
        (?:\s*(?:\\times|\\cdot|\*|×)\s*10\s*\^\s*(?:[0-9]|\{{\s*[-+]?[0-9]{{1,3}}\s*\}})|[eE][-+]?[0-9]{{1,3}})?
        (?P<unit>[^0-9+*=<>]*(?:\^\s*\{{?\s*-?[0-9]\s*\}}?)?)""",
    re.VERBOSE,
)
_LATEX_SPACE = re.compile(r"\\[,!;: ]|~")


def math(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float | None]:
    """1 where the answer equals the reference as mathematics (1/2 and 0.5, (x+1)^2 and x^2+2x+1), else 0.

    The answer is what is in \\boxed{}, else the formula or number in <answer> or on the last line. Several different ones
    are 0, and where the reference is a number so is an expression that is not computed (23+32 for 55). Decimals are equal to
    six digits after the point; 50% is 50 as well as 0.5; digits other than 0 to 9, more than 300 characters and a comparison
    that takes over 2 seconds are 0. Not applicable where the reference cannot be read as mathematics.
    """
    return [None if r is None else _score(c, r) for c, r in zip(completions, answer, strict=True)]


def expression(text: str) -> str | None:
    """The one expression that a reply or a reference gives as its answer, as LaTeX without marks; None for none or several."""
    region = extract_answer(text)
    found = list(dict.fromkeys(_tidy(piece) for piece in boxed(region)))
    if not found:
        if "<answer>" not in text:
            region = next((line for line in reversed(region.splitlines()) if line.strip()), "")
        region = _SAID.split(region)[-1].strip().strip("*").removesuffix(".").strip()
        spans = [next(filter(None, match.groups())) for match in _SPAN.finditer(region)]
        found = list(dict.fromkeys(map(_tidy, spans))) or _plain(region)
    if len(found) != 1 or not 0 < len(found[0]) <= _MAX_CHARACTERS:
        return None
    has_odd_digit = any(character.isdigit() and not character.isascii() for character in found[0])
    return None if has_odd_digit else found[0]


def _plain(region: str) -> list[str]:
    """Of a text without mathematical marks: the whole, where it is a formula; of prose the last number, where it is alone."""
    if not _PROSE.search(_FUNCTIONS.sub(" ", region)):
        return [_tidy(region)]
    found = list(_NUMBERS.finditer(region))
    values = [match[0].strip("$") for match in found]
    if (
        len(found) > 1
        and values[-1] != values[-2]
        and side_by_side(region[found[-2].end() : found[-1].start()], region[found[-1].end() :])
    ):
        return values[-2:]
    return values[-1:]


def _tidy(text: str) -> str:
    return " ".join(_LATEX_SPACE.sub(" ", text.replace("\N{MINUS SIGN}", "-")).split()).strip("$ ")


def _score(completion: str, reference: str) -> float | None:
    wanted = expression(reference)
    gold = None if wanted is None else _parsed(wanted)
    if wanted is None or not gold:
        return None
    found = expression(completion)
    if found is None or (_is_literal(wanted) and not _is_computed(found, gold)):
        return 0.0
    return float(_equal(gold, found))


def _is_literal(text: str) -> bool:
    match = _LITERAL.fullmatch(text)
    return match is not None and "\\vee" not in match["unit"] and "\\lor" not in match["unit"]


def _is_computed(found: str, gold: Any) -> bool:
    """Whether the last side of `found` is a plain number, and its other sides are names or have that value, too."""
    *others, last = (side.strip() for side in found.split("="))
    numeric = [side for side in others if not re.search(r"[A-Za-z]", _FUNCTIONS.sub(" ", side))]
    return _is_literal(last) and all(_equal(gold, side) for side in numeric)


@lru_cache(maxsize=1)
def _library() -> Any:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns once that its time-outs are off, as they should be
    return import_module("math_verify")


@lru_cache(maxsize=1024)
def _parsed(latex: str) -> Any:
    """What math-verify reads in the LaTeX: a list that is empty where it reads nothing."""
    library = _library()
    # Its own time-outs are off: they count whole seconds for each of many steps. _equal has one for all.
    return library.parse(f"${latex}$", [library.LatexExtractionConfig()], parsing_timeout=None)


def _equal(gold: Any, latex: str) -> bool:
    try:
        with _limited(LIMIT_SECONDS):
            return bool(_library().verify(gold, _parsed(latex), timeout_seconds=None))
    except (_LateError, RecursionError, MemoryError, OverflowError):
        return False


class _LateError(BaseException):
    """Not an Exception: math-verify catches those."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _LateError inside after that time. In a thread other than the main one, where no alarm rings, there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: object) -> None:
        raise _LateError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
