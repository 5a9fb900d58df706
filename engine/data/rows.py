"""Reads a data file row by row, whatever its kind. What cannot be a row comes out as a Problem in its place: nothing is skipped.

.jsonl, .json, .csv and .parquet, each also with .gz behind it; or a folder, of which the train file is read. One reader per kind
is in json_rows.py, csv_rows.py and parquet_rows.py; what they have in common in values.py. Left out: a data set in several
files (shards), and ids of a hub.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, cast

from engine.data import csv_rows, json_rows, parquet_rows
from engine.data.values import BROKEN_FILE, Problem, Row, json_type
from engine.errors import InputError

__all__ = [
    "BROKEN_FILE",
    "ENDINGS",
    "READABLE",
    "TEXTS",
    "Problem",
    "Row",
    "check_file",
    "file_sha256",
    "json_type",
    "part",
    "read_rows",
    "row_at",
]

ENDINGS = (".jsonl",)  # of files that are written
READABLE = (".jsonl", ".json", ".csv", ".parquet")
SUPPORTED = f"supported: {', '.join(READABLE)}, each also as .gz"
# Fields whose value is text in every format: a .csv cell of theirs is never read as JSON.
TEXTS = frozenset(
    ("answer", "completion", "response", "output", "text", "system", "question", "instruction", "input", "problem", "solution")
)
_PARTS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_SHARD = re.compile(r"-00000-of-00001$")


def read_rows(path: Path, texts: Container[str] = TEXTS) -> Iterator[Row | Problem]:
    """Every row of the file, in order, read as it is asked for. Of a folder, the rows of its train file.

    UTF-8 with or without a byte order mark, lines ending in LF or CRLF; blank lines are no rows. `texts` are columns of a .csv
    file whose cells are text. InputError at once for a missing file, another ending or a file of 0 bytes; while reading for a
    damaged .gz or .parquet file and for a .csv file without a header.
    """
    file = check_file(path)
    return _read(file, texts)


def row_at(path: Path, line: int) -> Row | Problem | None:
    """The row that a report calls `line`, whatever kind of file it is in; None where there is none. Raises as read_rows does."""
    return next((row for row in read_rows(path) if row.line == line), None)


def check_file(path: Path) -> Path:
    """The file itself, or a folder's train file. InputError unless it is readable, not empty and of a supported kind."""
    if path.is_dir():
        return check_file(_train(path))
    ending = _ending(path)
    if ending not in READABLE:
        found = f"files ending in {path.suffix!r} are not read" if path.suffix else "the name has no ending"
        raise InputError(found, where=str(path), remedy=f"{SUPPORTED}; or a folder with a train file")
    try:
        with _open(path) as file:
            first = file.read(2)
    except FileNotFoundError:
        remedy = "check the path; relative paths start at the config's folder"
        raise InputError("no such data file", where=str(path), remedy=remedy) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged_gzip(path, error) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from error
    if not first:
        raise InputError("the file is empty", where=str(path), remedy="give at least one row")
    if first in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError("the file is UTF-16", where=str(path), remedy="save it as UTF-8")
    return path


def part(folder: Path, name: str) -> Path | None:
    """The folder's file for `name` (train, valid or test), under the names that are in use for it; None where there is none.

    InputError where several files could be meant.
    """
    found = sorted(
        path for path in folder.iterdir() if path.is_file() and _ending(path) in READABLE and _stem(path) in _PARTS[name]
    )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"several files could be the {name} file: {names}", where=str(folder), remedy="name the one to use")
    return found[0] if found else None


def file_sha256(path: Path) -> str:
    """Hash of the file's bytes, in hex; tells later whether a run's data has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _train(folder: Path) -> Path:
    found = part(folder, "train")
    if found is None:
        remedy = f"name a file in it, or give it a train file such as train.jsonl; {SUPPORTED}"
        raise InputError("is a folder without a train file", where=str(folder), remedy=remedy)
    return found


def _read(path: Path, texts: Container[str]) -> Iterator[Row | Problem]:
    ending = _ending(path)
    try:
        with _open(path) as file:
            if ending == ".jsonl":
                yield from json_rows.lines(file)
            elif ending == ".json":
                yield from json_rows.values(file)
            elif ending == ".csv":
                yield from csv_rows.rows(file, str(path), texts)
            else:
                yield from parquet_rows.rows(file, str(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged_gzip(path, error) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="check the disk") from error


def _damaged_gzip(path: Path, error: Exception) -> InputError:
    return InputError(f"not a whole gzip file: {error}", where=str(path), remedy="write or fetch it again")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    return _SHARD.sub("", Path(path.name.lower().removesuffix(".gz")).stem)
