"""The micro-batches that a step's rows are packed into where every row is as long as it may be: what of
engine/worker/batching.py the memory plan needs, without the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

WIDTH = 8  # widths of a batch are rounded up to a multiple of this
BATCH_TOKENS = 64  # what one batch more costs beside its tokens


@dataclass(frozen=True, slots=True)
class Shape:
    """A micro-batch. Prompts are computed once each where `shares`, else with every row."""

    rows: int
    prompts: int
    length: int  # tokens of a prompt
    new: int  # tokens of a completion, rounded up
    shares: bool

    @property
    def tokens(self) -> int:
        """Positions that the layers compute."""
        if self.shares:
            return self.rows * self.new + self.prompts * self.length
        return self.rows * self.width

    @property
    def width(self) -> int:
        """Tokens that the last one of a row looks back at."""
        return self.length + self.new if self.shares else round_up(self.length + self.new, WIDTH)

    @property
    def pairs(self) -> int:
        """Queries times keys of the completions: scores of one head."""
        return self.rows * self.new * self.width if self.shares else self.rows * self.width**2

    @property
    def positions(self) -> int:
        """That the head runs on."""
        return self.rows * self.new


@lru_cache(maxsize=4096)
def packed(groups: int, group: int, most: int, length: int, shares: bool) -> tuple[tuple[int, int], ...]:
    """(prompts, rows) of the micro-batches of at most `most` rows, each kind once; the last ones may have fewer.

    Whole groups stay together unless a cut inside one (its prompt is computed once more) saves batches that cost as much.
    """
    rows = groups * group
    if most >= rows:
        return ((groups, rows),)
    if not shares or group == 1:
        return ((min(most, rows),) * 2,)
    sizes = {left: _sizes(left, most, group) for left in _reached(rows, most, group)}
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # rows that are left -> cost, rows of the batch that comes next
    for left in sorted(sizes):
        best[left] = min(
            (best[left - taken][0] + BATCH_TOKENS + length * _prompts(left, taken, group), taken) for taken in sizes[left]
        )
    kinds, left = set(), rows
    while left:
        taken = best[left][1]
        kinds.add((_prompts(left, taken, group), taken))
        left -= taken
    return tuple(sorted(kinds))


def _sizes(left: int, most: int, group: int) -> set[int]:
    """Of the next batch: as many rows as there may be, or as many as end with a group."""
    full = min(most, left)
    aligned = full - (full - left) % group
    return {full, aligned} if aligned > 0 else {full}


def _reached(rows: int, most: int, group: int) -> set[int]:
    """How many rows can be left before a batch."""
    found: set[int] = set()
    waiting = {rows}
    while waiting:
        left = waiting.pop()
        found.add(left)
        waiting |= {left - taken for taken in _sizes(left, most, group)} - found - {0}
    return found


def _prompts(left: int, taken: int, group: int) -> int:
    """Groups that the rows from `left - taken` to `left` belong to."""
    return -(-left // group) - (left - taken) // group


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def most(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `high` that fits, where larger ones never fit if a smaller one does not; 1 where none does."""
    if fits(high):
        return high
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
