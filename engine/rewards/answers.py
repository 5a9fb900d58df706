"""Finds the answer in a completion and compares it with a reference, as text or as a number.

Left out: algebra (mathematics.py), units, mixed numbers (1 3/4) and numbers in words.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_FRAC = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?!\d)|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
# A minus after a digit, a letter or a bracket subtracts; elsewhere it is a sign. Digits inside a word (H2O) are no number.
_NUMBER = re.compile(
    rf"""(?P<sign>(?<![\w)\]])[-+])?[$€£]?
         (?<![A-Za-z_\d])(?<!\d[eE][-+])(?P<number>(?>{_DIGITS})(?>(?:[eE][-+]?[0-9]{{1,3}})?))(?!\d|[eE][-+]?\d)
         (?:\s*/\s*(?P<denominator>{_DIGITS}))?""",
    re.VERBOSE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_INTEGER = re.compile(r"[-+]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)")
_SEPARATORS = re.compile(r"[\s,;&/|$€£%°*]+")
_OFFERS = re.compile(
    r"(?:\(? ?\b(?:or|and|also|maybe|perhaps|possibly|either|then|no|wait)\b ?(?:(?:maybe|perhaps|it)\b ?)?(?:is\b)?)?",
    re.IGNORECASE,
)
_MAX_CHARACTERS = 1000  # a longer number is no answer, and Python refuses to convert thousands of digits


def extract_answer(text: str) -> str:
    """What is in the last <answer>...</answer>; without one what follows the last </think>; else the whole text. Stripped."""
    pairs = _ANSWER.findall(text)
    return str(pairs[-1] if pairs else text.rpartition("</think>")[2]).strip()


def normalise(text: str) -> str:
    """The text without differences of case, of white space and of a period at the end."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def same_text(completion: str, reference: str) -> bool:
    """Whether the completion's answer is the reference's, both extracted and normalised."""
    return normalise(extract_answer(completion)) == normalise(extract_answer(reference))


def boxed(text: str) -> list[str]:
    """What each \\boxed{...} of `text` holds, in order, stripped; an unclosed one is left out."""
    found = []
    for match in _BOXED.finditer(text):
        depth, end = 1, match.end()
        while end < len(text) and depth and end - match.end() <= _MAX_CHARACTERS:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            found.append(text[match.end() : end - 1].strip())
    return found


def is_integer(text: str) -> bool:
    """Whether `text` is an integer in the digits 0 to 9 and nothing else: -12, +7, 1,000."""
    return _INTEGER.fullmatch(text) is not None


def last_number(text: str) -> Fraction | None:
    """The exact value of the last number in `text`: -1,234.5, $3, 3/4, \\frac{3}{4}, 2e-3; None where there is none.

    Digits are 0 to 9. A percent sign is a unit like any other: 50% is 50. A division by zero has no value.
    """
    found = deque(_NUMBER.finditer(_plain(text)), maxlen=1)
    return _value(found[0]) if found else None


def numbers(text: str) -> list[Fraction]:
    """The values of all numbers in `text`, in order, read as last_number reads one; those without a value are left out."""
    return [value for match in _NUMBER.finditer(_plain(text)) if (value := _value(match)) is not None]


def side_by_side(between: str) -> bool:
    """Whether two numbers with that text between them are two offers of an answer: "41, 42", "41 or maybe 42", "41 / 42"."""
    return _OFFERS.fullmatch(_SEPARATORS.sub(" ", between).strip()) is not None


def offered(text: str) -> list[Fraction | None]:
    """The values that `text` offers as its answer: its last number and those side by side with it, each once, in order."""
    plain = _plain(text)
    found: list[re.Match[str]] = []
    for match in _NUMBER.finditer(plain):
        if found and not side_by_side(plain[found[-1].end() : match.start()]):
            found.clear()
        found.append(match)
    return list(dict.fromkeys(map(_value, found)))


def _plain(text: str) -> str:
    return _FRAC.sub(r"\1/\2", text.replace("\N{MINUS SIGN}", "-"))


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _MAX_CHARACTERS:
        return None
    value = Fraction(match["number"].replace(",", ""))
    if match["denominator"]:
        denominator = Fraction(match["denominator"].replace(",", ""))
        if denominator == 0:
            return None
        value /= denominator
    return -value if match["sign"] == "-" else value


def same_number(completion: str, reference: str) -> bool | None:
    """Whether the last number of the completion's answer equals the reference's; None where the reference has none.

    An answer that offers several numbers side by side is none, unless the reference offers the same ones.
    """
    expected = last_number(extract_answer(reference))
    if expected is None:
        return None
    found = offered(extract_answer(completion))
    return found[-1:] == [expected] and (len(found) == 1 or found == offered(extract_answer(reference)))
