"""Rows of .csv files: the first line names the columns, every other one is a row.

A cell is a string; an empty one is null, for which CSV has no other word. A cell that starts with [ or { and is valid JSON is
read as JSON (lists of messages, of steps, of tests), unless its column is one that holds text: what an answer of [1, 2] looks
like is its own business. Columns are parted by commas, or by ; or tabs where the first line has those and no comma.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Container, Iterator
from typing import IO, Any

from engine.data.values import DECODER, Problem, Row, is_text
from engine.errors import InputError

_BOM = b"\xef\xbb\xbf"
_QUOTES = 'put cells that hold commas, quotes or line breaks into "...", and write a quote inside as ""'


class _Lines:
    """Decoded lines for the csv reader; `damaged` are the numbers of those that are not UTF-8."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.damaged: list[int] = []

    def __iter__(self) -> Iterator[str]:
        for number, raw in enumerate(self._file, start=1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                self.damaged.append(number)
                text = raw.decode("utf-8", "surrogateescape")
            yield text


def rows(file: IO[bytes], where: str, texts: Container[str]) -> Iterator[Row | Problem]:
    """The rows below the header; `texts` are columns whose cells stay as they are. InputError for a header that is none."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # cells of several MB; the default is 128 KB
    source = _Lines(file)
    lines = iter(source)
    header = ""
    before = 0
    while not header.strip():
        header = next(lines, "\0")
        before += 1
    if header == "\0":
        return
    separator = next((mark for mark in ",;\t" if mark in header), ",")
    names = _header(header, separator, where, bool(source.damaged))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        first = before + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Problem(first, "not-csv", "", f"not valid CSV: {error}", _QUOTES)
            continue
        if cells is None:
            return
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        last = before + reader.line_num
        while source.damaged and source.damaged[0] < first:
            source.damaged.pop(0)
        if source.damaged and source.damaged[0] <= last:
            yield Problem(first, "not-utf8", "", f"line {source.damaged[0]} is not UTF-8", "save the file as UTF-8")
        elif len(cells) != len(names):
            reason = f"the row has {len(cells)} cells, the first line names {len(names)} columns"
            yield Problem(first, "wrong-cells", "", reason, _QUOTES)
        else:
            fields = {name: _cell(name, cell, texts) for name, cell in zip(names, cells, strict=True)}
            if any(not isinstance(value, str | None) for value in fields.values()) and not is_text(fields):
                reason = "a \\ud... escape without its other half is no character"
                yield Problem(first, "bad-text", "", reason, "write the character itself, in UTF-8")
            else:
                yield Row(first, fields)


def _header(text: str, separator: str, where: str, is_damaged: bool) -> list[str]:
    if is_damaged:
        raise InputError("its first line is not UTF-8", where=where, remedy="save the file as UTF-8")
    try:
        names = [name.strip() for name in next(csv.reader([text], delimiter=separator, strict=True))]
    except csv.Error as error:
        what = f"its first line, which names the columns, is not valid CSV: {error}"
        raise InputError(what, where=where, remedy="write one name per column, without line breaks") from error
    names = [name or f"column_{place}" for place, name in enumerate(names, start=1)]  # tables saved with their row numbers
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two columns are called {twice!r}", where=where, remedy="rename one in the first line")
    return names


def _cell(name: str, cell: str, texts: Container[str]) -> Any:
    if not cell:
        return None
    if cell[0] not in "[{" or name in texts:
        return cell
    try:
        return DECODER.decode(cell)
    except (ValueError, RecursionError):
        return cell  # text that starts with a bracket
