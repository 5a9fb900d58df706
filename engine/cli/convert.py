"""The verb `convert`: a data file in another format, another kind of file, or in parts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from engine import data_names
from engine.api import Engine
from engine.cli import report_lines
from engine.data.convert import Conversion, Options
from engine.data.splits import parse_split
from engine.errors import InputError
from engine.safe_text import safe_text


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A .jsonl, .json, .csv or .parquet file; of a folder its train file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new file, whose ending says its kind; with --split a folder.")],
    target: Annotated[
        str | None, typer.Option("--to", metavar="FORMAT", help="The new format; the rows' own where it is left out.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="The format of IN, where it is not the one that is detected.")] = "auto",
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="OURS=THEIRS", help="Rename a column of IN; can be repeated.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="PARTS", help="Such as train=0.9,valid=0.1 (shares) or valid=200 (rows).")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Of the files of --split: jsonl, json, csv or parquet.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed splits otherwise.")] = 0,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Drop rows that say what an earlier one says.")] = False,
    only: Annotated[bool, typer.Option("--only-format-fields", help="Leave out columns that FORMAT does not read.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a data file in another format, as another kind of file, or in parts.

    Formats: messages, prompt+completion, prompt+answer, gsm8k, instruction, reasoning, text. Columns that the new format does
    not read are kept for rewards. Rows with the same prompt stay in one part. A row that cannot be converted exactly is left out,
    with its line and the reason.

    Take the answers of worked solutions for a reward method:

        droid-tune convert gsm8k.jsonl answers.jsonl --to prompt+answer

    Make a table into chats, without repeats, a tenth of them held out:

    \b
        droid-tune convert table.csv chats --to messages --dedupe \\
          --columns prompt=ask --columns completion=reply \\
          --split train=0.9,valid=0.1

    Exits with 0 when all rows are written, 1 when some are left out, 2 when nothing is written.
    """
    options = Options(
        format=format,
        columns=renamed(columns or ()),
        split={} if split is None else parse_split(split),
        kind=kind,
        seed=seed,
        dedupe=dedupe,
        only_format_fields=only,
        overwrite=force,
    )
    with _progress(shown=sys.stderr.isatty() and not as_json) as on_rows:
        done = asyncio.run(Engine().convert(Path(data_names.resolve(source, Path.cwd())), out, target, options, on_rows))
    print(json.dumps(done.as_dict(), indent=1, ensure_ascii=False) if as_json else "\n".join(said(done)))
    raise typer.Exit(1 if done.left_out else 0)


def said(done: Conversion) -> list[str]:
    """What was done, as lines of text."""
    lines = [
        f"file     {safe_text(done.path)}",
        f"format   {done.source} to {done.target}" if done.source != done.target else f"format   {done.source}",
        f"rows     {done.rows:,} read, {done.written:,} written",
        *(f"written  {safe_text(path)}: {rows:,} rows" for path, rows in done.files),
    ]
    if done.repeats:
        lines.append(f"repeats  {done.repeats:,} rows say what an earlier one says: dropped")
    if done.in_no_part:
        lines.append(f"no part  {done.in_no_part:,} rows are in no part of the split: not written")
    if done.not_read:
        names = ", ".join(map(safe_text, done.not_read))
        lines.append(f"not read {names}: of a folder the train file alone is converted; name the others one by one")
    if done.left_out:
        lines += [f"left out {sum(group.count for group in done.left_out):,} rows", *report_lines.problems(done.left_out)]
    if done.notes:
        lines += ["notes    on rows that are written", *report_lines.problems(done.notes)]
    return lines


def renamed(pairs: Sequence[str]) -> dict[str, str]:
    """OURS=THEIRS as {ours: theirs}. Raises InputError."""
    columns: dict[str, str] = {}
    for pair in pairs:
        ours, sign, theirs = pair.partition("=")
        if not (sign and ours and theirs) or ours in columns:
            what = f"{ours} is given twice" if ours in columns else f"{pair!r} is not OURS=THEIRS"
            raise InputError(what, where="--columns", remedy="such as --columns prompt=question")
        columns[ours] = theirs
    return columns


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int], None] | None]:
    """Rows and rows per second on stderr while it runs."""
    if not shown:
        yield None
        return
    from rich.console import Console  # here: every verb would pay for them
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("0 rows read", total=None)
        began = monotonic()

        def told(rows: int) -> None:
            bar.update(task, description=f"{rows:,} rows read, {rows / (monotonic() - began):,.0f} rows/s")

        yield told
