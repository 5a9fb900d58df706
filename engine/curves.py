"""Series of points brought to a grid of dots: the part of a chart that grows with its data.

The points of a column of dots lie side by side, so what Python does is per column; the points themselves are passed over by
sums and bounds of slices, some milliseconds for 100,000 of them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_PASSED = 8  # points to a column, up to which their columns are worked out one by one
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


def columns(
    series: Curve, x_bounds: tuple[float, float], y_bounds: tuple[float, float], count: int, rows: int, *, joins: bool
) -> list[int]:
    """The dots of one series: for each of `count` columns a number whose bit n is the dot of row n. Each column has its whole
    span and, where it `joins`, the lines from column to column; a gap ends the line."""
    found = [0] * count
    low, high = y_bounds
    height, last_row = high - low, rows - 1

    def row_of(y: float) -> int:  # as grid_row, with what is the same for all
        share = (high - y) / height
        return round(share * last_row) if 0.0 <= share <= 1.0 else 0 if share < 0 else last_row

    here, row, joined = 0, 0, False
    for column, start, end in _slices(series.x, x_bounds, count):
        if end == start + 1:
            value = series.y[start]
            if value != value:
                joined = False
                continue
            leads = ends = True
            first = top = bottom = last = row_of(value)
        else:
            values = series.y[start:end]
            leads = ends = True
            if series.gaps and not math.isfinite(sum(values)):
                leads, ends = math.isfinite(values[0]), math.isfinite(values[-1])
                values = [value for value in values if math.isfinite(value)]
                if not values:
                    joined = False
                    continue
            first, top, bottom, last = row_of(values[0]), row_of(max(values)), row_of(min(values)), row_of(values[-1])
        if joins and joined and leads:
            _line(found, here, row, column, first)
        found[column] |= _span(top, bottom)
        here, row, joined = column, last, ends
    return found


def _slices(x: Sequence[float], x_bounds: tuple[float, float], count: int) -> Iterator[tuple[int, int, int]]:
    """(column, first point, point behind the last) of every column with a point; the points of a column lie side by side."""
    left, right = x_bounds
    scale, most = (count - 1) / ((right - left) or 1.0), count - 1

    def place(x: float) -> int:
        return max(0, min(most, round((x - left) * scale)))

    start, size = 0, len(x)
    # many points to a column: a search looks at fewer of them than a pass over all
    places = [round((value - left) * scale) for value in x] if 0 < size <= _PASSED * count else None
    if places is not None and (min(places) < 0 or max(places) > most):
        places = [place(value) for value in x]
    while start < size:
        if places is not None:
            column = places[start]
            end = bisect_right(places, column, start + 1)
        else:
            column = place(x[start])
            end = bisect_right(x, column, start + 1, key=place)
        yield column, start, end
        start = end


def _span(top: int, bottom: int) -> int:
    """The dots of rows `top` to `bottom`."""
    return ((2 << (bottom - top)) - 1) << top


def _line(found: list[int], column: int, row: int, to_column: int, to_row: int) -> None:
    """Add the dots of a straight line, without steps wider than one dot."""
    across, down = to_column - column, to_row - row
    length = max(across, abs(down))
    if across == 1:  # neighbours, as in nearly every chart: the nearer half of the rows in either column
        half = row + (length // 2 if down > 0 else -(length // 2))
        found[column] |= _span(min(row, half), max(row, half))
        if down:
            half += 1 if down > 0 else -1
        found[to_column] |= _span(min(half, to_row), max(half, to_row))
        return
    for index in range(length + 1):
        share = index / length
        found[column + round(share * across)] |= 1 << (row + round(share * down))
