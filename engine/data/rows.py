"""Reads data row by row, whatever kind of file it is in. What cannot be a row comes out as a Problem in its place: nothing is
skipped.

.jsonl, .json, .csv and .parquet, each also with .gz behind it. One reader per kind is in json_rows.py, csv_rows.py and
parquet_rows.py; what they have in common in values.py. Which files a name stands for is in files.py and sources.py. The rows of
several files (shards) are numbered on: a report calls the first row of the second file one more than the last of the first.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from engine.data import csv_rows, json_rows, parquet_rows
from engine.data.files import READABLE, damaged_gzip, ending, open_file, opened, part
from engine.data.sources import check_file
from engine.data.values import BROKEN_FILE, Problem, Row, json_type
from engine.errors import InputError

__all__ = [
    "BROKEN_FILE",
    "READABLE",
    "TEXTS",
    "Places",
    "Problem",
    "Row",
    "check_file",
    "file_sha256",
    "json_type",
    "part",
    "place",
    "read_rows",
    "row_at",
]

# Fields whose value is text in every format: a .csv cell of theirs is never read as JSON.
TEXTS = frozenset(
    ("answer", "completion", "response", "output", "text", "system", "question", "instruction", "input", "problem", "solution")
)


@dataclass(slots=True)
class Places:
    """Where rows that are read from several files stand. It grows while they are read, and stays empty for a single file."""

    _starts: list[int] = field(default_factory=list)  # rows before each file, by their numbers
    _files: list[Path] = field(default_factory=list)

    def begin(self, file: Path, before: int) -> None:
        """The next rows are the file's, behind `before` others."""
        self._starts.append(before)
        self._files.append(file)

    def of(self, line: int) -> tuple[Path, int]:
        """The file that has the row called `line`, and what it is called there."""
        index = bisect_right(self._starts, line - 1) - 1
        return self._files[index], line - self._starts[index]

    def said(self, problem: Problem) -> Problem:
        """The problem with its place in its reason, where there are several files."""
        if not self._files:
            return problem
        file, line = self.of(problem.line)
        return replace(problem, reason=f"{problem.reason} ({file.name}, line {line})")


def read_rows(path: Path, texts: Container[str] = TEXTS, places: Places | None = None) -> Iterator[Row | Problem]:
    """Every row that `path` stands for (see sources.py), in order, read as it is asked for.

    UTF-8 with or without a byte order mark, lines ending in LF or CRLF; blank lines are no rows. `texts` are columns of a .csv
    file whose cells are text; `places` learns which file has which rows. InputError at once as check_file raises it; while
    reading for a damaged .gz or .parquet file and for a .csv file without a header.
    """
    files, rows = opened(check_file(path))
    if rows is None:
        return _read_all(files, texts, places)
    total = sum(1 for _ in _read_all(files, texts, None)) if rows.needs_total else None
    start, stop = rows.bounds(total)
    return islice(_read_all(files, texts, places), start, None if stop is None else max(start, stop))


def row_at(path: Path, line: int) -> Row | Problem | None:
    """The row that a report calls `line`, whatever kind of file it is in; None where there is none. Raises as read_rows does."""
    return next((row for row in read_rows(path) if row.line == line), None)


def place(path: Path, line: int) -> tuple[Path, int]:
    """The file that has the row which a report calls `line`, and its line there; reads up to it. Raises as read_rows does."""
    files, _ = opened(check_file(path))
    if len(files) == 1:
        return files[0], line
    places = Places()
    for row in _read_all(files, TEXTS, places):
        if row.line >= line:
            break
    return places.of(line)


def file_sha256(path: Path) -> str:
    """Hash of the bytes that a checked path stands for, in hex; tells later whether a run's data has changed. Of several files it
    is the hash of their hashes, in order."""
    digests = []
    for each in opened(path)[0]:
        with each.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(d.digest() for d in digests))).hexdigest()


def _read_all(files: tuple[Path, ...], texts: Container[str], places: Places | None) -> Iterator[Row | Problem]:
    if len(files) == 1:
        return _read(files[0], texts)
    return _numbered_on(files, texts, Places() if places is None else places)


def _numbered_on(files: tuple[Path, ...], texts: Container[str], places: Places) -> Iterator[Row | Problem]:
    before = 0
    for file in files:
        places.begin(file, before)
        line = 0
        for row in _read(file, texts):
            line = row.line
            yield Row(line + before, row.fields) if isinstance(row, Row) else replace(row, line=line + before)
        before += line


def _read(path: Path, texts: Container[str]) -> Iterator[Row | Problem]:
    kind = ending(path.name)
    try:
        with open_file(path) as file:
            if kind == ".jsonl":
                yield from json_rows.lines(file)
            elif kind == ".json":
                yield from json_rows.values(file)
            elif kind == ".csv":
                yield from csv_rows.rows(file, str(path), texts)
            else:
                yield from parquet_rows.rows(file, str(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(path, error) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="check the disk") from error
