"""Keyed randomness: every draw is made from a key of what it is for, never from a stream that earlier draws consumed.

A resumed run therefore draws the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np


def key32(*parts: int | str) -> int:
    """A 32-bit key for the draw that `parts` name, such as (seed, step, "sample", prompt id)."""
    return int.from_bytes(_digest(parts)[:4], "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A host generator for the draw that `parts` name."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(parts), "little")))


def step_rows(rows: int, per_step: int, step: int, seed: int) -> list[int]:
    """Indices of the rows that step `step` (from 1) uses: every epoch is a new permutation of all rows, in order.

    A pure function of the step, so that no data cursor has to be kept.
    """
    chosen: list[int] = []
    position = (step - 1) * per_step
    while len(chosen) < per_step:
        epoch, offset = divmod(position + len(chosen), rows)
        order = generator(seed, epoch, "data order").permutation(rows)
        chosen.extend(int(i) for i in order[offset : offset + per_step - len(chosen)])
    return chosen


def refill_rows(rows: int, taken: Collection[int], count: int, step: int, number: int, seed: int) -> list[int]:
    """Up to `count` indices of rows that are not in `taken`, for extra rollout `number` of step `step`: a random choice of the
    others, so that the order of the epochs stays what it is without extra rollouts."""
    order = generator(seed, step, number, "refill").permutation(rows)
    return [int(i) for i in order if int(i) not in taken][:count]


def _digest(parts: tuple[int | str, ...]) -> bytes:
    return hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=16).digest()
