"""What keys do on every screen; `page` rows give way to a screen's own."""

from __future__ import annotations

from tui.actions.base import Action

ACTIONS: tuple[Action, ...] = (
    Action("app.help", "question_mark", "help", "Show every key of this screen.", "help", "app", rank=80),
    Action(
        "app.palette",
        "ctrl+p,colon",
        "palette",
        "Search everything that can be done here.",
        "palette",
        "app",
        shown=False,
        rank=81,
    ),
    Action(
        "app.theme",
        "t",
        "theme",
        "Change between dark, light and the terminal's own colours.",
        "theme",
        "app",
        shown=False,
        rank=82,
    ),
    Action(
        "app.suspend",
        "ctrl+z",
        "to the shell",
        "Go to the shell; `fg` comes back.",
        "suspend_process",
        "app",
        shown=False,
        rank=83,
    ),
    Action(
        "app.leave",
        "ctrl+q,ctrl+c",
        "leave",
        "Leave the app from anywhere; runs go on training.",
        "leave",
        "app",
        shown=False,
        rank=84,
    ),
    Action("page.back", "escape,q", "back", "Go back to where you came from.", "back", "page", rank=99),
)
