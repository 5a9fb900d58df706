"""A step of a new run, and what can be asked on the way, in the step's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Vertical
from textual.widget import Widget

from tui.screens.new_run.fields import Entry
from tui.screens.new_run.parts import Rows

if TYPE_CHECKING:
    from tui.screens.new_run.flow import Flow


class Step(Vertical):
    """One step. `rest` is the widget that has the focus while no field has it."""

    TITLE: ClassVar[str] = ""
    ACTIONS: ClassVar[frozenset[str]] = frozenset()  # methods of the registry that work on this step, and not on every one
    DEFAULT_CSS = "Step { height: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        self.last_field = -1  # the one that had the focus last

    @property
    def flow(self) -> Flow:
        """The screen that leads through the steps and holds the draft."""
        from tui.screens.new_run.flow import Flow

        screen = self.screen
        assert isinstance(screen, Flow)
        return screen

    @property
    def rest(self) -> Widget:
        raise NotImplementedError

    def entries(self) -> list[Entry]:
        """Its fields, in order."""
        return list(self.query(Entry))

    def leave_field(self) -> None:
        """Take the focus out of the field that has it."""
        entries, focused = self.entries(), self.screen.focused
        if isinstance(focused, Entry) and focused in entries:
            self.last_field = entries.index(focused)
        self.screen.set_focus(self.rest)

    def to_field(self, by: int) -> None:
        """Go to the next field but `by` - 1; before the first where none was gone to yet."""
        entries, focused = self.entries(), self.screen.focused
        if not entries:
            return
        if isinstance(focused, Entry):
            place = entries.index(focused)
        else:
            place = max(self.last_field, -1 if by > 0 else 0)  # before the first, or back from the first to the last
        self.screen.set_focus(entries[(place + by) % len(entries)])

    def move(self, rows: int) -> None:
        """Go down that many rows (up, where negative); in a form to the next field."""
        target = self.rest
        if isinstance(self.screen.focused, Entry):
            self.to_field(rows)
        elif isinstance(target, Rows):
            target.index += rows
        else:
            target.scroll_relative(y=rows, animate=False)

    def page(self, rows: int) -> None:
        """Go down by many rows, up where negative."""
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


class Aside(Step):
    """A question of a step, shown in its place: enter takes the answer, esc leaves everything as it was."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What the footer calls actions here, by their ids: enter's among them."""
        return {"new_run.next": "take it"}

    def choose(self, by: int) -> None:
        """The next value of what is marked; with -1 the one before."""

    async def take(self) -> bool:
        """Put the answer into the draft; False where there is something to do first, and the question stays."""
        raise NotImplementedError

    def reset(self) -> None:
        """Begin anew, where there is something to undo."""
