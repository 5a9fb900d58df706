"""Loads a data file: finds its format, turns every row into an example or a problem, and splits off held-out rows.

Reading a file is in rows.py, the meaning of a row's fields in examples.py; the names that other rooms use are all importable
from here.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine import methods
from engine.config import RunConfig
from engine.data.examples import (
    FORMATS,
    REFUSED,
    Kind,
    check_format,
    detect,
    has_fields,
    remap,
    renaming,
    require_format,
    to_example,
)
from engine.data.files import OnProgress, ending, open_file, opened
from engine.data.json_rows import WRAPPERS
from engine.data.rows import BROKEN_FILE, TEXTS, Places, Problem, Row, check_file, file_sha256, place, read_rows
from engine.data.sources import training_files
from engine.data.splits import NO_PART, parted, shuffled
from engine.data.structure import opening
from engine.data_names import cut
from engine.errors import InputError
from engine.types import Example

__all__ = [
    "FORMATS",
    "DataSet",
    "Kind",
    "Problem",
    "Row",
    "TrainingData",
    "as_example",
    "detect",
    "detect_file",
    "load",
    "load_training_data",
    "read_rows",
    "remap",
    "remapped",
    "scan",
    "split_held_out",
    "stream",
    "to_example",
]  # fmt: skip

_DETECT_ROWS = 200
_BEGINNING_BYTES = 4096
_SHOWN_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class DataSet:
    """A file's usable rows as examples, in file order, beside the rows that cannot be used."""

    path: Path
    format: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    sha256: str  # of the file's bytes, hex
    rows: int  # non-blank lines; len(examples) + len(problems)


def detect_file(path: Path, columns: Mapping[str, str] | None = None) -> str | None:
    """The format that most of the first 200 rows have, after renaming `columns`; None where no row has one.

    Of equally frequent formats the one that comes first in the file. Raises InputError as read_rows does.
    """
    rows = (row for row in read_rows(path, _texts(columns or {})) if isinstance(row, Row))
    found = Counter(detect(remap(row, columns or {}).fields) for row in islice(rows, _DETECT_ROWS))
    del found[None]
    return found.most_common(1)[0][0] if found else None


def stream(
    path: Path, *, kind: Kind, format: str = "auto", columns: Mapping[str, str] | None = None, system: str | None = None
) -> tuple[str, Iterator[Example | Problem]]:
    """The file's format, "unknown" where none fits, and every row as an example or a problem, read as it is asked for.

    InputError for a file that cannot be read and an unknown format; at the end of the rows for a file without any, and for a
    name in `columns` that no row has.
    """
    columns = columns or {}
    if format != "auto":
        check_format(format)
    chosen = (detect_file(path, columns) or "unknown") if format == "auto" else format
    return chosen, _converted(path, chosen, kind, columns, system, detected=format == "auto")


def _converted(
    path: Path, format: str, kind: Kind, columns: Mapping[str, str], system: str | None, *, detected: bool
) -> Iterator[Example | Problem]:
    places = Places()
    for row in remapped(path, columns, places):
        result = as_example(row, format, kind, system, detected=detected) if isinstance(row, Row) else row
        yield places.said(result) if isinstance(result, Problem) else result


def remapped(path: Path, columns: Mapping[str, str], places: Places | None = None) -> Iterator[Row | Problem]:
    """Every row, with `columns` (our name: the name in the file) renamed. Raises InputError as stream does while it reads."""
    is_empty = True
    named: set[str] = set()  # every field name of the file
    for row in read_rows(path, _texts(columns), places):
        is_empty = False
        if isinstance(row, Row):
            if columns:
                named.update(row.fields)
            yield remap(row, columns)
        else:
            yield row
    if is_empty:
        rows = cut(str(path))[1]
        what = _without_rows(path) if rows is None else f"no rows are in {rows}"
        raise InputError(what, where=str(path), remedy="give at least one row")
    for ours, theirs in columns.items():
        if named and theirs not in named:
            remedy = f"the file has: {', '.join(sorted(named))}"
            raise InputError(f"no row has the field {theirs!r}", where=f"{path}: columns.{ours}", remedy=remedy)


def as_example(row: Row, format: str, kind: Kind, system: str | None, *, detected: bool) -> Example | Problem:
    """to_example, but a row that does not fit the detected format says which one it has instead."""
    if format in FORMATS and (not detected or has_fields(row.fields, format)):
        return to_example(row, format, kind, system)
    own = detect(row.fields)
    if own in REFUSED:
        _, reason, remedy = REFUSED[own]
        return Problem(row.line, "refused-format", "", reason, remedy)
    if format not in FORMATS:
        if own is not None:
            return Problem(row.line, "other-format", "", f"this row is {own}, but most rows are not", "keep one format per file")
        known = "; ".join("+".join(needed) for needed in FORMATS.values())
        reason = f"no format is known for the fields: {', '.join(row.fields) or 'none'}"
        remedy = f"{renaming('OURS', 'THEIRS')} so that they become one of: {known}"
        inside = _rows_inside(row.fields)
        if inside:
            remedy = (
                f"if the rows are those of {inside!r}, put them in an array under {', '.join(WRAPPERS[:-1])} or {WRAPPERS[-1]}"
            )
        return Problem(row.line, "no-format", "", reason, remedy)
    if own is not None:
        return Problem(row.line, "other-format", "", f"this row is {own}, but most rows are {format}", "keep one format per file")
    return to_example(row, format, kind, system)  # says which field is missing


