"""Converts a data file: to another format, another kind of file, other column names, into parts, without repeats.

conversions.py says what becomes of a row; here rows are read and written, one at a time. For a split the file is read twice,
and of each row eight bytes are kept in between.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.data.conversions import check_pair, check_target, convert_row
from engine.data.examples import FORMATS, Kind, check_format
from engine.data.files import held_out_files
from engine.data.formats import as_example, detect_file, remapped
from engine.data.report import Groups, ProblemGroup
from engine.data.rows import BROKEN_FILE, Places, Problem, Row, check_file, place
from engine.data.splits import NO_PART, Share, limits, parted
from engine.data.structure import keys
from engine.data.writing import RowFile, check_writable
from engine.errors import InputError
from engine.types import Example

_TOLD_ROWS = 1000  # between two calls of on_rows
_SHOWN_LINES = 20
_SHOWN_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class Conversion:
    """What convert did. rows = the rows of `files` + repeats + in_no_part + those of `left_out`."""

    path: str
    source: str  # the file's format
    target: str
    rows: int  # rows read
    files: tuple[tuple[str, int], ...]  # path and rows of each file that was written
    repeats: int  # rows that say what an earlier one says, and are not written
    in_no_part: int  # rows that --split has no place for
    left_out: tuple[ProblemGroup, ...]  # rows that cannot be written, most frequent first
    notes: tuple[ProblemGroup, ...]  # rows that are written, and what the format has no place for
    not_read: tuple[str, ...] = ()  # names of a folder's valid and test files, which are left as they are

    @property
    def written(self) -> int:
        """Rows in all files together."""
        return sum(rows for _, rows in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for `--json`; of each group the first 20 lines."""
        found = asdict(self) | {"files": [{"path": path, "rows": rows} for path, rows in self.files], "written": self.written}
        for name in ("left_out", "notes"):
            found[name] = [{**group, "lines": group["lines"][:_SHOWN_LINES]} for group in found[name]]
        return found


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert."""

    format: str = "auto"  # of the file that is read; "auto": what most of its first rows have
    columns: Mapping[str, str] = field(default_factory=dict)  # our name: the name in the file
    split: Mapping[str, Share] = field(default_factory=dict)  # parts to write (parse_split reads them); {}: one file
    kind: str | None = None  # of the parts' files; None: jsonl
    seed: int = 0  # of the split
    dedupe: bool = False  # drop rows whose prompt, completion and answer an earlier row has
    only_format_fields: bool = False  # leave out columns that the new format does not read
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    path: Path
    source: str
    target: str
    options: Options
    on_rows: Callable[[int], None]


@dataclass(slots=True)
class _Tally:
    rows: int = 0
    repeats: int = 0
    left_out: Groups = field(default_factory=Groups)
    notes: Groups = field(default_factory=Groups)


def convert(
    path: Path,
    out: Path,
    target: str | None = None,
    options: Options | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Conversion:
    """Write the rows of `path`, a file or a folder's train file, as rows of the format `target` (None: their own) to `out`.

    `out` is a file whose ending says its kind; with `options.split` a folder, in which each part becomes a file. Rows with the
    same prompt, of chats the same opening, are in one part; order is kept. `on_rows` is told now and then how many rows have
    been read, in both passes together; what it raises ends the work.
    A row that cannot be converted exactly is left out and reported. InputError, with nothing written: for a file that cannot be
    read or is damaged, formats that do not go together, no row that can be written, parts that would be empty, and whatever
    engine.data.writing refuses.
    """
    options = options or Options()
    file = check_file(path)
    if target is not None:
        check_target(target)
    source = _source(file, options)
    check_pair(source, target or source)
    not_read = held_out_files(path) if path.is_dir() else ()
    job = _Job(file, source, target or source, options, on_rows)
    if not options.split:
        if options.kind is not None:
            remedy = "let the ending of OUT say what kind of file it is, such as rows.csv"
            raise InputError("names the kind of files that --split writes", where="--kind", remedy=remedy)
        return replace(_whole(job, out), not_read=not_read)
    if out.exists() and not out.is_dir():
        raise InputError("is a file, and --split writes a folder", where=str(out), remedy="name a folder")
    paths = [out / f"{name}.{options.kind or 'jsonl'}" for name in options.split]
    for part in paths:
        check_writable(part, overwrite=options.overwrite)
    return replace(_parts(job, paths), not_read=not_read)


def _source(path: Path, options: Options) -> str:
    """The format of the file."""
    is_detected = options.format == "auto"
    found = detect_file(path, options.columns) if is_detected else options.format
    if found is None:
        known = "; ".join("+".join(needed) for needed in FORMATS.values())
        remedy = f"rename them with --columns OURS=THEIRS to one of: {known}"
        raise InputError("no row has the fields of a known format", where=str(path), remedy=remedy)
    try:
        check_format(found)
    except InputError as error:
        raise InputError(error.what, where=str(path) if is_detected else "--format", remedy=error.remedy) from None
    return found


def _whole(job: _Job, out: Path) -> Conversion:
    tally = _Tally()
    with RowFile(out, overwrite=job.options.overwrite) as file:
        for line, _, fields in _made(job, tally):
            file.add(fields, _place(job, line))
        _require_rows(job, file.rows, tally)
        file.publish()
    return _report(job, tally, [file], 0)


def _parts(job: _Job, paths: Sequence[Path]) -> Conversion:
    prompts = array("Q")
    first = _Tally()
    for _, example, _ in _made(job, first):
        asked, said = keys(example)
        prompts.append(int.from_bytes(asked if example.messages else said, "big"))  # a text has no prompt
    _require_rows(job, len(prompts), first)
    part_of = parted(prompts, limits(list(job.options.split.values()), len(prompts)), job.options.seed)
    for number, part in enumerate(paths):
        if number not in part_of:
            what = (
                f"{part.name} would get no row: {len(prompts)} rows can be written, and those with the same prompt stay together"
            )
            raise InputError(what, where=str(job.path), remedy=f"give {part.name.partition('.')[0]} a larger share")
    tally = _Tally()
    with ExitStack() as stack:
        files = [stack.enter_context(RowFile(part, overwrite=job.options.overwrite)) for part in paths]
        count = 0
        for line, _, fields in _made(job, tally, before=first.rows):
            if count < len(part_of) and part_of[count] != NO_PART:
                files[part_of[count]].add(fields, _place(job, line))
            count += 1
        if count != len(part_of):
            raise InputError("the file has changed while it was read", where=str(job.path), remedy="convert it again")
        for file in files:
            file.finish()
        for file in files:
            file.publish()
    return _report(job, tally, files, part_of.count(NO_PART))


def _made(job: _Job, tally: _Tally, before: int = 0) -> Iterator[tuple[int, Example, dict[str, Any]]]:
    """The line, the example and the new fields of every row that is written. The others are counted in `tally`."""
    seen: set[bytes] = set()
    places = Places()
    for row in remapped(job.path, job.options.columns, places):
        tally.rows += 1
        if tally.rows % _TOLD_ROWS == 0:
            job.on_rows(before + tally.rows)
        example = _example(row, job) if isinstance(row, Row) else row
        if isinstance(row, Problem) or isinstance(example, Problem):
            assert isinstance(example, Problem)
            if example.kind in BROKEN_FILE:
                file, line = place(job.path, example.line)
                raise InputError(example.reason, where=f"{file}:{line}", remedy=example.remedy)
            tally.left_out.add(places.said(example))
            continue
        made = convert_row(row, example, job.source, job.target, only_format_fields=job.options.only_format_fields)
        if isinstance(made, Problem):
            tally.left_out.add(places.said(made))
            continue
        if job.options.dedupe:
            _, said = keys(example)
            if said in seen:
                tally.repeats += 1
                continue
            seen.add(said)
        for note in made.notes:
            tally.notes.add(places.said(note))
        yield row.line, example, made.fields
    job.on_rows(before + tally.rows)


def _example(row: Row, job: _Job) -> Example | Problem:
    """What training reads from the row. A chat that ends with a question and has an `answer` is the prompt of a reward method."""
    turns = row.fields.get("messages") if job.source == "messages" else None
    asks = isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "user"
    kind: Kind = "rl" if asks and row.fields.get("answer") is not None else "sft"
    return as_example(row, job.source, kind, None, detected=job.options.format == "auto")


def _require_rows(job: _Job, written: int, tally: _Tally) -> None:
    if written:
        return
    groups = tally.left_out.groups()
    shown = "; ".join(f"line {group.lines[0]}: {group.reason}" for group in groups[:_SHOWN_PROBLEMS])
    what = f"none of its {tally.rows} rows can be written as {job.target}: {shown}"
    raise InputError(what, where=str(job.path), remedy=groups[0].remedy)


def _place(job: _Job, line: int) -> str:
    return f"line {line} of {job.path.name}"


def _report(job: _Job, tally: _Tally, files: Sequence[RowFile], in_no_part: int) -> Conversion:
    return Conversion(
        path=str(job.path),
        source=job.source,
        target=job.target,
        rows=tally.rows,
        files=tuple((str(file.path), file.rows) for file in files),
        repeats=tally.repeats,
        in_no_part=in_no_part,
        left_out=tally.left_out.groups(),
        notes=tally.notes.groups(),
    )
