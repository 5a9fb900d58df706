"""Takes a file's first bytes one claim at a time; no claim makes room before it was held against what is left of the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import InputError

MAX_HEADER_BYTES = 64 << 20  # metadata and tensor table; a vocabulary of 260,000 tokens takes 15 MB
_REMEDY = "fetch the file again"


class Reader:
    """Takes bytes off the file's start; says what they were meant to be where there are not as many."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.size = size
        self.path = path
        self.position = 0
        self.items = 0
        self._file = file
        self._end = min(size, MAX_HEADER_BYTES)

    def damaged(self, what: str) -> InputError:
        return InputError(f"is damaged: {what}", where=str(self.path), remedy=_REMEDY)

    def take(self, count: int, what: str) -> bytes:
        if count > self._end - self.position:
            if count <= self.size - self.position:
                raise self.damaged(f"its header is larger than {MAX_HEADER_BYTES >> 20} MiB, at {what}")
            raise self.damaged(f"{what} claims {count} bytes, {self.size - self.position} are left of the file")
        data = self._file.read(count)
        if len(data) != count:
            raise self.damaged(f"it became shorter while it was read, at {what}")
        self.position += count
        return data

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def count(self, most: int, least_bytes: int, what: str) -> int:
        """A number of things that take at least so many bytes each."""
        found = int(self.number("Q", what))
        if found > most or found * least_bytes > self.size - self.position:
            raise self.damaged(f"{what} is {found}, more than {'a model has' if found > most else 'the file has room for'}")
        return found

    def text(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        length = int.from_bytes(self.take(8, what), "little")
        if length > most:
            raise self.damaged(f"{what} claims {length} bytes")
        with self.decoding(what):
            return self.take(length, what).decode()

    @contextmanager
    def decoding(self, what: str) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8") from error

    def texts(self, count: int, what: str) -> tuple[str, ...]:
        """`count` texts. The loop that reads vocabularies: what `take` checks is checked here without a call for each."""
        read, left, found = self._file.read, self._end - self.position, []
        with self.decoding(what):
            for _ in range(count):
                length = int.from_bytes(read(8), "little")
                left -= 8 + length
                if left < 0:
                    raise self.damaged(f"a text in {what} claims {length} bytes, more than the header has")
                found.append(read(length).decode())
        self.position = self._end - left
        if self._file.tell() != self.position:
            raise self.damaged(f"it became shorter while it was read, at {what}")
        return tuple(found)