def _rows_inside(fields: Mapping[str, Any]) -> str:
    """The name of the first field that looks like a table, of parts of one with a dot; empty where there is none."""
    for name, value in fields.items():
        for inner, rows in value.items() if isinstance(value, dict) else ((None, value),):
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
                return name if inner is None else f"{name}.{inner}"
    return ""


def _without_rows(path: Path) -> str:
    """Why a file has no row."""
    kind = ending(path.name)
    if kind == ".csv":
        return "there are no rows below the first line, which names the columns"
    if kind == ".parquet":
        return "there are no rows: the table is empty"
    if kind == ".json":
        for file in opened(path)[0]:
            with open_file(file) as text:
                if text.read(_BEGINNING_BYTES).removeprefix(BOM_UTF8).strip():
                    return "there are no rows: the array is empty"
    return "there are no rows, only blank lines"


def _texts(columns: Mapping[str, str]) -> frozenset[str]:
    """Names, in the file, of the fields that hold text in every format."""
    return frozenset(columns.get(name, name) for name in TEXTS)


def scan(
    path: Path, *, kind: Kind, format: str = "auto", columns: Mapping[str, str] | None = None, system: str | None = None
) -> DataSet:
    """Every row as an example or a problem; a damaged line is a problem, too. `format` is "unknown" where none fits.

    InputError for a file that cannot be read or has no rows, an unknown format, and a name in `columns` that no row has.
    """
    path = check_file(path)
    chosen, results = stream(path, kind=kind, format=format, columns=columns, system=system)
    examples: list[Example] = []
    problems: list[Problem] = []
    for result in results:
        if isinstance(result, Example):
            examples.append(result)
        else:
            problems.append(result)
    return DataSet(path, chosen, tuple(examples), tuple(problems), file_sha256(path), len(examples) + len(problems))


def load(
    path: Path, *, kind: Kind, format: str = "auto", columns: Mapping[str, str] | None = None, system: str | None = None
) -> DataSet:
    """The file's examples for a run. Rows that cannot be used are in `problems`, so that the run can say how many it skips.

    InputError as scan raises it, for a line that is not JSON or not UTF-8 (the file is damaged) and where no row is usable.
    """
    data = scan(path, kind=kind, format=format, columns=columns, system=system)
    for problem in data.problems:
        if problem.kind in BROKEN_FILE:
            file, line = place(path, problem.line)
            raise InputError(problem.reason, where=f"{file}:{line}", remedy=problem.remedy)
    if not data.examples:
        shown = "; ".join(f"line {p.line}: {p.reason}" for p in data.problems[:_SHOWN_PROBLEMS])
        raise InputError(f"none of its {data.rows} rows can be used: {shown}", where=str(path), remedy=data.problems[0].remedy)
    return data


def split_held_out(
    examples: Sequence[Example], valid_examples: Sequence[Example] | None, rows: int, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(train, held_out), both in file order; the same arguments give the same split everywhere.

    With a valid file: all examples, and at most `rows` of the valid ones. Without: at most `rows` and at most a fifth of
    the data is held out, but at least one row of two or more. Rows with the same prompt (chats: the same opening) stay on
    one side, unless every set of equal prompts is larger than the part to hold out.
    """
    if valid_examples is not None:
        kept = sorted(shuffled(range(len(valid_examples)), seed)[:rows])
        return tuple(examples), tuple(valid_examples[index] for index in kept)
    if len(examples) < 2:
        return tuple(examples), ()
    limit = max(1, min(rows, len(examples) // 5))
    part_of = parted((opening(example) or example.completion for example in examples), [limit], seed)
    held = {index for index, part in enumerate(part_of) if part != NO_PART} or set(shuffled(range(len(examples)), seed)[:limit])
    train = tuple(example for index, example in enumerate(examples) if index not in held)
    return train, tuple(example for index, example in enumerate(examples) if index in held)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run trains on and what it holds out, with the file or files that they came from."""

    files: tuple[DataSet, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def load_training_data(config: RunConfig, on_progress: OnProgress | None = None) -> TrainingData:
    """The data of a run. Raises InputError for data that cannot be had or used, or where nothing is left to hold out.

    `data.train` may be a folder or a data set of the hub: then its train split is used, and, where data.valid is null, its
    validation split if there is one. `on_progress` is told of what is fetched.
    """
    method, data = methods.method(config.method), config.data
    files = tuple(
        load(path, kind=method.kind, format=data.format, columns=data.columns, system=data.system)
        for path in training_files(data, on_progress)
        if path is not None
    )
    for file in files:
        require_format(method, file.format, str(file.path))
        if file.format == "text" and data.targets == "last":
            remedy = "leave it out, or use prompt+completion rows"
            raise InputError("rows of plain text have no prompt: all of it is learned", where="data.targets", remedy=remedy)
    valid = files[1].examples if len(files) > 1 else None
    train, held_out = split_held_out(files[0].examples, valid, config.run.eval_rows, config.run.seed)
    if not held_out:
        raise InputError("one row leaves nothing to hold out", where=data.train, remedy="add rows, or give data.valid")
    return TrainingData(files, train, held_out)
