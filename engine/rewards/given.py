"""Completions that a user has written or kept, each with the row of the data that it replies to."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from engine.config import DataConfig
from engine.data.examples import remap
from engine.data.formats import DataSet, as_example, read_rows
from engine.data.rows import Problem, Row
from engine.errors import InputError
from engine.types import Example

_SHAPES = 'write {"line": N, "completion": TEXT} for line N of the training file, or a row of the data with a `completion` beside'


def given_completions(path: Path, data: DataSet, reading: DataConfig, most: int) -> list[tuple[Example, str]]:
    """The first `most` rows of the file, each a row of the data and a completion.

    A row is {"line": N, "completion": text}, N being the line of a usable row of `data`, or itself a row of the format of `data`,
    read as `reading` says, with a `completion` beside. InputError for the first one that is neither.
    """
    by_line = {example.line: example for example in data.examples}
    return [_given(row, path, data, reading, by_line) for row in islice(read_rows(path), most)]


def _given(
    row: Row | Problem, path: Path, data: DataSet, reading: DataConfig, by_line: dict[int, Example]
) -> tuple[Example, str]:
    where = f"{path}:{row.line}"
    if isinstance(row, Problem):
        raise InputError(row.reason, where=where, remedy=row.remedy)
    fields = dict(row.fields)
    text = fields.pop("completion", None)
    if not isinstance(text, str):
        raise InputError("there is no `completion` with a text", where=where, remedy=_SHAPES)
    if set(fields) == {"line"}:
        example = by_line.get(fields["line"]) if isinstance(fields["line"], int) else None
        if example is None:
            raise InputError(f"line {fields['line']!r} of {data.path} is no usable row", where=where, remedy=_SHAPES)
        return example, text
    own = as_example(remap(Row(row.line, fields), reading.columns), data.format, "rl", reading.system, detected=False)
    if isinstance(own, Problem):
        raise InputError(own.reason, where=where, remedy=f"{own.remedy}; or {_SHAPES}")
    return own, text
