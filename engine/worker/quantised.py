"""Quantised weights on a CPU: many rows at once go through BLAS, on blocks of the weight that are unpacked for a moment.

On a CPU mlx multiplies by packed weights at 1 to 4 GFLOP/s, whatever the number of rows; BLAS reaches some 50. So from a few
rows on, x W^T is computed on W unpacked, a block of its rows at a time, and its gradient g W likewise (of x alone: packed
weights are frozen). A block lives while it is multiplied with: the next one waits for it, and the first for x or g, so that mlx
cannot unpack ahead. Metal and CUDA have kernels of their own; there nothing changes.

What is left out: experts and MLA's heads (QuantizedSwitchLinear, QuantizedMultiLinear), which stay with mlx's own product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import mlx.core as mx
import mlx.nn as nn

BLOCK_NUMBERS = 1 << 20  # of a weight that are unpacked at once: 4 MB, which the processor's cache holds


class RowsLinear(nn.QuantizedLinear):
    """mlx's own, with another product."""

    def __call__(self, x: mx.array) -> mx.array:
        if not _is_worth_unpacking(self, x):
            return cast(mx.array, super().__call__(x))  # type: ignore[no-untyped-call]
        product = _product(self, x)
        return product + self["bias"] if "bias" in self else product


class RowsEmbedding(nn.QuantizedEmbedding):
    """mlx's own, with another product where it is the head."""

    def as_linear(self, x: mx.array) -> mx.array:
        if not _is_worth_unpacking(self, x):
            return cast(mx.array, super().as_linear(x))  # type: ignore[no-untyped-call]
        return _product(self, x)


_FAST: dict[type, type] = {nn.QuantizedLinear: RowsLinear, nn.QuantizedEmbedding: RowsEmbedding}


def use_blas(model: nn.Module) -> None:
    """Let the quantised modules of a model that runs on a CPU multiply by BLAS (in place; they keep their arrays, and are still
    instances of mlx's classes). On another device nothing changes."""
    if mx.default_device().type != mx.DeviceType.cpu:
        return
    for _, module in model.named_modules():
        if type(module) in _FAST:
            module.__class__ = _FAST[type(module)]


def mlx_type(module: nn.Module) -> type:
    """The module's type as it was before `use_blas`."""
    return next((own for own, fast in _FAST.items() if type(module) is fast), type(module))


def least_rows(bits: int, mode: str) -> int:
    """Rows from which on unpacking is faster than mlx's own product. Measured: it costs as much as 2 rows where bits divide a
    byte, as 10 where they do not, and as 20 in the floating formats of 4 bits."""
    if bits == 8 or (mode == "affine" and 8 % bits == 0):
        return 3
    return 12 if mode == "affine" else 20


def _is_worth_unpacking(module: nn.Module, x: mx.array) -> bool:
    rows = x.size // x.shape[-1]
    in_float32 = x.dtype == mx.float32 and module["scales"].dtype in (mx.float32, mx.uint8)
    return in_float32 and rows >= least_rows(module.bits, module.mode)


def _product(module: nn.Module, x: mx.array) -> mx.array:
    """x W^T: [..., inputs] -> [..., outputs]."""

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        parts: list[mx.array] = []
        for block in _blocks(module):
            parts.append(x @ _unpacked(module, block, parts[-1] if parts else x).T)
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)

    @product.vjp
    def backward(x: mx.array, slope: mx.array, _: mx.array) -> mx.array:
        total = slope
        for number, block in enumerate(_blocks(module)):
            part = slope[..., block] @ _unpacked(module, block, total)
            total = total + part if number else part
        return total

    return cast(mx.array, product(x))


def _blocks(module: nn.Module) -> Iterator[slice]:
    """Rows of the weight, some BLOCK_NUMBERS of its numbers at a time."""
    rows, words = module["weight"].shape
    step = max(1, BLOCK_NUMBERS * module.bits // (32 * words))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _unpacked(module: nn.Module, block: slice, after: mx.array) -> mx.array:
    """Rows of the weight in float32, not before `after` is there: to the bit what mx.dequantize gives, which takes half as long
    again where bits divide a byte."""
    (weight,) = mx.depends([module["weight"][block]], [after])
    biases = module["biases"][block] if module.get("biases") is not None else None  # the floating formats have none
    scales, bits, size = module["scales"][block], module.bits, module.group_size
    if biases is None or 8 % bits:
        return mx.dequantize(weight, scales, biases, size, bits, module.mode, dtype=mx.float32)
    packed = weight.view(mx.uint8)  # the lowest bits are the first number
    if bits < 8:
        packed = mx.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1)
    groups = packed.astype(mx.float32).reshape(len(weight), -1, size)
    numbers: mx.array = groups * scales[..., None] + biases[..., None]
    return numbers.reshape(len(weight), -1)
