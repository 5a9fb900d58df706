"""The micro-batches that a step's rows are packed into where every row is as long as it may be: what of
engine/worker/batching.py the memory plan needs, without the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

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
    if most >= groups * group:
        return ((groups, groups * group),)
    if not shares or group == 1:
        return ((most,) * 2,)
    # Runs of batches that end with a group, all full but the last. A prompt is computed once, and once more for each batch of a
    # run but its first: a run of n batches costs n x (what a batch costs + a prompt) - a prompt.
    each, runs = BATCH_TOKENS + length, _runs(groups, group, most)
    best = [(0, 0)]  # of so many groups: the cost, and the batches of the run that comes first; of equals the shorter
    for left in range(1, groups + 1):
        last = -(-left * group // most)
        found = (last * each - length, last)
        for batches, ended in runs:
            if ended > left:
                break
            found = min(found, (best[left - ended][0] + batches * each - length, batches))
        best.append(found)
    chosen, left = set(), groups
    while left:
        batches = best[left][1]
        ended = min(left, batches * most // group)
        chosen.add((batches, ended))
        left -= ended
    return tuple(sorted(set().union(*(_cut(batches, ended * group, group, most) for batches, ended in chosen))))


def _runs(groups: int, group: int, most: int) -> list[tuple[int, int]]:
    """(batches, groups that they end) of the runs that cannot be cut into shorter ones without loss: in those the last batch has
    less room to spare than in any shorter run."""
    found, least = [], group
    for batches in range(1, group + 1):
        ended, spare = divmod(batches * most, group)
        if ended > groups:
            break
        if ended and spare < least:
            least = spare
            found.append((batches, ended))
        if not spare:
            break
    return found


def _cut(batches: int, rows: int, group: int, most: int) -> set[tuple[int, int]]:
    """(prompts, rows) of the batches of one run."""
    cuts = [min(number * most, rows) for number in range(batches + 1)]
    return {(-(-end // group) - begin // group, end - begin) for begin, end in pairwise(cuts)}


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
