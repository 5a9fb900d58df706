"""The table of runs: rows to lines of the screen. Only what fits is drawn, so that a thousand runs cost what twenty do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widget import Widget

from engine.figures import duration, number
from engine.plot import Glyphs, sparkline
from engine.safe_text import safe_text
from tui.screens.base import plain
from tui.theme import STATE_STYLES, drawn, state_glyph

if TYPE_CHECKING:
    from tui.run_rows import RunRow  # it reads runs, and what that takes is loaded after the first paint

WIDE = 100  # cells from which on there is room for held-out, age and longer names
STATE_CELLS = 10  # glyph, blank and the longest word
TROUBLE_LINES = 3


@dataclass(frozen=True, slots=True)
class Columns:
    """Widths in cells; 0: left out."""

    run: int
    method: int
    model: int
    step: int
    curve: int
    value: int
    held_out: int
    eta: int


def columns(width: int) -> Columns:
    """The columns for a line of `width` cells; what is over goes to the names."""
    wide = width >= WIDE
    method, step, curve, value, eta = 7, 9, 12 if wide else 5, 6, 7 if wide else 4
    held_out = 8 if wide else 0
    fixed = 2 + STATE_CELLS + method + step + curve + 1 + value + eta + (held_out + 2 if wide else 0)
    names = max(width - fixed - 2 * 6, 12)
    model = names * 2 // 5
    return Columns(names - model, method, model, step, curve, value, held_out, eta)


def table_lines(rows: Sequence[RunRow], cursor: int, width: int, height: int, glyphs: Glyphs) -> list[Content]:
    """Head, the rows around `cursor` and, below the marked one, its trouble: at most `height` lines of `width` cells."""
    layout = columns(width)
    trouble = trouble_lines(rows[cursor], width, glyphs) if rows else []
    room = max(height - 1 - len(trouble), 1)
    first = min(max(cursor - room // 2, 0), max(len(rows) - room, 0))
    lines = [head(layout)]
    for index in range(first, min(first + room, len(rows))):
        lines.append(row_line(rows[index], layout, glyphs, marked=index == cursor))
        if index == cursor:
            lines += trouble
    return lines[:height]


def head(layout: Columns) -> Content:
    """The names of the columns."""
    reward = " " * (layout.curve + 1) + "reward"
    return _joined("  ", ("state", "run", "method", "model", "step", reward, "held-out", "eta"), layout).stylize("$text-muted")


def row_line(row: RunRow, layout: Columns, glyphs: Glyphs, *, marked: bool) -> Content:
    """One run in one line."""
    run = row.summary
    style = STATE_STYLES.get(row.state, "")
    value = _value(row.value) or "–"
    if run.method == "sft" and row.value is not None:
        value = f"loss {value}"
    room = layout.curve + 1 + layout.value
    width = max(min(layout.curve, room - 1 - len(value)), 0)
    curve = sparkline(row.curve, width, "ascii" if glyphs == "ascii" else "block")
    reward = Content.assemble((curve, "$reward"), " " * max(room - len(curve) - len(value), 0), value)
    if row.fetched and row.value is None:
        reward = plain(safe_text(row.fetched).rjust(room), "$text-muted")
    cells = (
        plain(f"{state_glyph(row.state, glyphs)} {row.state}", style),
        safe_text(run.id),
        safe_text(run.method),
        safe_text(row.model_name),
        f"{run.step}/{run.steps}" if run.steps else "–",
        reward,
        _value(run.held_out) or "–",
        _eta(row.eta_seconds, layout.eta),
    )
    line = _joined("▸ " if marked else "  ", cells, layout)
    line = Content(drawn(line.plain, glyphs), spans=list(line.spans))
    return line.stylize("bold").stylize("$text-accent", 0, 2) if marked else line


def trouble_lines(row: RunRow, width: int, glyphs: Glyphs) -> list[Content]:
    """What is wrong with the run and what to do, indented below its row."""
    if not row.trouble:
        return []
    style = STATE_STYLES.get(row.state, "")
    text = plain(safe_text(f"{row.trouble}: {row.remedy}" if row.remedy else row.trouble), style)
    return [Content.assemble("    ", line) for line in text.wrap(max(width - 4, 10))[:TROUBLE_LINES]]


class RunTable(Widget, can_focus=True):
    """The list. Its screen sets `rows` and moves the mark; keys are the screen's."""

    DEFAULT_CSS = "RunTable { height: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__(id="table")
        self._glyphs = glyphs
        self.rows: Sequence[RunRow] = ()
        self.cursor = 0
        self._wanted = ""  # the run that gets the mark once it is there

    @property
    def marked(self) -> RunRow | None:
        """The run that has the mark."""
        return self.rows[self.cursor] if self.rows else None

    def show(self, rows: Sequence[RunRow]) -> None:
        """Put new rows in; the mark stays on its run, or at its place where that run is gone."""
        places = {row.id: index for index, row in enumerate(rows)}
        before = self.marked.id if self.marked is not None else ""
        if self._wanted in places:
            before, self._wanted = self._wanted, ""
        at = places.get(before, self.cursor)
        changed = (tuple(rows), at) != (tuple(self.rows), self.cursor)
        self.rows, self.cursor = tuple(rows), max(min(at, len(rows) - 1), 0)
        if changed:
            self.refresh()

    def move(self, to: int) -> None:
        """Mark the row `to`, or the nearest there is."""
        self.cursor = max(min(to, len(self.rows) - 1), 0)
        self.refresh()

    def mark(self, run_id: str) -> None:
        """Mark that run, now or once it is in the list."""
        self._wanted = run_id
        self.show(self.rows)

    def render(self) -> Content:
        return Content("\n").join(table_lines(self.rows, self.cursor, self.size.width, self.size.height, self._glyphs))


def _joined(mark: str, cells: Sequence[str | Content], layout: Columns) -> Content:
    """The cells, in the order of the columns, at their places."""
    state, run, method, model, step, reward, held_out, eta = cells
    placed = [
        _left(state, STATE_CELLS),
        _left(run, layout.run),
        _left(method, layout.method),
        _left(model, layout.model),
        _right(step, layout.step),
        _left(reward, layout.curve + 1 + layout.value),
        *([_right(held_out, layout.held_out)] if layout.held_out else []),
        _right(eta, layout.eta),
    ]
    return Content.assemble(mark, Content("  ").join(placed))


def _left(text: str | Content, width: int) -> Content:
    content = Content(text) if isinstance(text, str) else text
    return content.truncate(width, ellipsis=True, pad=True)


def _right(text: str | Content, width: int) -> Content:
    content = (Content(text) if isinstance(text, str) else text).truncate(width, ellipsis=True)
    return Content.assemble(" " * (width - content.cell_length), content)


def _value(value: float | None) -> str:
    return "" if value is None else number(value, 2)


def _eta(seconds: float | None, width: int) -> str:
    """The duration, its smaller unit left out where there is no room."""
    text = duration(seconds)
    return text if len(text) <= width else text.split()[0]
