"""Asked from the method: a config file that is there already, ours or another tool's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input

from engine import config as configs
from engine.config import LoadedConfig
from engine.errors import InputError
from engine.safe_text import safe_text
from tui.draft import values_of
from tui.screens.new_run.checks import said
from tui.screens.new_run.fields import TextLine
from tui.screens.new_run.parts import Paper, Scroll, columns, wrapped
from tui.screens.new_run.step import Aside

HINT = "the file's values are typed into this run; relative paths in it start at its folder"


class OpeningAside(Aside):
    """A line for the path; below it what the file says, or what is wrong with it."""

    TITLE = "open a config"
    ACTIONS: ClassVar[frozenset[str]] = frozenset({"next_field", "previous_field"})
    DEFAULT_CSS = """
    OpeningAside > TextLine { margin-top: 1; }
    OpeningAside > Scroll { margin-top: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._read_as = ""  # the path that `_found` is about
        self._found: LoadedConfig | None = None
        self._line = TextLine(placeholder="a YAML file: ours, or one of mlx_lm.lora, mlx-lm-lora or TRL", is_path=True)

    def compose(self) -> ComposeResult:
        yield self._line
        with Scroll():
            yield Paper()

    def on_mount(self) -> None:
        self._say(HINT)

    @property
    def rest(self) -> Widget:
        return self._line if self._found is None else self.query_one(Scroll)

    @property
    def labels(self) -> Mapping[str, str]:
        if self._line.has_focus:
            return {"new_run.next": "read it", "new_run.field": "complete"}
        return {"new_run.next": "use it", "new_run.field": "another file"}

    def to_field(self, by: int) -> None:
        if self._line.has_focus:
            self._line.action_cursor_right()  # which takes what is offered
        else:
            self._line.focus()

    def leave_field(self) -> None:
        """The line keeps the focus until a file is read."""

    async def take(self) -> bool:
        text = self._line.value.strip()
        if self._found is None or text != self._read_as:
            await self._read(text)
            return False
        draft = self.flow.draft.with_config(self._found, self._read_as)
        self.flow.change(draft)
        notes = f"; {len(self._found.notes)} notes, which the review shows" if self._found.notes else ""
        self.flow.tell(safe_text(f"opened {self._read_as}: {draft.method}{notes}"))
        return True

    @on(Input.Changed)
    def _typed(self) -> None:
        if self._line.value.strip() != self._read_as:
            self._found = None
            self._say(HINT)

    @on(Input.Submitted)
    async def _confirmed(self, event: Input.Submitted) -> None:
        event.stop()
        await self.run_action("screen.next")

    async def _read(self, text: str) -> None:
        self._read_as, self._found = text, None
        try:
            self._found = await asyncio.to_thread(read, text)
        except InputError as error:
            self._say(f"✕ {said(error)}")
            self._line.focus()
            return
        found = self._found
        self.query_one(Paper).drawing = lambda width: result(found, width)
        self.query_one(Scroll).focus()

    def _say(self, text: str) -> None:
        style = "$text-error" if text.startswith("✕") else "$text-muted"
        self.query_one(Paper).drawing = lambda width: Content.styled("\n".join(wrapped(text, width)), style)


def read(text: str) -> LoadedConfig:
    """The config file that was typed. Raises InputError."""
    if not text:
        raise InputError("no path yet", where="", remedy="type one; tab takes what is offered")
    try:
        return configs.load(Path(text).expanduser())
    except (OSError, ValueError, RuntimeError) as error:  # what the file system says of a name that no path can have
        raise InputError(f"not a path: {error}", where="", remedy="type another") from error


def result(found: LoadedConfig, width: int) -> Content:
    """What the file sets, from which keys, and what there is to say of it."""
    values = {key: value for key, value in values_of(found).items() if value[1] != "default"}
    head = f"✓ {found.config.method}: {len(values)} values, {len(found.notes)} notes"
    cells = max(map(len, values)) + 2
    rows = [(key, safe_text(f"{text or 'null'}  from {origin}")) for key, (text, origin) in values.items()]
    lines = [Content.styled(head, "bold"), Content(""), columns(rows, width, cells, indent=0)]
    if found.notes:
        lines += [Content(""), columns([("note", safe_text(note)) for note in found.notes], width, 6, indent=0)]
    return Content("\n").join(lines)
