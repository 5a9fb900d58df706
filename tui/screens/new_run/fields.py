"""What is typed into: one line, a line of the form with its label, and a path with its completion."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from textual import events
from textual.app import ComposeResult
from textual.content import Content
from textual.reactive import reactive
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets import Input

from engine.safe_text import safe_text
from tui.forms import FILE_KEYS, VALID, Field
from tui.screens.new_run.parts import glyphs_of, in_glyphs, wrapped

LABEL_CELLS = 24
CONTROLS = r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]*"  # none of safe_text's


class TextLine(Input):
    """One line to type in. Characters that a terminal would obey cannot be typed or pasted."""

    DEFAULT_CSS = """
    TextLine { width: 1fr; background: $panel; }
    TextLine:focus { background: $panel; text-style: bold; }
    """

    def __init__(self, text: str = "", placeholder: str = "", is_path: bool = False) -> None:
        super().__init__(
            safe_text(text),
            placeholder=placeholder,
            compact=True,
            restrict=CONTROLS,
            select_on_focus=False,
            suggester=Paths() if is_path else None,
        )
        self.cursor_blink = False

    def show(self, text: str) -> None:
        """Show another text than what was typed last."""
        self.value = safe_text(text)
        self.cursor_position = len(self.value)

    def on_paste(self, event: events.Paste) -> None:
        if not event.text.splitlines():  # Input takes the first line of what there is
            event.prevent_default()


class Entry(TextLine):
    """What is typed into a field of the config."""

    def __init__(self, field: Field, text: str) -> None:
        unset = "not set: the run holds back some of the rows" if field.key == VALID else "not set"
        super().__init__(text, unset if field.nullable else "", is_path=field.key in FILE_KEYS)
        self.field = field


class Paths(Suggester):
    """What a path that is being typed can become; `right` takes it."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        return await asyncio.to_thread(completed, value)


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
        return in_glyphs(Content("\n").join([label, *mistakes]), glyphs_of(self))

    def on_descendant_focus(self) -> None:
        self.refresh()

    def on_descendant_blur(self) -> None:
        self.refresh()

    def _mistakes(self) -> list[str]:
        return wrapped(f"✕ {self.error}", self.size.width - LABEL_CELLS) if self.error else []


def completed(begun: str) -> str | None:
    """The path with its last name in full, the first that begins so, a folder's with a slash; None where there is none."""
    head, slash, name = begun.rpartition("/")
    if not name:
        return None
    try:
        with os.scandir(Path(head + slash).expanduser()) as entries:
            found = [entry for entry in entries if entry.name.startswith(name) and safe_text(entry.name) == entry.name]
            first = min(found, key=lambda entry: entry.name, default=None)
            return None if first is None else f"{head}{slash}{first.name}{'/' if first.is_dir() else ''}"
    except (OSError, ValueError, RuntimeError):  # no such folder, a name that none can have, no such user: nothing to offer
        return None
