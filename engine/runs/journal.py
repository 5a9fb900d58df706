"""The journal of a run (events.jsonl): one writer that appends whole lines, and readers that follow it.

A line is {"v": 1, "seq": n, "t": unix seconds, "type": ..., ...fields}. Non-finite numbers are written as the strings
"NaN", "Infinity" and "-Infinity", since JSON has no numbers for them. A crash may tear the last line; the next writer
ends it with a newline, and readers count it and go on.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import InputError

VERSION = 1
# fsync after these: a run's life must be known after a power cut, a lost heartbeat costs nothing
LIFECYCLE = frozenset({"created", "started", "checkpoint", "paused", "resumed", "stopped", "failed", "finished"})
TYPES = LIFECYCLE | {"phase", "heartbeat", "step", "samples", "eval", "command", "warning"}

_ENVELOPE = frozenset({"v", "seq", "t", "type"})
_HEAD_BYTES = 128  # of the file's start, by which a reader knows its journal again
_Look = tuple[int, int, int, int]  # inode, bytes, nanoseconds of the last write and of the last change
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal; `t` in unix seconds, `fields` without v, seq, t and type."""

    seq: int
    t: float
    type: str
    fields: Mapping[str, Any]


class JournalWriter:
    """The single writer of a journal; its threads may share it.

    Opening continues `seq` after the last valid line and ends a torn one. Raises OSError where the disk does.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        size = os.fstat(self._descriptor).st_size
        self._seq = _last_seq(self._descriptor, size)
        self._torn = False
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def seq(self) -> int:
        """The number of the last line, 0 where there is none."""
        return self._seq

    def write(self, type: str, /, **fields: Any) -> Event:
        """Append one event and return it. Raises ValueError for an unknown type or a field that the envelope has."""
        if type not in TYPES:
            raise ValueError(f"unknown event type {type!r}")
        if not _ENVELOPE.isdisjoint(fields):
            raise ValueError(f"{type}: fields may not be called {', '.join(sorted(_ENVELOPE & fields.keys()))}")
        with self._lock:
            event = Event(self._seq + 1, time.time(), type, fields)
            line = _encode({"v": VERSION, "seq": event.seq, "t": event.t, "type": type, **fields})
            self._append(line)
            self._seq = event.seq
            if type in LIFECYCLE:
                os.fsync(self._descriptor)
        return event

    def close(self) -> None:
        """Let the file go; writing afterwards raises OSError."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _append(self, line: bytes) -> None:
        """One write per line; a full disk may cut it, and the next line then starts with the newline that is missing."""
        data = b"\n" + line if self._torn else line
        while data:
            written = os.write(self._descriptor, data)
            data = data[written:]
            self._torn = bool(data)


class JournalReader:
    """Reads a journal piece by piece, from its start or from the last `tail_bytes` of it; the file may come later.

    `torn` counts the lines that were no events; `restarted` says that the last `read` found another file (or a shorter
    one) in the journal's place and began anew, so that what was folded before must be thrown away.
    """

    def __init__(self, path: Path, *, tail_bytes: int | None = None) -> None:
        self._path = path
        self._tail_bytes = tail_bytes
        self.restarted = False
        self._begin()

    def _begin(self) -> None:
        self.torn = 0
        self._inode: int | None = None
        self._head = b""
        self._offset = 0
        self._partial = b""
        self._skip_line = False
        self._read_to_end: _Look | None = None  # how the file looked when all of it had been read

    def read(self, max_bytes: int = 1 << 18) -> list[Event]:
        """The next events, from about `max_bytes` of lines; [] when every complete line has been read."""
        self.restarted = False
        try:
            if self._read_to_end is not None and _look(os.stat(self._path)) == self._read_to_end:
                return []
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if self._inode is not None:
                self._begin()
                self.restarted = True
            return []
        try:
            info = self._place(descriptor)
            events: list[Event] = []
            while not events:
                chunk = os.pread(descriptor, max_bytes, self._offset)
                if not chunk:
                    break
                self._offset += len(chunk)
                events = self._events(chunk)
            self._read_to_end = _look(info) if self._offset == info.st_size else None
            return events
        finally:
            os.close(descriptor)

    def _place(self, descriptor: int) -> os.stat_result:
        """Check that this is the file of the last call, else begin anew; returns how it looks."""
        info = os.fstat(descriptor)
        # the inode number of a deleted file is used again at once, so the first bytes are compared too
        same = self._inode in (None, info.st_ino) and os.pread(descriptor, len(self._head), 0) == self._head
        if not same or info.st_size < self._offset:
            self._begin()
            self.restarted = True
        if self._inode is None and self._tail_bytes is not None and not self.restarted:
            self._offset = max(0, info.st_size - self._tail_bytes)
            self._skip_line = self._offset > 0
        self._inode = info.st_ino
        if len(self._head) < _HEAD_BYTES:
            self._head = os.pread(descriptor, min(_HEAD_BYTES, info.st_size), 0)
        return info

    def _events(self, chunk: bytes) -> list[Event]:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if self._skip_line and lines:
            del lines[0]
            self._skip_line = False
        events = []
        for line in lines:
            event = parse_line(line)
            if event is not None:
                events.append(event)
            elif line:
                self.torn += 1
        return events


