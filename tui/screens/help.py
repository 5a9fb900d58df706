"""Help: every key of the screen it was asked from, and what the signs mean. Fed from the registry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.figures import STATE_GLYPHS
from engine.plot import Glyphs
from tui.actions.base import Action, key_name
from tui.screens.base import Page
from tui.theme import STATE_STYLES, drawn, state_glyph

KEY_CELLS = 14
STATE_CELLS = 13
STATES_PER_LINE = 5
EDGE_CELLS = 4  # the page's margins and the scroll bar


class HelpScreen(Page):
    """What the keys of `page` do. Scrolls with the keys that move everywhere else."""

    HAS_HELP = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
        Binding("g", "ends(False)", show=False),
        Binding("G", "ends(True)", show=False),
    ]
    DEFAULT_CSS = "HelpScreen VerticalScroll { margin-top: 1; height: 1fr; }"

    def __init__(self, page: Page) -> None:
        super().__init__()
        self._asked = page

    def compose_body(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="lines")

    def on_mount(self) -> None:
        name = self._asked.SCOPE.replace("_", " ")
        self.set_where(drawn(f"help › {name}", self.app.glyphs))
        self.query_one(VerticalScroll).focus()

    def on_resize(self) -> None:
        lines = help_lines(self._asked.actions(), self._asked.SCOPE, self.app.glyphs, self.size.width - EDGE_CELLS)
        self.query_one("#lines", Static).update(Content("\n").join(lines))

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_ends(self, last: bool) -> None:
        scroll = self.query_one(VerticalScroll)
        if last:
            scroll.scroll_end(animate=False)
        else:
            scroll.scroll_home(animate=False)


def help_lines(actions: Iterable[Action], scope: str, glyphs: Glyphs, width: int) -> list[Content]:
    """Keys and sentences in lines of `width` cells: the screen's own, those that work everywhere, the states of a run."""
    actions = list(actions)
    own = [action for action in actions if action.scope == scope]
    shared = [action for action in actions if action.scope != scope]
    lines = [line for action in own for line in _lines(action, width)]
    lines += [Content(""), Content.styled("on every screen", "bold")]
    lines += [line for action in shared for line in _lines(action, width)]
    lines += [Content(""), Content.styled("a run is", "bold")]
    states = list(STATE_GLYPHS)
    for start in range(0, len(states), STATES_PER_LINE):
        cells = [
            Content.styled(f"{state_glyph(state, glyphs)} {state}".ljust(STATE_CELLS), STATE_STYLES.get(state, ""))
            for state in states[start : start + STATES_PER_LINE]
        ]
        lines.append(Content("").join(cells))
    lines.append(
        Content.styled("stalled: no sign of life from its worker; lost: its worker is gone, r brings it back", "$text-muted")
    )
    return lines


def _lines(action: Action, width: int) -> list[Content]:
    """The action's keys, and beside them its sentence."""
    keys = " ".join(key_name(key) for key in action.keys)
    first, *more = Content(action.help).wrap(max(width - KEY_CELLS, 20))
    return [
        Content.assemble((keys.ljust(KEY_CELLS), "bold $text-accent"), first),
        *(Content.assemble(" " * KEY_CELLS, line) for line in more),
    ]
