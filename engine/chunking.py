"""How many positions the head runs on at once. Arithmetic alone, so that the memory plan and the worker share it."""

from __future__ import annotations

FLOAT32 = 4
# Float32 logits of one chunk, of which about five arrays are alive at once: small beside a model, and yet so large that the
# head's product runs at nearly full speed (a vocabulary of 49k gives 160 positions).
CHUNK_BYTES = 32 * 1024**2
STEP = 32  # positions are rounded to a multiple of this: few shapes occur, and buffers are used again
LEAST = 64  # positions of a chunk however large the vocabulary: fewer would leave the product waiting for the head's weights


def chunk_positions(vocabulary: int) -> int:
    """Positions of a chunk: as many as keep its float32 logits within CHUNK_BYTES, but never fewer than LEAST."""
    return max(LEAST, CHUNK_BYTES // (FLOAT32 * vocabulary) // STEP * STEP)


def whole_positions(vocabulary: int, trained_bytes: int = 0) -> int:
    """Positions that are computed without chunks: one chunk, or where the head has `trained_bytes` of its own, as many as take
    no more than chunks would, whose gradients of the head have to be held beside their sum."""
    size = chunk_positions(vocabulary)
    return 2 * size + trained_bytes // (FLOAT32 * vocabulary) if trained_bytes else size


def padded_positions(positions: int) -> int:
    """`positions` rounded up to a multiple of STEP, one STEP at least."""
    return -(-max(positions, 1) // STEP) * STEP
