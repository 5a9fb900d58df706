"""safetensors files written while the weights come: headers first, then any rows of any array, at their place.

The safetensors library wants every array of a file in memory at once; this holds the rows that are being written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from engine.cache_folders import write
from engine.model_files import TensorHeader

SHARD_BYTES = 4 << 30


class ShardWriter:
    """model.safetensors, or shards of it with their index, in `folder`. A context manager: at its end all is on the disk."""

    def __init__(self, folder: Path, arrays: Sequence[TensorHeader]) -> None:
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        self._row_bytes = {
            array.name: array.bytes // (array.shape[0] if len(array.shape) > 1 else array.elements) for array in arrays
        }
        shards = _sharded(arrays, SHARD_BYTES)
        names = ["model.safetensors"]
        if len(shards) > 1:
            names = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
            by_array = {array.name: name for name, shard in zip(names, shards, strict=True) for array in shard}
            total = sum(array.bytes for array in arrays)
            write(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": by_array})
        try:
            for name, shard in zip(names, shards, strict=True):
                self._begin(folder / name, shard)
        except BaseException:
            self._close()
            raise

    def _begin(self, path: Path, arrays: Sequence[TensorHeader]) -> None:
        header = encoded(table(arrays))
        file = path.open("xb")
        self._files.append(file)
        file.write(header)
        place = len(header)
        for array in arrays:
            self._places[array.name] = (file, place)
            place += array.bytes
        file.truncate(place)

    def put(self, name: str, first: int, data: bytes | memoryview) -> None:
        """Write rows of an array from row `first` on (of an array of one dimension: elements)."""
        file, place = self._places[name]
        file.seek(place + first * self._row_bytes[name])
        file.write(data)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                for file in self._files:
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            self._close()

    def _close(self) -> None:
        for file in self._files:
            file.close()


def table(arrays: Sequence[TensorHeader]) -> dict[str, Any]:
    """The header of a safetensors file that holds these arrays one after the other."""
    found: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for array in arrays:
        found[array.name] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": [end, end + array.bytes]}
        end += array.bytes
    return found


def encoded(header: dict[str, Any]) -> bytes:
    """A header as the format has it: its length, then JSON, padded so that data starts at a multiple of 8."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sharded(arrays: Sequence[TensorHeader], most: int) -> list[list[TensorHeader]]:
    """In order, each shard as full as it may be; a single array may be larger."""
    shards: list[list[TensorHeader]] = [[]]
    size = 0
    for array in arrays:
        if shards[-1] and size + array.bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(array)
        size += array.bytes
    return shards
