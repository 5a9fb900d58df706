"""Writes a data file that rows.py reads back to the same rows: .jsonl, .json, .csv and .parquet, the first three also .gz.

A file is there whole or not at all: it grows under another name beside its place and is moved there once it is on the disk.
What a kind of file cannot carry is refused with its row and field, never changed. In a table (.csv, .parquet) a field that
only other rows have is null. Left out: a data set in several files (shards).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from engine.data import tables
from engine.data.files import READABLE, ending
from engine.data.tables import CannotCarry
from engine.errors import InputError

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_NO_KIND = f"name it with one of: {', '.join(READABLE)}; the first three also with .gz behind"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, overwrite: bool = False) -> int:
    """Write the rows to the file `path`, whose ending says its kind, and give their number; the folder is made.

    InputError for another ending, a file that is there (unless `overwrite`), a place that cannot be written, a full disk, no
    rows at all, a row that the kind of file cannot carry and a .parquet file where pyarrow is missing. Whatever is raised, by
    `rows` too, nothing is left behind and a file that was there is as it was.
    """
    with RowFile(path, overwrite=overwrite) as file:
        for row in rows:
            file.add(row)
        file.publish()
    return file.rows


class RowFile:
    """A data file that is being written. Without publish() nothing stays of it; `rows` is how many it holds.

    Use it as a context. Its methods raise InputError as write_rows does.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.rows = 0
        self._overwrite = overwrite
        self._kind = check_writable(path, overwrite=overwrite)
        self._part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
        self._spool = self._part.with_name(f"{self._part.name}.rows")
        self._table = tables.TABLES[self._kind]() if self._kind in tables.TABLES else None
        self._made = _missing_folders(path.parent)
        self._stack = ExitStack()
        self._finished = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A table's columns are known after its last row: until then its rows stand, as lines, in a file of their own.
            self._file = self._stack.enter_context(_create(self._part if self._table is None else self._spool, path))
        except OSError as error:
            self._discard()
            raise _cannot(path, error) from error

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._discard()

    def add(self, row: Mapping[str, Any], place: str = "") -> None:
        """One more row; `place` is what an error calls it, else "row N"."""
        fields = dict(row)
        try:
            check_value(fields, "")
            if self._table is not None:
                self._table.add(fields)
            text = _ENCODER.encode(fields)
        except CannotCarry as cannot:
            raise InputError(cannot.what, where=self._where(place, cannot.field), remedy=cannot.remedy) from None
        except RecursionError:
            what, remedy = "lists and objects are nested too deeply to be read back", "write the value as text"
            raise InputError(what, where=self._where(place, ""), remedy=remedy) from None
        before = ""
        if self._kind == ".json":
            before = ",\n" if self.rows else "[\n"
        self._write(f"{before}{text}" if self._kind == ".json" else f"{text}\n")
        self.rows += 1

    def finish(self) -> None:
        """Bring all rows onto the disk, still under the other name."""
        if not self.rows:
            raise InputError("there are no rows to write", where=str(self.path), remedy="give at least one row")
        if self._kind == ".json":
            self._write("\n]\n")
        try:
            self._stack.close()
            if self._table is not None:
                self._fill(self._table)
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot(self.path, error) from error
        self._finished = True

    def publish(self) -> None:
        """Move the file to its place; finish() first, where that has not been done."""
        if not self._finished:
            self.finish()
        check_writable(self.path, overwrite=self._overwrite)  # somebody may have written it meanwhile
        try:
            os.replace(self._part, self.path)
        except OSError as error:
            raise _cannot(self.path, error) from error
        self._made = []

    def _fill(self, table: tables.Table) -> None:
        """Write the table from the lines that hold its rows."""
        with self._spool.open("rb") as lines, _create(self._part, self.path) as file:
            try:
                table.write(file, (json.loads(line) for line in lines))
            except CannotCarry as cannot:
                raise InputError(cannot.what, where=self._where(cannot.row, cannot.field), remedy=cannot.remedy) from None

    def _write(self, text: str) -> None:
        try:
            self._file.write(text.encode())
        except OSError as error:
            raise _cannot(self.path, error) from error

    def _where(self, place: str, field: str) -> str:
        return f"{self.path}: {place or f'row {self.rows + 1}'}{f', {field}' if field else ''}"

    def _discard(self) -> None:
        with suppress(OSError):  # a full disk speaks up when the last bytes are flushed, too
            self._stack.close()
        for path in (self._part, self._spool):
            with suppress(OSError):  # never made, moved to its place, or the disk is gone, which has been said
                path.unlink()
        for folder in self._made:
            with suppress(OSError):  # somebody else has put a file there meanwhile, or it was never made
                folder.rmdir()


