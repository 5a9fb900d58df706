"""Tables, .csv and .parquet: what their cells can carry, and how rows become cells. writing.py makes the files.

Both have one set of columns for all rows, known after the last one. So a table is told every row first (`add`, which refuses
what its cells cannot carry), and is then written from the same rows once more.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import IO, Any, Protocol

from engine.data.rows import TEXTS
from engine.data.values import DECODER, json_type
from engine.errors import InputError

_GROUP_ROWS = 1024  # of a parquet file are held at a time
_SPECIAL = re.compile('[",\r\n]')
_JSONL = "a .jsonl file, which carries it"


class CannotCarry(Exception):
    """Says which field's value a file cannot hold, and what to do. `row` is its place where it is not the row being added."""

    def __init__(self, what: str, field: str, remedy: str, row: str = "") -> None:
        super().__init__(what)
        self.what, self.field, self.remedy, self.row = what, field, remedy, row


class Table(Protocol):
    """A kind of table. `add` and `write` raise CannotCarry."""

    @staticmethod
    def check(where: str) -> None:
        """InputError where this kind cannot be written on this machine."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Learn of one more row."""

    def write(self, file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows that were added."""


class CsvTable:
    """Cells as csv_rows.py reads them: an empty one is null, lists and objects are JSON, everything else is text."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    @staticmethod
    def check(where: str) -> None:
        """Always there."""

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in self._names:
                if not name.strip() or name != name.strip() or "\n" in name or "\r" in name:
                    raise CannotCarry(f"a .csv file cannot have a column called {name!r:.40}", name, "rename the column")
                self._names[name] = None
            if value is not None:
                _cell(name, value)

    def write(self, file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> None:
        names = list(self._names)
        if not names:
            raise CannotCarry("rows without any field are no rows of a table", "", f"write {_JSONL}", "every row")
        if len(names) == 1 and "," not in names[0] and (";" in names[0] or "\t" in names[0]):
            raise CannotCarry("the column's name would be read as several", names[0], "rename the column", "the first line")
        file.write(_line(names).encode())
        for number, row in enumerate(rows, start=1):
            cells = [_cell(name, row[name]) if row.get(name) is not None else "" for name in names]
            if len(cells) == 1 and not cells[0].strip():
                what = "a line without text is no row of a .csv file, and there is no other column"
                raise CannotCarry(what, names[0], "remove the row, or write a .jsonl file", f"row {number}")
            file.write(_line(cells).encode())


def _line(cells: list[str]) -> str:
    return ",".join(map(_quoted, cells)) + "\n"


def _quoted(cell: str) -> str:
    if _SPECIAL.search(cell) is None and not cell.startswith("\ufeff"):
        return cell
    return '"' + cell.replace('"', '""') + '"'


def _cell(name: str, value: Any) -> str:
    """The text that is read back as `value`, which is not null."""
    is_text = name in TEXTS
    if isinstance(value, str):
        if not value:
            raise CannotCarry("an empty text would be read as null", name, f"write null, or {_JSONL}")
        if not is_text and value[0] in "[{" and _is_json(value):
            raise CannotCarry("the text would be read as JSON", name, f"write {_JSONL}")
        return value
    if isinstance(value, list | dict) and not is_text:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    raise CannotCarry(f"{json_type(value)} would be read as text", name, f"write it as text, or {_JSONL}")


def _is_json(text: str) -> bool:
    try:
        DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


class ParquetTable:
    """Columns of one type each: what is a number in one row and text in another is refused, not turned into text."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    @staticmethod
    def check(where: str) -> None:
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            remedy = "pip install 'droid-tune[parquet]', or name a .jsonl file"
            raise InputError("writing .parquet needs pyarrow, which is not installed", where=where, remedy=remedy) from error

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            before = self._kinds.get(name)
            self._kinds[name] = _kind(value, name) if before is None else _both(before, _kind(value, name), name)

    def write(self, file: IO[bytes], rows: Iterable[Mapping[str, Any]]) -> None:
        if not self._kinds:
            raise CannotCarry("rows without any field are no rows of a table", "", f"write {_JSONL}", "every row")
        pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        schema = pyarrow.schema([(name, _arrow(pyarrow, kind)) for name, kind in self._kinds.items()])
        left: Iterator[Mapping[str, Any]] = iter(rows)
        with parquet.ParquetWriter(file, schema) as writer:
            while group := list(islice(left, _GROUP_ROWS)):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(group, schema=schema))


# "null", "text", "number", "decimal", "bool"; a list's ("list", kind); an object's ("object", ((name, kind), ...))
_Kind = str | tuple[str, Any]
_WORDS = {"text": "text", "number": "a whole number", "decimal": "a number with a decimal point", "bool": "true or false"}


def _kind(value: Any, field: str) -> _Kind:
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise CannotCarry("the number has more than 64 bits", field, f"write {_JSONL}")
        return "number"
    if isinstance(value, float):
        return "decimal"
    if isinstance(value, list):
        kind: _Kind = "null"
        for part in value:
            kind = _both(kind, _kind(part, field), field)
        return ("list", kind)
    if not value:
        raise CannotCarry("a .parquet file cannot hold an object without names", field, f"write {_JSONL}")
    return ("object", tuple((name, _kind(part, f"{field}.{name}")) for name, part in value.items()))


def _both(first: _Kind, second: _Kind, field: str) -> _Kind:
    """The kind of a column that holds both."""
    if first == second or second == "null":
        return first
    if first == "null":
        return second
    if isinstance(first, tuple) and isinstance(second, tuple) and first[0] == second[0]:
        if first[0] == "list":
            return ("list", _both(first[1], second[1], field))
        if [name for name, _ in first[1]] == [name for name, _ in second[1]]:
            pairs = zip(first[1], second[1], strict=True)
            return ("object", tuple((name, _both(kind, other, f"{field}.{name}")) for (name, kind), (_, other) in pairs))
        what = f"the object has the names {_names(second)}, an earlier one {_names(first)}: in a .parquet column they agree"
        raise CannotCarry(what, field, f"give all the same names in the same order, or write {_JSONL}")
    what = f"{_word(second)}, where an earlier value is {_word(first)}: a .parquet column has one type"
    raise CannotCarry(what, field, f"write all values alike, or write {_JSONL}")


def _names(kind: Any) -> str:
    return ", ".join(name for name, _ in kind[1])


def _word(kind: _Kind) -> str:
    if isinstance(kind, tuple):
        return "a list" if kind[0] == "list" else "an object"
    return _WORDS[kind]


def _arrow(pyarrow: Any, kind: _Kind) -> Any:
    if isinstance(kind, tuple):
        if kind[0] == "list":
            return pyarrow.list_(_arrow(pyarrow, kind[1]))
        return pyarrow.struct([(name, _arrow(pyarrow, part)) for name, part in kind[1]])
    return {"number": pyarrow.int64(), "decimal": pyarrow.float64(), "bool": pyarrow.bool_()}.get(kind, pyarrow.string())


TABLES: dict[str, type[CsvTable] | type[ParquetTable]] = {".csv": CsvTable, ".parquet": ParquetTable}
