"""Reads a .jsonl file row by row. A line that cannot be a row comes out as a Problem in its place: nothing is skipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import InputError

ENDINGS = (".jsonl",)
BROKEN_FILE = frozenset({"not-json", "not-utf8"})  # kinds that mean the file itself is damaged, not one row's content
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of the file; `line` counts from 1."""

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


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """Every non-blank line of the file, in order, read as it is asked for.

    UTF-8 with or without a byte order mark, lines ending in LF or CRLF. InputError at once for a missing file, a
    folder, another ending or a file of 0 bytes.
    """
    check_file(path)
    return _lines(path)


def check_file(path: Path) -> None:
    """InputError unless `path` is a readable, non-empty file with an ending that is supported."""
    if path.is_dir():
        raise InputError("is a folder", where=str(path), remedy="name the .jsonl file in it")
    if path.suffix.lower() not in ENDINGS:
        found = f"files ending in {path.suffix!r} are not read" if path.suffix else "the name has no ending"
        raise InputError(found, where=str(path), remedy=f"supported: {', '.join(ENDINGS)} (one JSON object per line)")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except FileNotFoundError:
        remedy = "check the path; relative paths start at the config's folder"
        raise InputError("no such data file", where=str(path), remedy=remedy) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from error
    if not first:
        raise InputError("the file is empty", where=str(path), remedy="give at least one row")


def file_sha256(path: Path) -> str:
    """Hash of the file's bytes, in hex; tells later whether a run's data has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(path: Path) -> Iterator[Row | Problem]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if raw.strip():
                yield _row(number, raw)


def _row(line: int, raw: bytes) -> Row | Problem:
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem(line, "not-utf8", "", f"byte {error.start + 1} of the line is not UTF-8", "save the file as UTF-8")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return Problem(line, "not-json", "", f"not valid JSON: {error.msg} at column {error.colno}", "correct or remove the line")
    except (ValueError, RecursionError) as error:  # NaN, numbers of thousands of digits, thousands of nested brackets
        return Problem(line, "not-json", "", f"not valid JSON: {error}", "correct or remove the line")
    if not isinstance(value, dict):
        reason = f"expected a JSON object, found {json_type(value)}"
        return Problem(line, "not-object", "", reason, 'write one object per line, such as {"prompt": "...", "answer": "..."}')
    if "\\ud" in text.lower() and not _is_text(value):
        reason = "a \\ud... escape without its other half is no character"
        return Problem(line, "bad-text", "", reason, "write the character itself, in UTF-8")
    return Row(line, value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _is_text(value: Any) -> bool:
    """Whether every string in `value` is encodable: half a surrogate pair passes JSON, but no tokenizer."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_type(value: object) -> str:
    """What JSON calls the type of `value`, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names[type(value)]
