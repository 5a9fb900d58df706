"""Asked from the data: which of the file's columns is the prompt, which the answer, and in which format the rows are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine import methods
from engine.data.examples import FORMATS
from engine.errors import InputError
from engine.safe_text import safe_text
from tui.forms import COLUMNS, FORMAT, TRAIN, show
from tui.screens.new_run import columns
from tui.screens.new_run.checks import NO_DATA, said
from tui.screens.new_run.columns import AUTO, Reading, Seen, Slot
from tui.screens.new_run.parts import Paper, Rows, Scroll
from tui.screens.new_run.step import Aside

LABEL_CELLS = 18


class MappingAside(Aside):
    """A row for the format and one for each field of it; the first row of the file as it will be read, below."""

    TITLE = "columns"
    ACTIONS: ClassVar[frozenset[str]] = frozenset({"later", "earlier"})
    DEFAULT_CSS = """
    MappingAside > Rows { margin-top: 1; }
    MappingAside > Scroll { margin-top: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: Seen | None = None
        self._trouble = ""  # why there is nothing to choose from
        self._format = AUTO
        self._mapping: dict[str, str] = {}
        self._reading: Reading | None = None

    def compose(self) -> ComposeResult:
        yield Rows()
        with Scroll(can_focus=False):
            yield Paper()

    def on_mount(self) -> None:
        config = self.flow.checked.config
        if config is not None:
            self._format, self._mapping = config.data.format, dict(config.data.columns)
        self._look()

    @property
    def rest(self) -> Widget:
        return self.query_one(Rows)

    @property
    def labels(self) -> Mapping[str, str]:
        return {"new_run.next": "take these", "new_run.reset": "as found"}

    @property
    def _slots(self) -> tuple[Slot, ...]:
        found = self._reading.format if self._reading is not None else ""
        return columns.slots(found if self._format == AUTO else self._format, self.flow.draft.method)

    def choose(self, by: int) -> None:
        """Another format, or another column for the marked field: the next, or with -1 the one before."""
        if self._seen is None:
            return
        place = self.query_one(Rows).index
        if place == 0:
            offered = (AUTO, *methods.method(self.flow.draft.method).formats)
            self._format = _next(offered, self._format, by)
        else:
            slot = self._slots[place - 1]
            column = _next(columns.choices(slot, self._seen), columns.chosen(slot, self._seen, self._mapping), by)
            self._mapping = columns.with_choice(slot, column, self._seen, self._mapping)
        self._show()
        self._read()

    def reset(self) -> None:
        """The format that is found in the rows, every column by its own name."""
        self._format, self._mapping = self.flow.draft.start(FORMAT), {}
        self._show()
        self._read()

    async def take(self) -> bool:
        if self._seen is None:
            self.flow.tell(self._trouble, failed=True)
            return False
        mapping = columns.kept(self._mapping, self._slots)
        self.flow.change(self.flow.draft.with_text(FORMAT, self._format).with_text(COLUMNS, show(mapping)))
        named = ", ".join(f"{ours} is {theirs}" for ours, theirs in mapping.items()) or "each field by its own name"
        self.flow.tell(safe_text(f"format {self._format}; {named}"))
        return True

    @work(exclusive=True, group="look", exit_on_error=False)
    async def _look(self) -> None:
        """Find the file's columns."""
        config = self.flow.checked.config
        if config is None or not self.flow.draft.text(TRAIN).strip():
            self._fail(NO_DATA)
            return
        try:
            self._seen = await asyncio.to_thread(columns.look, Path(config.data.train))
        except InputError as error:
            self._fail(error)
            return
        self._show()
        self._read()

    @work(exclusive=True, group="read", exit_on_error=False)
    async def _read(self) -> None:
        """Read the first row as the form says."""
        config, seen = self.flow.checked.config, self._seen
        if config is None or seen is None:
            return
        data = config.data.model_copy(update={"format": self._format, "columns": columns.kept(self._mapping, self._slots)})
        self._reading = await asyncio.to_thread(columns.read_first, seen.path, self.flow.draft.method, data)
        self._show()

    def _fail(self, error: InputError) -> None:
        self._trouble = f"✕ {said(error)}"
        self.query_one(Paper).drawing = lambda width: Content(self._trouble)

    def _show(self) -> None:
        seen, reading, format = self._seen, self._reading, self._format
        if seen is None:
            return
        found = f"{AUTO}  = {'none that is known' if reading is None or reading.format not in FORMATS else reading.format}"
        rows = [f"{'format':<{LABEL_CELLS}}{found if format == AUTO else format}"]
        rows += columns.form_rows(self._slots, seen, self._mapping, LABEL_CELLS)
        self.query_one(Rows).rows = tuple(rows)
        self.query_one(Paper).drawing = lambda width: columns.preview(reading, format, width)


def _next(offered: tuple[str, ...], present: str, by: int) -> str:
    place = offered.index(present) if present in offered else -1 if by > 0 else 0
    return offered[(place + by) % len(offered)]
