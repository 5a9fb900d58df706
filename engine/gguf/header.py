"""What a GGUF file says of itself: metadata and the table of tensors. No weights are read.

A file may claim anything: each length, count, size and offset is checked against what is left of the file, and against limits
far above those of real models, before room is made for it. Arrays inside arrays are refused: no model has them.
"""

from __future__ import annotations

import array
import math
import re
import stat
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.gguf.reader import Reader
from engine.gguf.tensor_types import TYPES

MAX_ITEMS = 4_000_000  # of all arrays together
MAX_KEYS = 10_000
MAX_KEY_BYTES = 65_535  # the format's own
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4  # ggml's own
MAX_DIMENSION = 1 << 40
MAX_ALIGNMENT = 1 << 20
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,62}")
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Value = Any  # int, float, bool, str, tuple of str, or an array.array of numbers


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `type` as ggml spells it, `shape` as numpy has it (rows first), `offset` from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A file's metadata and tensors; `header_bytes` is where the table of tensors ends."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]
    header_bytes: int
    file_bytes: int
    mtime_ns: int

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @cached_property
    def by_name(self) -> Mapping[str, GgufTensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def refuse(self, what: str, remedy: str) -> InputError:
        """The error to raise about this file."""
        return InputError(what, where=str(self.path), remedy=remedy)

    def text(self, key: str, default: str | None = None) -> str:
        """The text of `key`. Raises InputError where it is none, or missing without a default; so do the next ones."""
        found = self.metadata.get(key, default)
        return found if isinstance(found, str) else self._no(key, found, "text")

    def integer(self, key: str, default: int | None = None) -> int:
        found = self.metadata.get(key, default)
        is_integer = isinstance(found, int) and not isinstance(found, bool) and found >= 0
        return int(found) if is_integer else self._no(key, found, "a number from 0 up")

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. One of 32 bits is given by its shortest decimal: 1e-05, not 9.999999747378752e-06."""
        found = self.metadata.get(key, default)
        is_number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found) and found > 0
        return _shortest(found) if is_number else self._no(key, found, "a number above 0")

    def flag(self, key: str, default: bool) -> bool:
        found = self.metadata.get(key, default)
        return found if isinstance(found, bool) else self._no(key, found, "true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        found = self.metadata.get(key)
        return found if isinstance(found, tuple) else self._no(key, found, "a list of texts")

    def numbers(self, key: str) -> Sequence[float] | None:
        """The numbers of an array; None where there is no such key."""
        found = self.metadata.get(key)
        return found if found is None or isinstance(found, array.array) else self._no(key, found, "a list of numbers")

    def _no(self, key: str, found: Value, wanted: str) -> Any:
        what = f"has no {key}" if found is None else f"{key} is not {wanted}"
        raise self.refuse(what, "convert the model again with a current converter")


def read_header(path: Path) -> GgufHeader:
    """Metadata and tensors of the GGUF file at `path` (version 2 or 3, little-endian). Raises InputError for anything else,
    for damage, and for claims that no model makes."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InputError("is not a file", where=str(path), remedy="give a .gguf file")
        with path.open("rb", buffering=1 << 18) as file:
            reader = Reader(file, info.st_size, path)
            version, tensors, keys = _read_start(reader)
            metadata = _read_metadata(reader, keys)
            table = list(_read_table(reader, tensors))
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), remedy="give the path of a .gguf file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), remedy="check the file") from error
    placed = _placed(reader, table, _alignment(reader, metadata))
    return GgufHeader(path, version, metadata, placed, reader.position, info.st_size, info.st_mtime_ns)


def _read_start(reader: Reader) -> tuple[int, int, int]:
    """(version, number of tensors, number of keys)."""
    magic = reader.take(min(4, reader.size), "its start")
    if magic != b"GGUF":
        raise InputError("is no GGUF file: it does not start with GGUF", where=str(reader.path), remedy="give a .gguf file")
    version = int(reader.number("I", "the version"))
    if version & 0xFFFF == 0 and version:
        remedy = "convert it with gguf-convert-endian"
        raise InputError("is a big-endian GGUF file; little-endian ones are read", where=str(reader.path), remedy=remedy)
    if version not in (2, 3):
        remedy = "convert the model again with a current converter"
        raise InputError(f"is GGUF version {version}; 2 and 3 are read", where=str(reader.path), remedy=remedy)
    tensors = reader.count(MAX_TENSORS, 24, "the number of tensors")
    return version, tensors, reader.count(MAX_KEYS, 13, "the number of keys")


