"""Text charts: numbers to lines of characters, nothing else. No colour, no cursor, no terminal is touched.

Every point is drawn: a column of dots spans the lowest to the highest value that falls into it, so a spike of one step
among thousands stays visible. The first series is a line of dots; further ones are unjoined marks (`o`, `x`, ...), so
that series can be told apart without colour and none hides another. What was left out: log axes and smoothing, which are
the caller's to apply to the numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rich.cells import cell_len, set_cell_size

from engine.curves import columns as dot_columns
from engine.curves import curve, grid_row

Glyphs = Literal["braille", "block", "ascii"]
Series = tuple[Sequence[float], Sequence[float], str]
Run = tuple[str, int | None]  # characters of one line, and the number of the series that they show (None: none)

MARKS = "ox+#%@"  # of the second and further series
_RUN = re.compile(" +|[^ ]+")


@dataclass(frozen=True)
class _GlyphSet:
    """How a cell is divided into dots, what a set of dots looks like, and the lines of the axes."""

    across: int  # dots of a cell
    down: int
    bit: tuple[tuple[int, ...], ...]  # [down][across], the bit of each dot
    cells: str  # the character of each sum of bits
    tick: str
    left: str
    corner: str
    bottom: str
    bottom_tick: str
    levels: str  # of a sparkline, low to high

    @cached_property
    def drawn(self) -> str:
        """The character of each set of dots of a cell: the dots of its first column from the top are the lowest bits."""
        places = [bit for column in range(self.across) for bit in (row[column] for row in self.bit)]
        sums = (sum(bit for place, bit in enumerate(places) if dots >> place & 1) for dots in range(1 << len(places)))
        return "".join(self.cells[each] for each in sums)


_SETS: dict[Glyphs, _GlyphSet] = {
    # Unicode numbers a braille cell's dots 1 2 3 / 4 5 6 down its columns and 7 8 below them.
    "braille": _GlyphSet(
        2,
        4,
        ((1, 8), (2, 16), (4, 32), (64, 128)),
        " " + "".join(map(chr, range(0x2801, 0x2900))),
        "┤",
        "│",
        "└",
        "─",
        "┬",
        "⡀⡄⡆⡇",
    ),
    "block": _GlyphSet(2, 2, ((1, 2), (4, 8)), " ▘▝▀▖▌▞▛▗▚▐▜▄▙▟█", "┤", "│", "└", "─", "┬", "▁▂▃▄▅▆▇█"),
    "ascii": _GlyphSet(1, 2, ((1,), (2,)), " '.:", "+", "|", "+", "-", "+", "_.-=+*#"),
}


def plot(
    series: Sequence[Series],
    width: int,
    height: int,
    *,
    glyphs: Glyphs = "braille",
    y_min: float | None = None,
    y_max: float | None = None,
) -> list[str]:
    """A chart of (x, y, label) series: exactly `height` lines of at most `width` cells.

    x ascends within a series. NaN and infinite values are gaps and have no say in the bounds. `y_min` and `y_max` fix a
    bound; values beyond it are drawn on the edge. Where there is no room, the legend goes first, then the x axis, then
    the y axis. Raises ValueError where x and y of a series differ in length.
    """
    lines = draw(series, width, height, glyphs=glyphs, y_min=y_min, y_max=y_max)
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def draw(
    series: Sequence[Series],
    width: int,
    height: int,
    *,
    glyphs: Glyphs = "braille",
    y_min: float | None = None,
    y_max: float | None = None,
    empty: str = "no data",
) -> list[list[Run]]:
    """The lines of `plot` in pieces that name their series, for who paints them in colours; `empty` stands where there is
    nothing to draw."""
    if width < 1 or height < 1:
        return [[] for _ in range(max(height, 0))]
    style = _SETS[glyphs]
    curves = [curve(x, y, label) for x, y, label in series]
    shown = [each for each in curves if each is not None]
    if not shown:
        blank: list[list[Run]] = [[] for _ in range(height)]
        blank[height // 2] = [(empty[:width].center(width).rstrip(), None)]
        return blank
    has_legend = height >= 6 and any(label for _, _, label in series)
    has_x_axis = height >= 4
    rows = height - has_legend - 2 * has_x_axis
    lowest, highest = min(each.low for each in shown), max(each.high for each in shown)
    low, high, step = _bounds(lowest, highest, max(2, rows // 3), y_min, y_max)
    names = {grid_row(tick, low, high, rows, style.down) // style.down: _number(tick, step) for tick in _ticks(low, high, step)}
    gutter = max(map(len, names.values()), default=0) + 1
    if width < gutter + 8:
        gutter, names = 0, {}
    columns = width - gutter
    left, right = min(each.left for each in shown), max(each.right for each in shown)
    dots = (columns * style.across, rows * style.down)
    cells = [[" "] * columns for _ in range(rows)]
    marks: list[dict[int, Run]] = [{} for _ in range(rows)]
    for index, each in enumerate(curves):
        if each is None:
            continue
        if index == 0:
            _fill(cells, dot_columns(each, (left, right), (low, high), *dots, joins=True), style)
            continue
        mark = MARKS[(index - 1) % len(MARKS)], index
        for column, found in enumerate(dot_columns(each, (left, right), (low, high), columns, rows, joins=False)):
            for row in _rows_of(found):
                marks[row][column] = mark
    lines: list[list[Run]] = [_legend(series, style, width)] if has_legend else []
    for row in range(rows):
        axis = (names.get(row, "").rjust(gutter - 1) + (style.tick if row in names else style.left)) if gutter else ""
        lines.append(_gather([(axis, None), *_pieces("".join(cells[row]), marks[row])]))
    if has_x_axis:
        lines += [[(line, None)] for line in _x_axis(left, right, gutter, columns, style)]
    return lines


def sparkline(values: Sequence[float], width: int, glyphs: Glyphs = "block") -> str:
    """One line of at most `width` characters, low to high. NaN and infinite values are blanks.

    Where several values share a character it shows the one that is furthest from the mean of all.
    """
    levels = _SETS[glyphs].levels
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return " " * min(len(values), max(width, 0))
    mean, low, high = math.fsum(finite) / len(finite), min(finite), max(finite)
    count = min(width, len(values))
    text = ""
    for column in range(count):
        bucket = values[column * len(values) // count : (column + 1) * len(values) // count]
        shown = [value for value in bucket if math.isfinite(value)]
        if not shown:
            text += " "
            continue
        value = max(shown, key=lambda item: abs(item - mean))
        text += levels[round((value - low) / (high - low) * (len(levels) - 1))] if high > low else levels[0]
    return text


def _bounds(low: float, high: float, wanted: int, y_min: float | None, y_max: float | None) -> tuple[float, float, float]:
    """Lower bound, upper bound and distance of ticks for values from `low` to `high`; a bound that is not fixed is moved out
    to a tick."""
    low = low if y_min is None else y_min
    high = high if y_max is None else y_max
    if high - low <= abs(low) * 1e-15 + 1e-300:  # one value, or fixed bounds that leave nothing: make room around it
        room = abs(low) / 10 or 1.0
        low, high = (low - room if y_min is None else low), (low + room if y_max is None or y_max <= low else high)
    step = _nice((high - low) / wanted)
    if y_min is None:
        low = math.floor(low / step + 1e-9) * step
    if y_max is None:
        high = math.ceil(high / step - 1e-9) * step
    return low, high, step


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5, 10 times a power of ten that is no less than `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step * (1 - 1e-9)), 10 * power)


def _ticks(low: float, high: float, step: float) -> list[float]:
    """Multiples of `step` from low to high, both included."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _number(value: float, step: float) -> str:
    """A tick's label, with the decimals that tell it from its neighbours."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals <= 3 and abs(value) < 1e6:
        return f"{value:.{decimals}f}" if value else "0"
    digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9)) if value else 0
    return f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e") if value else "0"


def _fill(cells: list[list[str]], dots: Sequence[int], style: _GlyphSet) -> None:
    """Put the characters of columns of dots into the cells of a chart, [row][column]."""
    across, down = style.across, style.down
    mask, drawn = (1 << down) - 1, style.drawn
    for column in range(len(dots) // across):
        left = dots[column * across]
        right = dots[column * across + 1] if across == 2 else 0
        for row in _rows_of(left | right, down):
            shift = row * down
            if bits := (left >> shift) & mask | ((right >> shift) & mask) << down:
                cells[row][column] = drawn[bits]


def _rows_of(dots: int, down: int = 1) -> Iterable[int]:
    """The rows of cells, each `down` dots high, from the first to the last with a dot; single dots where `down` is 1."""
    if not dots:
        return ()
    rows = range(((dots & -dots).bit_length() - 1) // down, (dots.bit_length() - 1) // down + 1)
    return rows if down > 1 else [row for row in rows if dots >> row & 1]


def _pieces(text: str, marks: Mapping[int, Run]) -> Iterable[Run]:
    """A row of the chart, parted where another series begins; a mark hides what lies below it."""
    start = 0
    for column in [*sorted(marks), len(text)]:
        for found in _RUN.finditer(text, start, column):
            yield found[0], None if found[0][0] == " " else 0
        if column < len(text):
            yield marks[column]
        start = column + 1


def _gather(cells: Iterable[Run]) -> list[Run]:
    """Neighbours of one series as one piece."""
    runs: list[Run] = []
    for text, owner in cells:
        if runs and runs[-1][1] == owner:
            runs[-1] = runs[-1][0] + text, owner
        elif text:
            runs.append((text, owner))
    return runs


def _x_axis(left: float, right: float, gutter: int, columns: int, style: _GlyphSet) -> list[str]:
    """The line below the chart and its labels, centred on their ticks; labels that would touch are left out."""
    line = [style.bottom] * columns
    labels = [" "] * (gutter + columns)
    step = _nice((right - left) / max(2, columns // 10)) if right > left else 1.0
    if all(float(value).is_integer() for value in (left, right)):
        step = max(1.0, step)
    end = 0
    for tick in _ticks(left, right, step) if right > left else [left]:
        column = round((tick - left) / ((right - left) or 1.0) * (columns - 1))
        text = _number(tick, step)
        start = max(0, min(gutter + column - len(text) // 2, gutter + columns - len(text)))
        if start < end or start + len(text) > len(labels):
            continue
        line[column] = style.bottom_tick
        labels[start : start + len(text)] = text
        end = start + len(text) + 1
    return [(" " * (gutter - 1) + style.corner if gutter else "") + "".join(line), "".join(labels)]


def _legend(series: Sequence[Series], style: _GlyphSet, width: int) -> list[Run]:
    """What each series is drawn with and its last value. A label is someone's text: control characters are shown as `?`."""
    runs: list[Run] = []
    room = width
    for index, (_, y, label) in enumerate(series):
        mark = MARKS[(index - 1) % len(MARKS)] if index else style.cells[-1] if style.across == 1 else style.bottom
        last = next((value for value in reversed(y) if math.isfinite(value)), None)
        name = "".join(character if character.isprintable() else "?" for character in label)
        for text, owner in (("   " if index else "", None), (f"{mark} {name}" + ("" if last is None else f" {last:.4g}"), index)):
            shown = text if cell_len(text) <= room else set_cell_size(text, room)
            room -= cell_len(shown)
            if shown:
                runs.append((shown, owner))
    return runs


def glyph_set(encoding: str, environment: Mapping[str, str]) -> Glyphs:
    """Braille where the terminal takes Unicode, else ascii; DROID_TUNE_GLYPHS (braille, block or ascii) decides otherwise."""
    match environment.get("DROID_TUNE_GLYPHS"):
        case "braille":
            return "braille"
        case "block":
            return "block"
        case "ascii":
            return "ascii"
        case _:
            return "braille" if "utf" in encoding.lower() else "ascii"
