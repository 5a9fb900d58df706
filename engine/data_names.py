"""What `data.train` and `data.valid` may say: a file, a folder, files of one pattern, or a data set of the hub; of each all rows
or some.

    rows.jsonl    folder    folder/part-*.jsonl    owner/name    owner/name:config@revision#split    rows.jsonl[:1000]

A path that exists is that path, whatever it looks like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine import share

_ROWS = re.compile(r"\[(-?\d+%?)?:(-?\d+%?)?\]$")
_HUB = re.compile(
    r"(?P<repo>\w[\w.-]*/[\w.-]+)(?::(?P<config>[^@#*\[\]]+))?(?:@(?P<revision>[^#*\[\]]+))?(?:#(?P<split>[\w./-]+))?"
)
# A name that ends so is meant as a file, even where none is there.
_OF_FILES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zip", ".zst", ".xlsx", ".yaml")


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows `[start:stop]`, as Python counts them; an edge is a number, a negative number (from the end) or a percentage."""

    start: str = ""  # as it is written; empty: from the first
    stop: str = ""  # empty: to the last

    def __str__(self) -> str:
        return f"[{self.start}:{self.stop}]"

    @property
    def needs_total(self) -> bool:
        """Whether the number of all rows decides which these are."""
        return any(edge.startswith("-") or edge.endswith("%") for edge in (self.start, self.stop))

    def bounds(self, total: int | None) -> tuple[int, int | None]:
        """First row and the one behind the last, from 0; None: to the end. `total` may be None unless it is needed.

        A percentage is rounded to the nearest row, as the `datasets` library does it.
        """
        return _edge(self.start, total) if self.start else 0, _edge(self.stop, total) if self.stop else None


@dataclass(frozen=True, slots=True)
class HubId:
    """A data set of the hub. What is empty is left to what the repository itself says."""

    repo: str  # owner/name
    config: str = ""
    revision: str = ""  # a branch, a tag or a commit
    split: str = ""  # a split's name, or a file's path in the repository
    rows: RowRange | None = None

    def __str__(self) -> str:
        parts = ((":", self.config), ("@", self.revision), ("#", self.split))
        said = "".join(f"{mark}{value}" for mark, value in parts if value)
        return f"{self.repo}{said}{self.rows or ''}"


def hub_id(text: str) -> HubId | None:
    """The data set that `text` names; None for what looks like a path."""
    name, rows = cut(text)
    match = _HUB.fullmatch(name)
    if match is None or match["repo"].lower().endswith(_OF_FILES):
        return None
    return HubId(match["repo"], match["config"] or "", match["revision"] or "", match["split"] or "", rows)


def cut(text: str) -> tuple[str, RowRange | None]:
    """`text` without the rows that it ends with, and these; None where it names none."""
    match = _ROWS.search(text)
    if match is None:
        return text, None
    return text[: match.start()], RowRange(match[1] or "", match[2] or "")


def resolve(value: str, base: Path) -> str:
    """A config's `value` with its path made absolute (see share.resolve); an id of the hub stays as it is."""
    whole = share.resolve(value, base)
    if whole.exists():
        return str(whole)
    name, rows = cut(value)
    path = share.resolve(name, base)
    if hub_id(value) is not None and not path.exists():
        return value
    return f"{path}{rows or ''}"


def _edge(text: str, total: int | None) -> int:
    if total is None:
        return int(text)
    place = round(int(text[:-1]) * total / 100) if text.endswith("%") else int(text)
    return min(max(place + total, 0) if place < 0 else place, total)
