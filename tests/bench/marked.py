"""A part of a document that a command writes: between two comment lines that name the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write(path: Path, start: str, end: str, lines: Sequence[str]) -> None:
    """Put the lines between the markers."""
    text = path.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise ValueError(f"{path}: no markers {start}")
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n" + "\n".join(lines) + f"\n{end}{after}", encoding="utf-8")
