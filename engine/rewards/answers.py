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
_OFFER = r"(?:\(? ?\b(?:or|and|also|maybe|perhaps|possibly|either|then|no|wait)\b ?(?:(?:maybe|perhaps|it)\b ?)?(?:is\b)?)?"
_OFFERS = re.compile(_OFFER, re.IGNORECASE)
_UNIT_OFFERS = re.compile(rf"(?P<unit>[^\W\d_]+(?: [^\W\d_]+){{0,3}}?)\.? ?(?P<offer>{_OFFER})", re.IGNORECASE)
_DOUBT = re.compile(r"\(? ?(?:or|maybe|perhaps|possibly|either)\b", re.IGNORECASE)
_MARKS = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{|\\[,;:!() \[\]]|\}")
_YEAR = re.compile(r"[12][0-9]{3}")
_DATED = re.compile(r"(?:\A|[.:;!?\n])\W*(?:in|by|since|during|until|before|after)(?: the year| [A-Z][a-z]+)? \Z", re.IGNORECASE)
_UNIT_CHARACTERS, _DATED_CHARACTERS = 80, 40  # looked at behind and before a number
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


def side_by_side(between: str, after: str = "") -> bool:
    """Whether two numbers with that text between them and `after` the second are two offers of an answer: "41, 42", "41 or maybe
    42", "41 / 42", "41 apples or 42 apples", "41 apples or 42". Two different units, as in "2 km or 2000 m", are none."""
    if _OFFERS.fullmatch(_SEPARATORS.sub(" ", between).strip()):
        return True
    said = _SEPARATORS.sub(" ", _MARKS.sub(" ", between)).strip()
    if _DOUBT.match(said) and _OFFERS.fullmatch(said):
        return True  # \\boxed{41} or \\boxed{42}
    found = _UNIT_OFFERS.fullmatch(said)
    if found is None:
        return False
    unit = _words(found["unit"])
    following = _words(after)[: len(unit)]
    return following == unit or (not following and _DOUBT.match(found["offer"]) is not None)


def offered(text: str) -> list[Fraction | None]:
    """The values that `text` offers as its answer, each once, in order: its last number and those side by side with it, or
    several that are boxed. A year that opens a sentence ("In 2024, 42 people") is no offer, unless another year follows."""
    inside = list(dict.fromkeys(value for piece in boxed(text) if (value := last_number(piece)) is not None))
    if len(inside) > 1:
        return list(inside)
    plain = _plain(text)
    found: list[re.Match[str]] = []
    for match in _NUMBER.finditer(plain):
        if found and not _are_offers(plain, found[-1], match):
            found.clear()
        found.append(match)
    return list(dict.fromkeys(map(_value, found)))


def _are_offers(text: str, first: re.Match[str], second: re.Match[str]) -> bool:
    is_year = _YEAR.fullmatch(first[0]) and not _YEAR.fullmatch(second[0]) and text[first.end() : first.end() + 1] == ","
    if is_year and _DATED.search(text, max(0, first.start() - _DATED_CHARACTERS), first.start()):
        return False
    return side_by_side(text[first.end() : second.start()], text[second.end() : second.end() + _UNIT_CHARACTERS])


def _words(text: str) -> list[str]:
    """The words that `text` begins with, up to the end of the line or sentence, as units are compared."""
    line = re.split(r"[\n.,;:!?()]", _MARKS.sub(" ", text).strip(), maxsplit=1)[0]
    return [word.casefold().removesuffix("s") for word in re.findall(r"[^\W\d_]+", line)]


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
