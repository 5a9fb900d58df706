"""What every reader gives: a Row, or a Problem in its place. Also JSON, read more strictly than Python's own `json` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BROKEN_FILE = frozenset({"not-json", "not-utf8", "not-csv"})  # kinds that mean the file itself is damaged, not one row's content
MEND_LINE = "correct or remove the line"


@dataclass(frozen=True, slots=True)
class Row:
    """One object of the file. `line` counts from 1: the line it begins on, in .json and .parquet its number among the rows."""

    line: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one row cannot be used. `field` is empty where the whole row is meant."""

    line: int
    kind: str
    field: str
    reason: str
    remedy: str


def as_row(line: int, value: Any, text: str) -> Row | Problem:
    """The value that was read from `text` as a row; a Problem unless it is an object and all its strings are text."""
    if not isinstance(value, dict):
        reason = f"expected a JSON object, found {json_type(value)}"
        return Problem(line, "not-object", "", reason, 'write one object per row, such as {"prompt": "...", "answer": "..."}')
    if "\\u" in text and not is_text(value):
        reason = "a \\ud... escape without its other half is no character"
        return Problem(line, "bad-text", "", reason, "write the character itself, in UTF-8")
    return Row(line, value)


def json_type(value: object) -> str:
    """What JSON calls the type of `value`, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names[type(value)]


def is_text(value: Any) -> bool:
    """Whether every string in `value` is encodable: half a surrogate pair passes JSON, but no tokenizer."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


# Raises ValueError (JSONDecodeError among them), and RecursionError for thousands of nested brackets.
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant)


def decode(text: str) -> Any:
    """The JSON value that is all of `text`. Raises as DECODER does: the short way is for rows without white space around them."""
    if text[:1] == "{":
        value, end = DECODER.raw_decode(text)
        if end == len(text):
            return value
    return DECODER.decode(text)
