"""Rows of .jsonl and of .json files, read as they are asked for.

A .json file is an array, an object that holds one under `data`, `samples` or `examples`, or objects one after the other (JSON
Lines by another name). Only one row and the buffer are held at a time: json's own decoder works in C and can begin anywhere
in a text, so it is fed a buffer that grows while a row is cut off. An event parser (ijson) would build every row in Python.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from typing import IO, Any

from engine.data.values import DECODER, MEND_LINE, Problem, Row, as_row, decode

WRAPPERS = ("data", "samples", "examples")
_BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 1 << 18
_EDGE = 16  # characters from the buffer's end within which a complaint may mean no more than that the rest is still to come
_SPACE = re.compile(r"[ \t\r\n]*")


def lines(file: IO[bytes]) -> Iterator[Row | Problem]:
    """One object per line; blank lines are no rows."""
    for number, raw in enumerate(file, start=1):
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if raw.strip():
            yield _line(number, raw)


def _line(number: int, raw: bytes) -> Row | Problem:
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} of the line is not UTF-8"
        return Problem(number, "not-utf8", "", reason, "save the file as UTF-8")
    try:
        value = decode(text)
    except json.JSONDecodeError as error:
        return Problem(number, "not-json", "", f"not valid JSON: {error.msg} at column {error.colno}", MEND_LINE)
    except (ValueError, RecursionError) as error:  # NaN, numbers of thousands of digits, thousands of nested brackets
        return Problem(number, "not-json", "", f"not valid JSON: {error}", MEND_LINE)
    return as_row(number, value, text)


class _Broken(Exception):
    """The file goes on in a way that nothing after this place can be trusted."""

    def __init__(self, kind: str, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.parts = (kind, "", reason, remedy)


def values(file: IO[bytes], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Row | Problem]:
    """The rows of a .json file, numbered from 1. The first thing that is no JSON is a Problem and ends the file."""
    number = 0
    source = _Source(file, chunk_bytes)
    try:
        for value, text in _top(source):
            number += 1
            yield as_row(number, value, text)
    except _Broken as broken:
        yield Problem(number + 1, *broken.parts)


def _top(source: _Source) -> Iterator[tuple[Any, str]]:
    opening = source.peek()
    if opening == "[":
        yield from _elements(source)
    elif opening == "{":
        fields: dict[str, Any] = {}
        wrapped = yield from _members(source, fields)
        if not wrapped:
            yield fields, "\\u"
            while source.peek() == "{":
                yield source.value()
    elif opening:
        raise source.broken("expected an array or an object", "write [{...}, {...}]")
    if source.peek():
        raise source.broken("there is more after the end of the JSON value", "put all rows into one array, or use .jsonl")


def _elements(source: _Source) -> Iterator[tuple[Any, str]]:
    source.take("[")
    if source.peek() == "]":
        source.take("]")
        return
    while True:
        yield source.value()
        if source.peek() == "]":
            source.take("]")
            return
        source.take(",")


def _members(source: _Source, fields: dict[str, Any]) -> Generator[tuple[Any, str], None, bool]:
    """The elements of the wrapped array; the other members go into `fields`. Whether there was such an array is returned."""
    wrapped = ""
    source.take("{")
    if source.peek() == "}":
        source.take("}")
        return False
    while True:
        if source.peek() != '"':
            raise source.broken("expected a name in double quotes", MEND_LINE)
        key, _ = source.value()
        source.take(":")
        if key in WRAPPERS and source.peek() == "[" and source.peek(1) in ("{", "]"):
            if wrapped:
                raise source.broken(f"both {wrapped!r} and {key!r} hold rows", "keep one of the two")
            wrapped = key
            yield from _elements(source)
        else:
            value, _ = source.value()
            if key in fields:
                raise source.broken(f"not valid JSON: the key {key!r} is given twice", MEND_LINE)
            fields[key] = value
        if source.peek() == "}":
            source.take("}")
            return bool(wrapped)
        source.take(",")


class _Source:
    """JSON text that is read bit by bit. `position` is where the next token begins."""

    def __init__(self, file: IO[bytes], chunk_bytes: int) -> None:
        self._file = file
        self._chunk_bytes = chunk_bytes
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._bytes = 0  # read so far
        self._line = 1  # of the buffer's first character
        self._column = 0  # characters of that line before it
        self._text = ""
        self._position = 0
        self._ended = False

    def peek(self, after: int = 0) -> str:
        """The next character that is no white space, behind `after` others; empty at the end."""
        while True:
            place = _end(self._text, self._position)
            if not after:
                self._position = place
            else:
                place = _end(self._text, place + after)
            if place < len(self._text):
                return self._text[place]
            if self._ended:
                return ""
            self._read(self._chunk_bytes)

    def take(self, token: str) -> None:
        """Step over `token`, which must come next."""
        found = self.peek()
        if found != token:
            what = f"found {found!r}" if found else "the file ends: it may have been cut off"
            raise self.broken(f"not valid JSON: expected {token!r}, {what}", MEND_LINE)
        self._position += 1

    def value(self) -> tuple[Any, str]:
        """The next value and the text that it was read from."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _EDGE
                if self._ended or not is_cut:
                    what = f"not valid JSON: {error.msg}"
                    raise self.broken(what, MEND_LINE, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self.broken(f"not valid JSON: {error}", MEND_LINE) from error
            else:
                left = self._text[end : end + _EDGE]
                if self._ended or len(left) == _EDGE or (left and left[0] not in ".eE"):  # else a number may go on
                    text = self._text[self._position : end]
                    self._position = end
                    return value, text
            # Twice as much each time: a row of n characters costs about 2n, not n squared.
            self._read(max(self._chunk_bytes, len(self._text) - self._position))

    def broken(self, reason: str, remedy: str, position: int | None = None) -> _Broken:
        """The error to raise, with the place in the file."""
        before = self._text[: self._position if position is None else position]
        column = len(before) - before.rfind("\n") + (0 if "\n" in before else self._column)
        return _Broken("not-json", f"{reason} (line {self._line + before.count(chr(10))}, column {column} of the file)", remedy)

    def _read(self, size: int) -> None:
        raw = self._file.read(size)
        self._bytes += len(raw)
        self._ended = not raw
        try:
            more = self._decode(raw, self._ended)
        except UnicodeDecodeError as error:
            place = self._bytes - len(error.object) + error.start + 1
            raise _Broken("not-utf8", f"byte {place} of the file is not UTF-8", "save the file as UTF-8") from error
        last = self._text.rfind("\n", 0, self._position)
        self._column = self._position + self._column if last < 0 else self._position - last - 1
        self._line += self._text.count("\n", 0, self._position)
        self._text = self._text[self._position :] + more
        self._position = 0


def _end(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return place if match is None else match.end()
