"""Computing a recorded gradient piece by piece, in the order in which the pieces were recorded.

mlx starts operations well ahead of those that it has finished, and each holds its arrays from its start: of the chunks of logits
many would be alive at once. While a gradient is recorded nothing can be computed; what is recorded here is computed afterwards,
one piece after the other, before the gradient as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx

T = TypeVar("T")
_recording: list[list[Sequence[mx.array]]] = []  # those under way, the innermost last


def piece(arrays: Sequence[mx.array]) -> None:
    """These arrays are one piece of what is being recorded, if anything is."""
    if _recording:
        _recording[-1].append(arrays)


def computed(record: Callable[[], T]) -> T:
    """What `record` gives, not computed itself; of its pieces each is computed, the first first."""
    _recording.append([])
    try:
        found = record()
    finally:
        pieces = _recording.pop()
    for arrays in pieces:
        mx.eval(arrays)
    return found
