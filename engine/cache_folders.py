"""Folders that the product makes of something else, once: whole or not at all, with a note of what each was made from."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = "source.json"  # in every such folder: what it was made from
DESCRIBED = ".described"  # among the models: folders that have all but the weights, whose header stands for them


@contextmanager
def aside(parent: Path, name: str) -> Iterator[Path]:
    """A new folder beside the one to come; gone afterwards, unless it was renamed."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".{name}.{secrets.token_hex(4)}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, done: Path, source: Mapping[str, Any]) -> None:
    """Write down the source, bring all to the disk, and give the folder its name. Raises OSError."""
    write(folder / SOURCE, source)
    _sync(folder)
    try:
        os.rename(folder, done)
    except OSError:
        if not is_made(done):  # another process may have made the same just now
            raise
    _sync(done.parent)


def is_made(folder: Path) -> bool:
    """Whether the folder is there; none is there half-made."""
    return (folder / SOURCE).is_file()


def source(folder: Path) -> dict[str, Any]:
    """What the folder was made from."""
    found: dict[str, Any] = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    return found


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, on the disk before this returns."""
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
