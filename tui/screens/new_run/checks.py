"""What the step for model and data finds out, and how it is said. No widget in here; the I/O is in two small functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from textual.content import Content

from engine import config as configs
from engine.config import RunConfig
from engine.data import rows, validate
from engine.data.validate import DataReport, TokenLengths
from engine.errors import InputError
from engine.safe_text import safe_text
from tui.screens.new_run.parts import columns

Role = Literal["data", "held-out"]
VERDICTS = {"ready": "✓", "ready with warnings": "⚠", "unusable": "✕"}
ROW_CHARACTERS = 2000  # of a data row that are read and shown
_TERSE = "✕ {}"


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One data file: `found` is None while it is being read; with `measuring` lengths are still to come."""

    role: Role
    path: Path
    found: DataReport | InputError | None = None
    measuring: bool = False


@dataclass(frozen=True, slots=True)
class Checks:
    """Everything known so far; None: not looked at yet."""

    model: Path | InputError | None = None
    files: tuple[FileCheck, ...] = ()

    @property
    def obstacle(self) -> str:
        """What makes a run impossible, in a line; empty where nothing does, as far as is known."""
        if isinstance(self.model, InputError):
            return said(self.model)
        for file in self.files:
            if isinstance(file.found, InputError):
                return said(file.found)
            if file.found is not None and file.found.verdict == "unusable" and not all_too_long(file.found):
                return f"{file.role} file: no run can start with it; the list below says why, by line"
        return ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A line of a data file that has something wrong with it."""

    path: Path
    line: int
    count: int  # lines with the same trouble; 0 behind the first of them
    is_fatal: bool
    what: str
    remedy: str

    def row(self) -> str:
        """As a row of the list."""
        many = f"{self.count} x" if self.count else ""
        return safe_text(f"{many:>7} line {self.line:<7} {'✕' if self.is_fatal else '⚠'} {self.what}")


def check_model(model: str) -> Path | InputError:
    """The folder of a config's model, or why there is none."""
    try:
        return configs.model_folder(model)
    except InputError as error:
        return error
    except (OSError, ValueError) as error:  # what the model cache says of a strange name
        return InputError(f"no model has that name: {error}", where=model, remedy="give a folder that mlx_lm can load, or `demo`")


def first_obstacle(config: RunConfig) -> str:
    """What can be seen without reading a file through: no model, no data file; empty where both are there."""
    model = check_model(config.model)
    if isinstance(model, InputError):
        return said(model)
    try:
        for path in (config.data.train, config.data.valid):
            if path is not None:
                rows.check_file(Path(path))
    except InputError as error:
        return said(error)
    return ""


def check_file(path: Path, config: RunConfig, tokenizer: Path | None) -> DataReport | InputError:
    """The data file as the config's method will use it."""
    data, limits = config.data, config.sampling
    try:
        return validate.validate(
            path,
            config.method,
            format=data.format,
            columns=data.columns,
            system=data.system,
            tokenizer=tokenizer,
            max_prompt_tokens=limits.max_prompt_tokens,
            max_completion_tokens=limits.max_completion_tokens,
            targets=data.targets,
            valid=Path(data.valid) if data.valid is not None and path == Path(data.train) else None,
        )
    except InputError as error:
        return error


def read_line(path: Path, number: int) -> str:
    """The start of a line of the file (of what is no text file by lines: of that row), as text. Raises OSError."""
    if path.suffix != ".jsonl":
        found = rows.row_at(path, number)
        text = found.reason if isinstance(found, rows.Problem) else "" if found is None else json.dumps(found.fields, default=str)
        return text[:ROW_CHARACTERS]
    with path.open("rb") as file:
        for raw in islice(file, number - 1, number):
            return raw[: 4 * ROW_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")[:ROW_CHARACTERS]
    return ""


def all_too_long(found: DataReport) -> bool:
    """Whether nothing but the limit on prompts makes the file unusable. The next step can raise it."""
    lengths = found.prompt_tokens
    is_damaged = any(group.kind in rows.BROKEN_FILE for group in found.problems)
    return lengths is not None and lengths.over_limit == (found.training_rows or 0) > 0 and not is_damaged


def troubles(files: Sequence[FileCheck]) -> tuple[Trouble, ...]:
    """Every line that a report names, the most frequent trouble first."""
    found: list[Trouble] = []
    for file in files:
        report = file.found
        if not isinstance(report, DataReport):
            continue
        for group in report.problems:
            what = f"{group.kind}: {group.reason}"
            for place, line in enumerate(group.lines):
                found.append(Trouble(file.path, line, group.count if place == 0 else 0, True, what, group.remedy))
        for group in report.warnings:
            for place, line in enumerate(group.lines or (1,)):
                what = f"{group.kind}: {group.reason}"
                found.append(Trouble(file.path, line, group.count if place == 0 else 0, False, what, group.remedy))
        for place, line in enumerate(report.duplicate_lines):
            count = report.duplicates if place == 0 else 0
            remedy = "harmless, but the row counts twice"
            found.append(Trouble(file.path, line, count, False, "repeats an earlier row", remedy))
    return tuple(found)


def said(error: InputError, key: str = "") -> str:
    """An error and its remedy in a line; without its place where that is the field it stands under."""
    what = error.what.removeprefix(f"{key}: ") if key else error.what
    place = "" if key else error.where.removeprefix("config").removeprefix(": ")
    return safe_text(": ".join(part for part in (place, what) if part) + (f" ({error.remedy})" if error.remedy else ""))


def report(checks: Checks, model: str, width: int) -> Content:
    """The report, line by line as it comes in."""
    lines: list[tuple[str, str]] = []
    if checks.model is None:
        lines.append(("model", "checking ..."))
    elif isinstance(checks.model, InputError):
        lines.append(("model", _TERSE.format(said(checks.model))))
    else:
        where = "the embedded model" if model == "demo" else safe_text(str(checks.model))
        lines.append(("model", f"✓ found: {where}"))
    for file in checks.files:
        lines += _file_lines(file)
    return columns(lines, width, 10, indent=0)


def _file_lines(file: FileCheck) -> list[tuple[str, str]]:
    found = file.found
    if found is None:
        return [(file.role, "checking ...")]
    if isinstance(found, InputError):
        return [(file.role, _TERSE.format(said(found)))]
    amount = f"{found.rows:,} rows, {found.usable:,} usable, format {found.format}"
    lines: list[tuple[str, str]] = [(file.role, f"{VERDICTS[found.verdict]} {found.verdict}: {amount}")]
    if all_too_long(found):
        lines.append(("", "every prompt is over the limit: raise sampling.max_prompt_tokens in the next step"))
    elif file.role == "held-out":
        return lines
    for label, lengths in (("prompts", found.prompt_tokens), ("targets", found.completion_tokens)):
        if lengths is not None:
            lines.append((label, _lengths(lengths)))
        elif file.measuring and label == "prompts":
            lines.append((label, "counting tokens ..."))
    return lines


def _lengths(found: TokenLengths) -> str:
    over = f"{found.over_limit:,}" if found.over_limit else "none"
    spread = f"{found.min} to {found.max} tokens, median {found.median:g}, 95% within {found.p95}"
    return f"{spread}; {over} over the limit of {found.limit}"
