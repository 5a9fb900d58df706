"""An action: something a key does, and what the footer, the help screen and the palette say of it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType
from textual.keys import format_key

SCOPES = ("app", "page", "runs", "live", "new_run")  # app: everywhere; page: every page that has no keys of its own for it

HELP_RANK = 80  # from here on an action keeps its place in a crowded footer
LEAVE_RANK = 90
_WORDS = {"escape": "esc", **{key: key for key in ("enter", "tab", "space", "backspace", "up", "down", "left", "right")}}


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the registry. `id` is stable: it is what a remapping of keys names."""

    id: str  # such as live.pause
    key: str  # Textual key names, comma separated; the first one is shown
    label: str  # one or two words, for the footer
    help: str  # a sentence, for the help screen and the palette
    method: str  # action_METHOD of the scope's screen or of the app
    scope: str
    shown: bool = True  # may stand in the footer
    rank: int = 50  # its place there, lower first; from LEAVE_RANK on it stands at the right edge

    @property
    def keys(self) -> tuple[str, ...]:
        """Textual's names of its keys."""
        return tuple(self.key.split(","))


def key_name(key: str) -> str:
    """The key as people write it: `slash` is /, `escape` is esc; words stay words."""
    if "+" in key or key in _WORDS:
        return _WORDS.get(key, key)
    return format_key(key)


def of_scope(scope: str) -> tuple[Action, ...]:
    """The scope's actions, by rank."""
    from tui.actions import ACTIONS  # the registry is made of modules that import this one

    return tuple(sorted((action for action in ACTIONS if action.scope == scope), key=lambda action: action.rank))


def bindings(scope: str) -> list[BindingType]:
    """The scope's actions as Textual wants them: `BINDINGS = bindings("live")`."""
    return [Binding(a.key, a.method, a.label, id=a.id, show=False) for a in of_scope(scope)]
