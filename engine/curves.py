"""Series of points brought to a grid of dots: the part of a chart that grows with its data.

The points of a column of dots lie side by side, so what Python does is per column; the points themselves are passed over by
sums and bounds of slices, some milliseconds for 100,000 of them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

LARGEST = 1e300  # beyond it a value counts as infinite: the room between two bounds must be finite


@dataclass(frozen=True, slots=True)
class Curve:
    """A series with something to draw. Where `gaps`, values may be NaN; all others are finite, as is every x."""

    x: Sequence[float]
    y: Sequence[float]
    gaps: bool
    left: float  # bounds of the points that are drawn
    right: float
    low: float
    high: float


def curve(x: Sequence[float], y: Sequence[float], label: str) -> Curve | None:
    """The series, with every point that cannot be drawn as NaN; None where that is all of them."""
    if len(x) != len(y):
        raise ValueError(f"series {label!r}: {len(x)} x but {len(y)} y")
    if not y:
        return None
    if math.isfinite(sum(x)) and math.isfinite(sum(y)):  # a NaN or infinite value would show in the sum
        low, high = min(y), max(y)
        if low >= -LARGEST and high <= LARGEST:
            return Curve(x, y, False, x[0], x[-1], low, high)
    usable = [math.isfinite(a) and abs(b) <= LARGEST for a, b in zip(x, y, strict=True)]
    kept = [(a, b) for a, b, good in zip(x, y, usable, strict=True) if good]
    if not kept:
        return None
    places, place = [], kept[0][0]
    for a in x:
        place = a if math.isfinite(a) else place
        places.append(place)
    values = [b if good else math.nan for b, good in zip(y, usable, strict=True)]
    heights = [b for _, b in kept]
    return Curve(places, values, True, kept[0][0], kept[-1][0], min(heights), max(heights))


def grid_row(y: float, low: float, high: float, rows: int, down: int = 1) -> int:
    """The row of dots of `y`, 0 at the top; values beyond a bound lie on the edge."""
    share = min(1.0, max(0.0, (high - y) / (high - low)))
    return round(share * (rows * down - 1))


def _columns(series: Curve, x_bounds: tuple[float, float], count: int) -> Iterator[tuple[int, float, float, float, float, bool]]:
    """(column, first, lowest, highest and last value, whether a line leads to it) of every column with a point.

    The points of a column lie side by side, so that slices find its values; a gap ends the line.
    """
    left, right = x_bounds
    scale = (count - 1) / ((right - left) or 1.0)

    def place(x: float) -> int:
        return max(0, min(count - 1, round((x - left) * scale)))

    start, joined = 0, False
    while start < len(series.x):
        column = place(series.x[start])
        end = bisect_right(series.x, column, start + 1, key=place)
        values = series.y[start:end]
        start = end
        if series.gaps and not math.isfinite(sum(values)):
            leads, ends = math.isfinite(values[0]), math.isfinite(values[-1])
            values = [value for value in values if math.isfinite(value)]
            if values:
                yield column, values[0], min(values), max(values), values[-1], joined and leads
            joined = ends
            continue
        yield column, values[0], min(values), max(values), values[-1], joined
        joined = True


def dots(
    series: Curve, x_bounds: tuple[float, float], y_bounds: tuple[float, float], columns: int, rows: int, *, joins: bool
) -> Iterator[tuple[int, int]]:
    """(column, row) of every dot of one series: each column's whole span and, where it `joins`, lines from column to column."""
    here, row = -1, 0
    for column, first, lowest, highest, last, joined in _columns(series, x_bounds, columns):
        if joins and joined:
            yield from _line(here, row, column, grid_row(first, *y_bounds, rows))
        top, bottom = grid_row(highest, *y_bounds, rows), grid_row(lowest, *y_bounds, rows)
        yield from ((column, each) for each in range(top, bottom + 1))
        here, row = column, grid_row(last, *y_bounds, rows)


def _line(column: int, row: int, to_column: int, to_row: int) -> Iterable[tuple[int, int]]:
    """The dots of a straight line, without steps wider than one dot."""
    length = max(abs(to_column - column), abs(to_row - row))
    for index in range(length + 1):
        yield column + round(index / length * (to_column - column)), row + round(index / length * (to_row - row))
