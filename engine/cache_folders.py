"""Folders that the product makes of something else, once: whole or not at all, with a note of what each was made from.

Each is made aside, in a folder that its maker holds locked for as long as it lives. One that a killed process has left is
locked by nobody: whoever makes the same folder next removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = "source.json"  # in every such folder: what it was made from
DESCRIBED = ".described"  # among the models: folders that have all but the weights, whose header stands for them


OLD = ".old"  # after the name of a folder aside: what stood in its place, until the new one has its name
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)  # of a disk in a network


@contextmanager
def aside(parent: Path, name: str) -> Iterator[Path]:
    """A new folder beside the one to come; gone afterwards, unless it was renamed. What killed makers of the same have left
    goes first."""
    parent.mkdir(parents=True, exist_ok=True)
    clear(parent, name)
    folder, lock = _locked(parent, name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def clear(parent: Path, name: str) -> list[Path]:
    """Remove what makers of the folder `name` left aside when they were killed, and say what that was. What was to be replaced
    gets its name back, where the new one did not come to stand there. What a living process holds, and all on a disk that
    has no locks, stays."""
    ours = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.part({re.escape(OLD)})?")
    found = []
    for path in sorted(parent.iterdir(), reverse=True):  # NAME.part.old before NAME.part, whose lock stands for both
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        maker = path.with_name(path.name.removesuffix(OLD))
        lock = _lock(maker) if maker.is_dir() else None
        if lock is None and maker.is_dir():
            continue
        try:
            if path != maker and not (parent / name).exists():
                os.rename(path, parent / name)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            if lock is not None:
                os.close(lock)
        if not path.exists():
            found.append(path)
    return found


def _locked(parent: Path, name: str) -> tuple[Path, int]:
    """A new folder aside, and the descriptor that holds it until it is closed."""
    while True:
        folder = parent / f".{name}.{secrets.token_hex(4)}.part"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if folder.is_dir():
            return folder, lock
        os.close(lock)  # in the moment before it was locked, another maker took it for one that was left


def _lock(folder: Path) -> int | None:
    """The descriptor that holds a folder aside; None where its maker lives, or where that cannot be known."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError) or error.errno in _NO_LOCKS:
            return None
        raise
    return lock


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
