"""What the steps of a new run are made of: drawn text, a list with a marker, and a row of a form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input

from engine.safe_text import safe_text
from tui.forms import Field
from tui.theme import drawn

if TYPE_CHECKING:
    from engine.plot import Glyphs
    from tui.screens.new_run.screen import NewRunScreen

Drawing = Callable[[int], Content]  # of a width in cells
LABEL_CELLS = 24
_VERDICTS = {"✕": "$text-error", "⚠": "$text-warning"}  # what a text that begins so is coloured with
CONTROLS = r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]*"  # none of safe_text's


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
        return in_glyphs(self.drawing(self.content_size.width), _glyphs(self))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self.drawing(width).plain.count("\n") + 1


def _blank(width: int) -> Content:
    return Content("")


def _glyphs(widget: Widget) -> Glyphs:
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
        return in_glyphs(Content("\n").join(lines), _glyphs(self))

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()


class Entry(Input):
    """One line to type in. Characters that a terminal would obey cannot be typed or pasted."""

    DEFAULT_CSS = """
    Entry { width: 1fr; background: $panel; }
    Entry:focus { background: $panel; text-style: bold; }
    """

    def __init__(self, field: Field, text: str) -> None:
        placeholder = "not set" if field.nullable else ""
        super().__init__(safe_text(text), placeholder=placeholder, compact=True, restrict=CONTROLS, select_on_focus=False)
        self.field = field
        self.cursor_blink = False

    def show(self, text: str) -> None:
        """Show another text than what was typed last."""
        self.value = safe_text(text)

    def on_paste(self, event: events.Paste) -> None:
        if not event.text.splitlines():  # Input takes the first line of what there is
            event.prevent_default()


class FieldRow(Widget):
    """Label and entry; below them, while it is wrong, what is wrong."""

    DEFAULT_CSS = f"""
    FieldRow {{ height: 1; width: 1fr; text-wrap: nowrap; }}
    FieldRow > Entry {{ margin-left: {LABEL_CELLS}; }}
    """

    changed: reactive[bool] = reactive(False)
    error: reactive[str] = reactive("", init=False)

    def __init__(self, field: Field, text: str, label: str | None = None) -> None:
        super().__init__()
        self.field = field
        self.entry = Entry(field, text)
        self._label = label or field.label

    def compose(self) -> ComposeResult:
        yield self.entry

    def watch_error(self) -> None:
        self.styles.height = 1 + len(self._mistakes())

    def on_resize(self) -> None:
        self.watch_error()

    def render(self) -> Content:
        marked = self.entry.has_focus
        mark = "▸" if marked else "*" if self.changed else " "
        style = "bold $text-accent" if marked else "bold" if self.changed else ""
        label = Content.styled(f"{mark} {self._label}".ljust(LABEL_CELLS), style)
        indent = " " * LABEL_CELLS
        mistakes = [Content.styled(indent + line, "$text-error") for line in self._mistakes()]
        return in_glyphs(Content("\n").join([label, *mistakes]), _glyphs(self))

    def on_descendant_focus(self) -> None:
        self.refresh()

    def on_descendant_blur(self) -> None:
        self.refresh()

    def _mistakes(self) -> list[str]:
        return wrapped(f"✕ {self.error}", self.size.width - LABEL_CELLS) if self.error else []


class Step(Vertical):
    """One step. `rest` is the widget that has the focus while no field has it."""

    TITLE = ""
    DEFAULT_CSS = "Step { height: 1fr; }"

    @property
    def flow(self) -> NewRunScreen:
        """The screen that leads through the steps and holds the draft."""
        from tui.screens.new_run.screen import NewRunScreen

        screen = self.screen
        assert isinstance(screen, NewRunScreen)
        return screen

    @property
    def rest(self) -> Widget:
        raise NotImplementedError

    def entries(self) -> list[Entry]:
        """Its fields, in order."""
        return list(self.query(Entry))

    def move(self, rows: int) -> None:
        """Go down that many rows (up, where negative)."""
        target = self.rest
        if isinstance(target, Rows):
            target.index += rows
        else:
            target.scroll_relative(y=rows, animate=False)

    def draft_changed(self) -> None:
        """The draft is another one; its check comes later."""

    def draft_checked(self) -> None:
        """The draft was checked; the result is flow.checked."""

    async def obstacle(self) -> str:
        """Why the next step cannot be gone to; empty where nothing is in the way."""
        return ""


class Scroll(VerticalScroll, can_focus=True):
    """A part that scrolls by keys."""

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