def _read_metadata(reader: Reader, count: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for number in range(count):
        key = reader.text(f"key {number + 1} of {count}", MAX_KEY_BYTES)
        if not key or key in found:
            raise reader.damaged(f"the key {key[:80]!r} is {'given twice' if key else 'empty'}")
        found[key] = _read_value(reader, int(reader.number("I", f"the type of {key[:80]!r}")), repr(key[:80]))
    return found


def _read_value(reader: Reader, kind: int, what: str) -> Value:
    if kind == _STRING:
        return reader.text(what)
    if kind == _ARRAY:
        return _read_array(reader, what)
    if kind not in _SCALARS:
        raise reader.damaged(f"{what} has the unknown type {kind}")
    if _SCALARS[kind] == "?":
        return _flag(reader, reader.number("B", what), what)
    return reader.number(_SCALARS[kind], what)


def _read_array(reader: Reader, what: str) -> Value:
    kind = int(reader.number("I", f"the type of {what}"))
    if kind == _ARRAY:
        raise reader.damaged(f"{what} is an array of arrays")
    if kind != _STRING and kind not in _SCALARS:
        raise reader.damaged(f"{what} is an array of the unknown type {kind}")
    code = "B" if _SCALARS.get(kind) == "?" else _SCALARS.get(kind, "")
    size = 8 if kind == _STRING else struct.calcsize(f"<{code}")
    count = reader.count(MAX_ITEMS - reader.items, size, f"the length of {what}")
    reader.items += count
    if kind == _STRING:
        return reader.texts(count, what)
    numbers = array.array(code)
    numbers.frombytes(reader.take(count * size, what))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _flag(reader: Reader, value: int, what: str) -> bool:
    if value > 1:
        raise reader.damaged(f"{what} is neither true nor false")
    return bool(value)


def _alignment(reader: Reader, metadata: Mapping[str, Value]) -> int:
    found = metadata.get("general.alignment", 32)
    is_power = isinstance(found, int) and 0 < found <= MAX_ALIGNMENT and found & (found - 1) == 0
    if isinstance(found, bool) or not is_power:
        raise reader.damaged(f"its alignment {str(found)[:40]} is no power of two")
    return int(found)


def _read_table(reader: Reader, count: int) -> Iterator[GgufTensor]:
    """The tensors with their offsets as they stand: from the start of the data."""
    seen = set()
    for number in range(count):
        what = f"the name of tensor {number + 1} of {count}"
        name = reader.text(what, 1024)
        if not _TENSOR_NAME.fullmatch(name):
            raise reader.damaged(f"{name[:80]!r} is no name of a tensor")
        if name in seen:
            raise reader.damaged(f"two tensors are called {name}")
        seen.add(name)
        yield _read_tensor(reader, name)


def _read_tensor(reader: Reader, name: str) -> GgufTensor:
    dimensions = int(reader.number("I", f"the dimensions of {name}"))
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise reader.damaged(f"{name} has {dimensions} dimensions")
    sizes = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions, f"the shape of {name}"))
    if not all(0 < size <= MAX_DIMENSION for size in sizes):
        raise reader.damaged(f"{name} has the shape {list(sizes)}")
    kind, offset = int(reader.number("I", f"the type of {name}")), int(reader.number("Q", f"the offset of {name}"))
    if kind not in TYPES:
        raise reader.damaged(f"{name} has the unknown tensor type {kind}")
    type_name, block, block_bytes = TYPES[kind]
    if sizes[0] % block:
        raise reader.damaged(f"{name} has rows of {sizes[0]} elements, which is no multiple of {type_name}'s {block}")
    return GgufTensor(name, type_name, sizes[::-1], offset, math.prod(sizes) // block * block_bytes)


def _placed(reader: Reader, table: list[GgufTensor], alignment: int) -> tuple[GgufTensor, ...]:
    """The tensors with offsets from the start of the file; each inside it, none over another."""
    start = -(-reader.position // alignment) * alignment
    placed = []
    for tensor in table:
        if tensor.offset % alignment:
            raise reader.damaged(f"{tensor.name} starts at {tensor.offset}, which is no multiple of {alignment}")
        if tensor.offset + tensor.bytes > reader.size - start:
            raise reader.damaged(f"{tensor.name} lies outside the file")
        placed.append(GgufTensor(tensor.name, tensor.type, tensor.shape, start + tensor.offset, tensor.bytes))
    end, before = start, ""
    for tensor in sorted(placed, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise reader.damaged(f"{tensor.name} and {before} overlap")
        end, before = tensor.offset + tensor.bytes, tensor.name
    return tuple(placed)


def _shortest(value: float) -> float:
    """The number with the fewest digits that is `value` in 32 bits, where `value` is one of those."""
    try:
        single = struct.pack("<f", value)
    except OverflowError:
        return value
    if struct.unpack("<f", single)[0] != value or value == int(value):
        return value
    tried = (float(f"{value:.{digits}g}") for digits in range(1, 10))  # 9 digits tell any two of 32 bits apart
    return next(short for short in tried if struct.pack("<f", short) == single)
