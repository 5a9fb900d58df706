"""Page: what every screen has in common. One line says where you are, one line at most six keys that work now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.keys import key_to_character
from textual.reactive import reactive
from textual.screen import Screen

from tui.actions.base import HELP_RANK, LEAVE_RANK, Action, bindings, key_name, of_scope
from tui.widgets.painted import Kept, Painted

if TYPE_CHECKING:
    from tui.app import DroidTuneApp

KEYS_SHOWN = 6
GAP = Content("  ")


def plain(text: str, style: str = "") -> Content:
    """Text that is never read as markup."""
    return Content.styled(text, style) if style else Content(text)


def ends(left: Content, right: Content, width: int) -> Content:
    """One line of `width` cells with `right` at its right edge; where both do not fit, `left` is cut, then `right`."""
    right = right.truncate(width, ellipsis=True)
    room = max(width - right.cell_length - (2 if right else 0), 0)
    left = left.truncate(room, ellipsis=True)
    return Content.assemble(left, " " * (width - left.cell_length - right.cell_length), right)


class Line(Painted):
    """One line of the screen: a left and a right end."""

    DEFAULT_CSS = "Line { height: 1; width: 1fr; text-wrap: nowrap; }"

    left: reactive[Content] = reactive(Content(""))
    right: reactive[Content] = reactive(Content(""))

    def segments(self, _: int) -> Sequence[Segment]:
        """The one line."""
        return self.content_segments(ends(self.left, self.right, self.size.width))


class Page(Kept, Screen[None]):
    """A screen of the app. A subclass sets SCOPE, adds `BINDINGS = bindings(SCOPE)` and yields its body from compose_body().

    `check_action` decides which of its actions are valid now; refresh_bindings() brings the footer up to date.
    """

    SCOPE: ClassVar[str] = "page"
    HAS_HELP: ClassVar[bool] = True
    BINDINGS: ClassVar[list[BindingType]] = bindings("page")

    DEFAULT_CSS = """
    Page { padding: 0 1; }
    Page > #where { dock: top; text-style: bold; }
    Page > #keys { dock: bottom; }
    """

    if TYPE_CHECKING:
        app: DroidTuneApp

    def compose(self) -> ComposeResult:
        yield Line(id="where")
        yield from self.compose_body()
        yield Line(id="keys")

    def compose_body(self) -> ComposeResult:
        """The widgets between the first and the last line."""
        return iter(())

    def on_mount(self) -> None:
        self.bindings_updated_signal.subscribe(self, lambda _: self.show_keys())
        self.show_keys()

    def on_descendant_focus(self) -> None:
        self.show_keys()  # a text field takes letters away from the screen

    def on_descendant_blur(self) -> None:
        self.show_keys()

    def set_where(self, left: str, right: str = "") -> None:
        """What the first line says; both are shown as they are, so text from outside must have been through safe_text."""
        line = self.query_one("#where", Line)
        line.left, line.right = plain(left), plain(right)

    def show_keys(self) -> None:
        """Write the last line anew: the keys that do something now."""
        leave, rest = footer(self.valid_actions())
        line = self.query_one("#keys", Line)
        line.right = self._key(leave) if leave else Content("")
        room = self.size.width - 2 - line.right.cell_length - 2
        line.left = fitting([(self._key(action), action.rank >= HELP_RANK) for action in rest], room)

    def on_resize(self) -> None:
        self.show_keys()

    def actions(self) -> list[Action]:
        """Everything that keys can do on this screen, by rank: its own actions, a page's and the app's."""
        own = of_scope(self.SCOPE) if self.SCOPE != "page" else ()
        taken = {key for action in own for key in action.keys}
        inherited = [action for action in of_scope("page") if not taken.issuperset(action.keys)]
        return sorted((*own, *inherited, *of_scope("app")), key=lambda action: action.rank)

    def valid_actions(self) -> list[Action]:
        """The actions that would do something now."""
        return [action for action in self.actions() if self.is_valid(action)]

    def is_valid(self, action: Action) -> bool:
        """Whether the action's key reaches it (no text field takes it) and its screen or the app allows it."""
        focused = self.focused
        if focused is not None and all(focused.check_consume_key(key, key_to_character(key)) for key in action.keys):
            return False
        node = self.app if action.scope == "app" else self
        return node.check_action(action.method, ()) is True

    def label_of(self, action: Action) -> str:
        """What the footer calls the action now; a screen overrides it where the word follows the state (pause, go on)."""
        return action.label

    def opened(self, run_id: str) -> None:
        """From this screen that run is opened; whoever comes back looks for it."""

    def action_back(self) -> None:
        self.app.back()

    def _key(self, action: Action) -> Content:
        return Content.assemble((key_name(action.keys[0]), "bold $text-accent"), " ", (self.label_of(action), "$text-muted"))


def footer(valid: Sequence[Action]) -> tuple[Action | None, list[Action]]:
    """The action at the right edge and at most five others; help keeps its place before the rest."""
    shown = [action for action in valid if action.shown]
    leaving = [action for action in shown if action.rank >= LEAVE_RANK]
    kept = [action for action in shown if HELP_RANK <= action.rank < LEAVE_RANK]
    others = [action for action in shown if action.rank < HELP_RANK]
    room = KEYS_SHOWN - bool(leaving) - len(kept)
    return (leaving[0] if leaving else None), [*others[: max(room, 0)], *kept]


def fitting(keys: Iterable[tuple[Content, bool]], width: int) -> Content:
    """The keys side by side in at most `width` cells; those that may go (False) go from the last on."""
    chosen = list(keys)
    while chosen and sum(key.cell_length + 2 for key, _ in chosen) - 2 > width:
        droppable = [index for index, (_, stays) in enumerate(chosen) if not stays]
        del chosen[droppable[-1] if droppable else -1]
    return GAP.join(key for key, _ in chosen)
