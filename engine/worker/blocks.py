"""A vocabulary in blocks, so that sums over it stay exact to float32's last bits.

mlx adds a row up in one go on a CPU: over 150,000 entries the sum, and with it every log-probability, is off by 3e-4. In
blocks, each summed by itself, it is off by 1e-6.
"""

from __future__ import annotations

import mlx.core as mx

_MOST, _LEAST = 512, 64  # entries of a block


def in_blocks(weights: mx.array) -> mx.array:
    """[n, V] -> [n, blocks, block], with zeros behind the vocabulary where no block size divides it."""
    rows, size = weights.shape
    block = block_size(size)
    if size % block:
        weights = mx.pad(weights, [(0, 0), (0, block - size % block)])
    return weights.reshape(rows, -1, block)


def total(weights: mx.array) -> mx.array:
    """The sum of each row: [n, V] -> [n, 1]."""
    return in_blocks(weights).sum(axis=-1).sum(axis=-1, keepdims=True)


def block_size(vocabulary: int) -> int:
    """Entries of a block: the largest divisor of the vocabulary within bounds; the upper bound where there is none."""
    if vocabulary <= _MOST:
        return vocabulary
    return next((size for size in range(_MOST, _LEAST - 1, -1) if vocabulary % size == 0), _MOST)
