"""Which column of a data file is which field: what the file has, what a format needs, how a row is read. No widget in here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from textual.content import Content

from engine import methods
from engine.config import DataConfig
from engine.data import formats, rows
from engine.data.examples import FORMATS
from engine.data.rows import Problem
from engine.errors import InputError
from engine.safe_text import safe_text
from engine.types import Example
from tui.screens.new_run.checks import OF_COLUMNS, said
from tui.screens.new_run.parts import columns

AUTO = "auto"
SEEN_ROWS = 100  # in which names of columns are looked for
SHOWN_CHARACTERS = 600  # of a text in the preview
NOT_CHOSEN = ""
BY_CHOICE = "choose above, by left and right, which column is which"
COLUMN_CELLS = 24  # room of a column's name
_OPTIONAL = {"instruction": ("input",)}


@dataclass(frozen=True, slots=True)
class Seen:
    """The first rows of a data file."""

    path: Path  # of a folder its train file
    names: tuple[str, ...]  # of the columns, in the order in which they come
    first: Mapping[str, Any]  # each column's first value


@dataclass(frozen=True, slots=True)
class Slot:
    """A field of a format."""

    name: str
    names: tuple[str, ...]  # by which it is found in a file; the first one is `name`
    is_needed: bool

    def own(self, seen: Seen) -> str:
        """The column that it is found in without being told; empty where there is none."""
        return next((name for name in self.names if name in seen.names), NOT_CHOSEN)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the first row of the file is read."""

    format: str  # the chosen or detected one; "unknown" where none fits
    row: Example | Problem | InputError


def look(path: Path) -> Seen:
    """The file's columns. Raises InputError where it cannot be read."""
    file = rows.check_file(path)
    first: dict[str, Any] = {}
    for row in islice(rows.read_rows(file), SEEN_ROWS):
        for name, value in row.fields.items() if isinstance(row, rows.Row) else ():
            first.setdefault(name, value)
    return Seen(file, tuple(first), first)


def read_first(path: Path, method_id: str, data: DataConfig) -> Reading:
    """The first row as the method will have it, by the format and the columns in `data`."""
    try:
        kind = methods.method(method_id).kind
        format, results = formats.stream(path, kind=kind, format=data.format, columns=data.columns, system=data.system)
        return Reading(format, next(iter(results)))
    except InputError as error:
        return Reading("unknown", error)


def slots(format: str, method_id: str) -> tuple[Slot, ...]:
    """The fields of the format, needed ones first; of one that is not known those of the method's plainest format."""
    kind = methods.method(method_id).kind
    known = format if format in FORMATS else "prompt+completion" if kind == "sft" else "prompt+answer"
    needed = tuple(tuple(field.split("|")) for field in FORMATS[known])
    more = (*_OPTIONAL.get(known, ()), *(("answer",) if kind == "rl" and ("answer",) not in needed else ()), "system")
    return (*(Slot(names[0], names, True) for names in needed), *(Slot(name, (name,), False) for name in more))


def choices(slot: Slot, seen: Seen) -> tuple[str, ...]:
    """The columns that the field can be, in order; first NOT_CHOSEN, where the file has none of the field's own name."""
    return seen.names if slot.own(seen) else (NOT_CHOSEN, *seen.names)


def chosen(slot: Slot, seen: Seen, mapping: Mapping[str, str]) -> str:
    """The column that the field is."""
    return mapping.get(slot.name) or slot.own(seen)


def with_choice(slot: Slot, column: str, seen: Seen, mapping: Mapping[str, str]) -> dict[str, str]:
    """The mapping with another column for the field; what is found without being told is left out."""
    others = {name: theirs for name, theirs in mapping.items() if name != slot.name}
    return others if column in (NOT_CHOSEN, slot.own(seen)) else {**others, slot.name: column}


def kept(mapping: Mapping[str, str], present: Iterable[Slot]) -> dict[str, str]:
    """The mapping without fields of other formats than the present one; columns that only rewards ask for stay."""
    names = {slot.name for slot in present}
    foreign = {name for field in FORMATS.values() for part in field for name in part.split("|")} - names
    return {name: theirs for name, theirs in mapping.items() if name not in foreign}


def form_rows(present: Sequence[Slot], seen: Seen, mapping: Mapping[str, str], cells: int) -> list[str]:
    """Each field as a row."""
    longest = max(cell_len(safe_text(chosen(slot, seen, mapping))) for slot in present)
    return [form_row(slot, seen, mapping, cells, min(longest, COLUMN_CELLS)) for slot in present]


def form_row(slot: Slot, seen: Seen, mapping: Mapping[str, str], cells: int, column_cells: int) -> str:
    """A field as a row: its name, the column, and what that column has."""
    column = chosen(slot, seen, mapping)
    if not column:
        return f"{slot.name:<{cells}}{'✕ not chosen' if slot.is_needed else '– not used'}"
    value = shown_value(seen.first[column]) if column in seen.names else "✕ the file has no such column"
    return f"{slot.name:<{cells}}{safe_text(column):<{column_cells}}  = {value}"


def shown_value(value: object) -> str:
    """A value of a row in a line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return safe_text(text[:SHOWN_CHARACTERS])


def preview(reading: Reading | None, format: str, width: int) -> Content:
    """The first row as the method will have it."""
    rule = Content.styled("─" * width, "$text-disabled")
    if reading is None:
        return rule
    how = f"{reading.format}, found in the rows" if format == AUTO and reading.format in FORMATS else reading.format
    head = Content.assemble(("the first row", "bold"), f"  {how}")
    facts: list[tuple[str, str]]
    match reading.row:
        case InputError() as error:
            facts = [("", f"✕ {said(error)}")]
        case Problem() as problem:
            facts = [
                ("", f"✕ line {problem.line}: {problem.reason}"),
                ("remedy", BY_CHOICE if problem.kind in OF_COLUMNS else problem.remedy),
            ]
        case Example() as example:
            facts = [(turn.role if turn.role != "user" else "prompt", turn.content) for turn in example.messages]
            facts += [("completion", example.completion)] if example.completion is not None else []
            facts += [("answer", example.answer)] if example.answer is not None else []
    lines = columns([(safe_text(label), safe_text(text[:SHOWN_CHARACTERS])) for label, text in facts], width, 12, indent=0)
    return Content("\n").join([rule, head.truncate(width, ellipsis=True), lines])
