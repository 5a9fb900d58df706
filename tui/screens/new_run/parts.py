"""What the steps of a new run are made of: drawn text, and a list with a marker. Fields are in fields.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from tui.theme import drawn

if TYPE_CHECKING:
    from engine.plot import Glyphs

Drawing = Callable[[int], Content]  # of a width in cells
_VERDICTS = {"✕": "$text-error", "⚠": "$text-warning"}  # what a text that begins so is coloured with


def in_glyphs(content: Content, glyphs: Glyphs) -> Content:
    """The content with its signs as ASCII where the terminal has no others; every sign is one cell, so styles stay in place."""
    return content if glyphs != "ascii" else Content(drawn(content.plain, glyphs).replace("─", "-"), list(content.spans))


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, broken at spaces where there are any."""
    return [line.plain for line in Content(text).wrap(max(width, 1))] or [""]


class Paper(Widget):
    """Text drawn for the width it has; as high as it needs."""

    DEFAULT_CSS = "Paper { height: auto; width: 1fr; text-wrap: nowrap; }"

    drawing: reactive[Drawing] = reactive(lambda: _blank)

    def watch_drawing(self) -> None:
        height = self.styles.height
        self.refresh(layout=height is not None and height.is_auto)  # of a fixed height nothing moves

    def render(self) -> Content:
        return in_glyphs(self.drawing(self.content_size.width), glyphs_of(self))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self.drawing(width).plain.count("\n") + 1


def _blank(width: int) -> Content:
    return Content("")


def glyphs_of(widget: Widget) -> Glyphs:
    """The glyph set of the widget's app."""
    found: Glyphs = getattr(widget.app, "glyphs", "braille")
    return found


class Rows(Widget, can_focus=True):
    """A list with a marker that moves by keys; the window follows it. What is marked shows beside or below.

    ▲ and ▼ in the marker's column say that the list goes on above or below.
    """

    DEFAULT_CSS = """
    Rows { height: auto; width: 1fr; text-wrap: nowrap; }
    """

    class Moved(Message):
        """The marker stands on another row."""

        def __init__(self, rows: Rows) -> None:
            self.rows = rows
            super().__init__()

        @property
        def control(self) -> Rows:
            return self.rows

    index: reactive[int] = reactive(0, init=False)
    rows: reactive[tuple[str, ...]] = reactive((), layout=True, init=False)

    def __init__(self, rows: Sequence[str] = (), index: int = 0) -> None:
        super().__init__()
        self.set_reactive(Rows.rows, tuple(rows))
        self.set_reactive(Rows.index, index)
        self._top = 0

    def validate_index(self, index: int) -> int:
        return max(0, min(index, len(self.rows) - 1))

    def watch_rows(self) -> None:
        self.index = self.validate_index(self.index)

    def watch_index(self) -> None:
        self.post_message(self.Moved(self))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(len(self.rows), 1)

    def render(self) -> Content:
        height, width = max(self.size.height, 1), self.size.width
        self._top = min(max(self._top, self.index - height + 1), self.index)
        lines, end = [], min(self._top + height, len(self.rows))
        for place in range(self._top, end):
            above, below = place == self._top > 0, place == end - 1 < len(self.rows) - 1
            sign = "▸" if place == self.index else "▲" if above else "▼" if below else " "
            line = f"{sign} {self.rows[place]}"
            style = "" if place != self.index else "bold $text-accent" if self.has_focus else "bold"
            lines.append(Content.styled(line, style).truncate(width, ellipsis=True))
        return in_glyphs(Content("\n").join(lines), glyphs_of(self))

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()


class Scroll(VerticalScroll, can_focus=True, inherit_bindings=False):
    """A part that scrolls by keys; up and down are the screen's, which in a form go from field to field."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_home", show=False),
        Binding("end", "scroll_end", show=False),
    ]
    DEFAULT_CSS = "Scroll { height: 1fr; scrollbar-size-vertical: 1; } Scroll:focus { background: $background; }"


def columns(rows: Sequence[tuple[str, str]], width: int, label_cells: int, indent: int = 2) -> Content:
    """Label and text side by side; a long text goes on below itself."""
    lines: list[Content] = []
    for label, text in rows:
        parts = wrapped(text, width - indent - label_cells)
        for place, part in enumerate(parts):
            head = label if place == 0 else ""
            pad = " " * (label_cells - cell_len(head))
            lines.append(Content.assemble(" " * indent, (head, "$text-muted"), pad, (part, _VERDICTS.get(text[:1], ""))))
    return Content("\n").join(lines)
