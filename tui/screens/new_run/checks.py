"""What the step for model and data finds out, and how it is said. No widget in here; the I/O is in two small functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine import config as configs
from engine import data_names
from engine.config import RewardConfig, RunConfig
from engine.data import rows, validate
from engine.data.validate import DataReport, ProblemGroup
from engine.errors import InputError
from engine.safe_text import safe_text

if TYPE_CHECKING:
    from engine.api import Engine

Role = Literal["data", "held-out"]
ROW_CHARACTERS = 2000  # of a data row that are read and shown
NO_DATA = InputError("no data file yet", where="", remedy="type its path, or press g for sample rows")
BY_COLUMNS = "press m to say which column is which"
OF_COLUMNS = frozenset({"no-format", "missing-field", "no-reference", "refused-format"})


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One data file: `found` is None while it is being read, and of a data set of the hub; with `measuring` its lengths, and what
    the rewards give its rows, are still to come."""

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
            if file.found is not None and file.found.verdict == "unusable" and not file.found.is_settings_only:
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
            if path is not None and not is_of_hub(path):
                rows.check_file(Path(path))
    except InputError as error:
        return said(error)
    return ""


async def check_file(
    engine: Engine, file: FileCheck, config: RunConfig, tokenizer: Path | None, rewards: Sequence[RewardConfig] = ()
) -> DataReport | InputError:
    """The data file as the config's method will use it; with rewards, what these give its rows' own answers."""
    settings = validate.as_configured(config)
    if file.role == "held-out":
        settings |= {"valid": None, "is_held_out": True}
    try:
        return await engine.validate(file.path, config.method, tokenizer, rewards=rewards, **settings)
    except InputError as error:
        if error.where == "data.format":  # it is typed in the next step, which waits for this one
            return InputError(error.what, where=error.where, remedy=f"press m for the formats; {error.remedy}")
        return error


def is_of_hub(source: str) -> bool:
    """Whether a config's data is a data set of the hub: the run fetches it, and looking at it would fetch it here."""
    return not Path(source).is_absolute() and data_names.hub_id(source) is not None


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
        path = Path(report.path)  # of a folder its train file
        for group in report.problems:
            what = f"{group.kind}: {group.reason}"
            for place, line in enumerate(group.lines or (1,)):
                found.append(Trouble(path, line, group.count if place == 0 else 0, True, what, remedy(group)))
        for group in report.warnings:
            for place, line in enumerate(group.lines or (1,)):
                what = f"{group.kind}: {group.reason}"
                found.append(Trouble(path, line, group.count if place == 0 else 0, False, what, remedy(group)))
        for place, line in enumerate(report.duplicate_lines):
            count = report.duplicates if place == 0 else 0
            found.append(Trouble(path, line, count, False, "repeats an earlier row", "harmless, but the row counts twice"))
    return tuple(found)


def remedy(group: ProblemGroup) -> str:
    """What to do about a group of rows: with the key, where other columns can help."""
    return f"{BY_COLUMNS}, or: {group.remedy}" if group.kind in OF_COLUMNS else group.remedy


def said(error: InputError, key: str = "") -> str:
    """An error and its remedy in a line; without its place where that is the field it stands under."""
    what = error.what.removeprefix(f"{key}: ") if key else error.what
    place = "" if key else error.where.removeprefix("config").removeprefix(": ")
    return safe_text(": ".join(part for part in (place, what) if part) + (f" ({error.remedy})" if error.remedy else ""))
