"""What the views of a run have in common: each shows the newest snapshot in the room that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Resize
from textual.geometry import Region

from tui.screens.live.text import MUTED, Room, as_ascii
from tui.snapshot import RunSnapshot
from tui.widgets.painted import Kept, Painted

if TYPE_CHECKING:
    from tui.app import DroidTuneApp


_NOTHING = Content("")


class Block(Painted):
    """Lines, each painted anew only when it has changed."""

    DEFAULT_CSS = "Block { width: 1fr; height: 1fr; text-wrap: nowrap; }"
    if TYPE_CHECKING:
        app: DroidTuneApp

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.lines: tuple[Content, ...] = ()
        self.painted = 0  # how many lines were rendered, over its life

    def put(self, lines: Sequence[Content]) -> None:
        """Show these lines."""
        new = tuple(as_ascii(each) for each in lines) if self.app.glyphs == "ascii" else tuple(lines)
        old, self.lines = self.lines, new
        width = self.size.width
        pairs = zip_longest(old, new, fillvalue=_NOTHING)
        changed = [Region(0, row, width, 1) for row, (before, after) in enumerate(pairs) if not _same(before, after)]
        if changed:
            self.refresh(*(changed if width else ()))

    def segments(self, y: int) -> Sequence[Segment]:
        """One line."""
        self.painted += 1
        return self.content_segments(self.lines[y]) if y < len(self.lines) else ()


def _same(left: Content, right: Content) -> bool:
    """Whether they look alike; contents are equal to Textual where their text is, whatever its style."""
    return left is right or (left.plain == right.plain and left.spans == right.spans)


class View(Kept, Vertical):
    """One of the screen's numbered views. A subclass draws `self.snapshot` in `draw` and names its keys in METHODS."""

    TITLE: ClassVar[str] = ""
    METHODS: ClassVar[frozenset[str]] = frozenset()  # the actions of the live scope that mean something here
    if TYPE_CHECKING:
        app: DroidTuneApp

    def __init__(self) -> None:
        super().__init__(id=self.TITLE)
        self.snapshot: RunSnapshot | None = None
        self._drawn: tuple[int, Room] | None = None

    @property
    def room(self) -> Room:
        return Room(self.size.width, self.size.height, self.app.glyphs)

    def show(self, snapshot: RunSnapshot) -> None:
        """Draw the snapshot, unless it is drawn already."""
        self.snapshot = snapshot
        room = self.room
        if room.width > 0 and room.height > 0 and self._drawn != (snapshot.version, room):
            self._drawn = (snapshot.version, room)
            self.draw(snapshot, room)

    def draw_again(self) -> None:
        """Draw what is there after the user changed what it shows."""
        if self.snapshot is not None:
            self._drawn = None
            self.show(self.snapshot)

    def draw(self, snapshot: RunSnapshot, room: Room) -> None:
        """Bring the view's widgets up to date."""
        raise NotImplementedError

    def on_resize(self, _: Resize) -> None:
        if self.snapshot is not None and self.display:
            self.show(self.snapshot)

    def move(self, method: str) -> None:
        """Do what a key of METHODS asks for."""


class Lines(View):
    """A view of lines through a window that j, k and pages move; with FOLLOWS it stays at the end until it is moved up."""

    METHODS = frozenset({"down", "up", "page_down", "page_up", "first", "last"})
    FOLLOWS: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.top = 0
        self.at_end = self.FOLLOWS
        self.block = Block()

    def compose(self) -> ComposeResult:
        yield self.block

    def lines(self, snapshot: RunSnapshot, room: Room) -> Sequence[Content | Callable[[], Content]]:
        """All lines, each within the room's width; one that costs something may be given as a function that makes it."""
        raise NotImplementedError

    def draw(self, snapshot: RunSnapshot, room: Room) -> None:
        lines = self.lines(snapshot, room)
        height = room.height if len(lines) <= room.height else room.height - 1
        most = max(len(lines) - height, 0)
        self.top = most if self.at_end else min(max(self.top, 0), most)
        shown = [each if isinstance(each, Content) else each() for each in lines[self.top : self.top + height]]
        if most:
            where = f"{self.top + 1} to {self.top + len(shown)} of {len(lines)}"
            shown = [*shown, Content.styled(where + (", following" if self.at_end else ""), MUTED)]
        self.block.put(shown)

    def move(self, method: str) -> None:
        page = max(self.size.height - 2, 1)
        step = {"down": 1, "up": -1, "page_down": page, "page_up": -page}.get(method)
        before = self.top
        if step is not None:
            self.top, self.at_end = self.top + step, False
        else:
            self.top, self.at_end = 0, method == "last"
        if method == "last" and not self.FOLLOWS:
            self.top, self.at_end = 1 << 30, False
        self.draw_again()
        if self.FOLLOWS and step is not None and step > 0 and self.top < before + step:  # it reached the end
            self.at_end = True
            self.draw_again()
