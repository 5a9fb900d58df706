"""Weights from GGUF's layout into mlx's, a few rows at a time. numpy only.

mlx's affine layout holds w = scale * q + bias for groups of 32, with q packed into 32-bit words, the first element lowest.
GGUF's blocks are of 32, too, so nothing is computed anew (ggml-common.h and ggml-quants.c have the formulas):

    Q4_0   w = d * (q - 8)     scale d, bias -8 d       a byte holds elements j (low) and j + 16 (high)
    Q4_1   w = d * q + m       scale d, bias m          likewise
    Q8_0   w = d * q           scale d, bias -128 d     q is signed: 128 is added

d and m are float16 and stay so; -8 d and -128 d are exact, a power of two times d.

Q6_K has no such layout: blocks of 256 numbers w = d * s * (q - 32), with a scale s of 8 bits for every 16 of them. Its numbers
are computed, exactly: float32 has room for the 11 + 7 + 5 bits of the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from engine.gguf.header import GgufHeader
from engine.gguf.plan import GROUP, Part
from engine.gguf.tensor_types import UNPACKED

Array = npt.NDArray[Any]
_ITEMS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}  # bfloat16 by its bits: numpy has none
_Q6_K_BYTES = 210
_CHUNK_BYTES = 4 << 20  # of the file, that are worked on at once


def converted(header: GgufHeader, file: BinaryIO, part: Part) -> Iterator[tuple[str, int, Array]]:
    """(name, first row, rows) of the arrays that `part` becomes, in the order of `Part.written` for each run of rows.

    Raises InputError where the file is shorter than it was, or holds what is no number.
    """
    rows = part.source.shape[0] if len(part.source.shape) > 1 else 1
    row_bytes = part.source.bytes // rows
    if part.heads and len(part.source.shape) == 1:  # a bias: its elements are the rows
        rows, row_bytes = part.source.shape[0], part.source.bytes // part.source.shape[0]
    step = max(1, _CHUNK_BYTES // row_bytes)
    if part.heads:  # whole heads, whose rows change places
        head = rows // part.heads
        step = max(1, step // head) * head
    file.seek(part.source.offset)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = np.frombuffer(file.read(count * row_bytes), np.uint8)
        if raw.size != count * row_bytes:
            raise header.refuse("became shorter while it was read", "fetch the file again")
        table = raw.reshape(count, row_bytes)
        if part.heads:
            table = in_halves(table, rows // part.heads)
        for written, array in zip(part.written(), _arrays(part, table), strict=True):
            if array.dtype != np.uint32 and not _is_finite(array, written.dtype):
                what = f"{part.source.name} holds numbers that are none, or too large for {written.dtype}"
                raise header.refuse(what, "fetch the file again")
            yield written.name, first, array


def in_halves(rows: Array, head: int) -> Array:
    """Rows of whole heads, put back from GGUF's order for llama: there row 2 i + j of a head is row j * head / 2 + i."""
    heads = rows.shape[0] // head
    return rows.reshape(heads, head // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _arrays(part: Part, rows: Array) -> tuple[Array, ...]:
    if not part.bits:
        return (_floats(rows, part.source.type, part.dtype),)
    blocks = rows.reshape(rows.shape[0], -1, part.source.bytes * GROUP // _elements(part))
    return _QUANTISED[part.source.type](np.ascontiguousarray(blocks))


def _elements(part: Part) -> int:
    rows, columns = part.source.shape
    return rows * columns


def _q4_0(blocks: Array) -> tuple[Array, ...]:
    scale = _halves(blocks, 0)
    return _packed4(blocks[..., 2:]), scale, _times(scale, -8)


def _q4_1(blocks: Array) -> tuple[Array, ...]:
    return _packed4(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2)


def _q8_0(blocks: Array) -> tuple[Array, ...]:
    scale = _halves(blocks, 0)
    unsigned = blocks[..., 2:] ^ 0x80  # int8 + 128, as bits
    return unsigned.reshape(blocks.shape[0], -1).view("<u4"), scale, _times(scale, -128)


_QUANTISED = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}


def _packed4(halves: Array) -> Array:
    """Bytes of elements (j, j + 16), [rows, blocks, 16], as words of eight elements in order, [rows, blocks * 4]."""
    low, high = halves & 0x0F, halves >> 4  # elements 0 ... 15 and 16 ... 31
    pairs = [half[..., 0::2] | (half[..., 1::2] << 4) for half in (low, high)]
    return np.concatenate(pairs, axis=-1).reshape(halves.shape[0], -1).view("<u4")


def _halves(blocks: Array, start: int) -> Array:
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0]


def _times(scale: Array, factor: int) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused
        product: Array = scale * np.float16(factor)
    return product


def _floats(rows: Array, kind: str, wanted: str) -> Array:
    """Numbers of one type as those of another, rounded to the nearest."""
    numbers: Array = _q6_k(rows) if kind == UNPACKED else rows.view(_ITEMS[kind])
    if kind == wanted:
        return numbers
    numbers = (numbers.astype("<u4") << 16).view("<f4") if kind == "BF16" else numbers.astype("<f4")
    if wanted == "BF16":
        bits = numbers.view("<u4")
        numbers = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    with np.errstate(over="ignore"):
        rounded: Array = numbers.astype(_ITEMS[wanted])
    return rounded


def _q6_k(rows: Array) -> Array:
    """Numbers [rows, columns] of blocks [rows, bytes]. Of 256 numbers a block holds the low 4 bits in 128 bytes, the high 2 in
    64, 16 scales, and d; each half of it in turn, and of a half's 128 numbers, j + 32 i for i = 0 ... 3:

        low     byte j (i = 0), j + 32 (i = 1): its low bits; then their high bits (i = 2, 3)
        high    byte j: bits 2 i and 2 i + 1
    """
    blocks = np.ascontiguousarray(rows).reshape(-1, _Q6_K_BYTES)
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15  # [blocks, half, i // 2, 64]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3  # [blocks, half, i, 32]
    numbers = (low.reshape(-1, 2, 4, 32) | high << 4).astype(np.int8) - np.int8(32)
    scales = _halves(blocks, 208).astype("<f4")[:, None] * blocks[:, 192:208].view(np.int8)
    with np.errstate(invalid="ignore"):  # what is no number is refused
        found: Array = numbers.reshape(-1, 16, 16) * scales[..., None]
    return found.reshape(rows.shape[0], -1)


def _is_finite(array: Array, dtype: str) -> bool:
    if dtype == "BF16":
        return not ((array & 0x7F80) == 0x7F80).any()
    return bool(np.isfinite(array).all())