def check_writable(path: Path, *, overwrite: bool = False) -> str:
    """The kind of file that `path` names, such as ".csv". InputError unless it is one that can be written there."""
    kind = ending(path.name)
    if kind not in READABLE:
        what = f"files ending in {path.suffix!r} are not written" if path.suffix else "the name has no ending"
        raise InputError(what, where=str(path), remedy=_NO_KIND)
    if kind == ".parquet" and path.suffix.lower() == ".gz":
        raise InputError(".parquet files are compressed in themselves", where=str(path), remedy="leave .gz off")
    try:
        if path.is_dir():
            raise InputError("is a folder", where=str(path), remedy="name a file in it")
        if path.exists() and not overwrite:
            raise InputError("is there already", where=str(path), remedy="name another file, or --force to replace it")
    except OSError as error:  # a name that is too long
        raise _cannot(path, error) from error
    if kind in tables.TABLES:
        tables.TABLES[kind].check(str(path))
    return kind


def check_value(value: object, place: str) -> None:
    """Raises CannotCarry unless `value` is made of JSON's own types: text that UTF-8 has, and finite numbers."""
    kind = type(value)
    if kind is str:
        _check_text(cast(str, value), place)
    elif kind is dict:
        for name, part in cast(dict[object, object], value).items():
            if type(name) is not str:
                raise CannotCarry(f"{name!r:.40} is no name of a field", place, "use text for names")
            _check_text(name, place)
            check_value(part, f"{place}.{name}" if place else name)
    elif kind is list:
        for index, part in enumerate(cast(list[object], value)):
            check_value(part, f"{place}[{index}]")
    elif kind is float:
        if not math.isfinite(cast(float, value)):
            raise CannotCarry(f"{value} is no number that a file can hold", place, "write null, or a number")
    elif kind is int:
        if cast(int, value).bit_length() > 64 and not _has_digits(cast(int, value)):
            raise CannotCarry("the number has too many digits to be read back", place, "write it as text")
    elif value is not None and kind is not bool:
        remedy = "use text, numbers, true, false, null, lists and objects"
        raise CannotCarry(f"values of the type {kind.__name__} cannot be written", place, remedy)


def _check_text(text: str, place: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            what, remedy = "half a surrogate pair is no character", "write the character itself, in UTF-8"
            raise CannotCarry(what, place, remedy) from None


def _has_digits(value: int) -> bool:
    try:
        str(value)
    except ValueError:  # Python's limit, which the reader has, too
        return False
    return True


def _create(part: Path, path: Path) -> IO[bytes]:
    """The new file `part`, compressed where `path` is to be. No name or time is in it: the same rows give the same bytes."""
    if path.suffix.lower() != ".gz" or part.suffix == ".rows":
        return part.open("xb")
    stack = ExitStack()
    raw = stack.enter_context(part.open("xb"))
    return cast(IO[bytes], _Compressed(raw))


class _Compressed(gzip.GzipFile):
    """A gzip file that closes the file under it."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0)
        self._raw = raw

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._raw.close()


def _missing_folders(folder: Path) -> list[Path]:
    """The folders that must be made, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _cannot(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot be written: {error.strerror or error}", where=str(path), remedy="name a file you may write")