async def follow(
    path: Path,
    since: int = 0,
    poll_seconds: float = 0.25,
    *,
    until: Callable[[], bool] | None = None,
    tail_bytes: int | None = None,
) -> AsyncGenerator[Event, None]:
    """Every event with seq > `since`, and then the new ones as they come (looked for every `poll_seconds`).

    `until` is asked whenever all was read; when it says yes and nothing was written meanwhile, the iteration ends.
    Raises InputError when another file takes the journal's place: what was seen before does not belong to it.
    """
    reader = JournalReader(path, tail_bytes=tail_bytes)
    ending = False
    while True:
        events = reader.read(1 << 16)
        if reader.restarted:
            raise InputError("the journal was replaced or cut while it was followed", where=str(path), remedy="attach again")
        for event in events:
            if event.seq > since:
                yield event
        if events:
            ending = False
            await asyncio.sleep(0)  # a long journal must not keep the event loop to itself
        elif ending:
            return
        else:
            ending = until is not None and until()
            await asyncio.sleep(0 if ending else poll_seconds)


def parse_line(line: bytes) -> Event | None:
    """The event in a line without its newline; None for anything else."""
    try:
        record = _DECODER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError):  # ValueError: no JSON, or no UTF-8
        return None
    if not isinstance(record, dict):
        return None
    seq, t, kind = record.get("seq"), record.get("t"), record.get("type")
    if type(seq) is not int or seq < 1 or not isinstance(t, int | float) or not isinstance(kind, str):
        return None
    for key in _ENVELOPE:
        record.pop(key, None)
    return Event(seq, t, kind, record)


def number(value: object) -> float | None:
    """A number from the journal as a float, its non-finite strings included; None for anything else."""
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value) if abs(value) < 1 << 1023 else None
    return _NON_FINITE.get(value) if isinstance(value, str) else None


def jsonable(value: Any) -> Any:
    """`value` with every non-finite number in it as the string that the journal writes for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def _encode(record: dict[str, Any]) -> bytes:
    try:
        text = _ENCODER.encode(record)
    except (ValueError, TypeError):  # a number that is not finite, or another kind of mapping: rare, and dear to look for
        text = _ENCODER.encode(jsonable(record))
    return text.encode("ascii") + b"\n"


def _look(info: os.stat_result) -> _Look:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# escaped to ASCII: a lone surrogate in a traceback has no UTF-8
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_no_constant)  # json.loads would make one for every line


def _last_seq(descriptor: int, size: int) -> int:
    """The number of the last valid line, read from the end in growing windows; a complete line without its newline counts."""
    window = 1 << 16
    while size:
        start = max(0, size - window)
        lines = os.pread(descriptor, size - start, start).split(b"\n")
        for line in reversed(lines[1:] if start else lines):
            event = parse_line(line)
            if event is not None:
                return event.seq
        if not start:
            return 0
        window *= 4
    return 0
