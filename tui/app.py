"""The terminal app: a viewer. It starts runs and shows them; it can be closed at any moment and nothing that matters notices."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from tui import theme
from tui.actions.base import bindings
from tui.screens.base import Page

if TYPE_CHECKING:
    from engine.api import Engine

NEW_RUN = "new_run"
LEAVING_SECONDS = 2.0  # to look which runs are still training; leaving must not wait for a slow disk


class DroidTuneApp(App[None]):
    """`engine` is made on first use where none is given; with `open_run` the app shows that run alone, and `q` leaves it."""

    TITLE = "droid-tune"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False  # its own, fed from the registry
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("app"),
        Binding("ctrl+q", "leave", show=False, priority=True),  # also out of a question
    ]

    def __init__(self, engine: Engine | None = None, open_run: str | None = None) -> None:
        colourless = bool(os.environ.get("NO_COLOR"))
        super().__init__(ansi_color=True if colourless else None)  # decided here: greys are colours too
        self._themes = theme.COLOURLESS if colourless else theme.THEMES
        self._engine = engine
        self._first_run = open_run
        self.refresh_seconds = refresh_seconds(os.environ)
        self.once_ready: Callable[[], object] = lambda: None  # called when the first screen stands
        self.glyphs = theme.terminal_glyphs()
        self.animation_level = "none"
        self.register_theme(theme.DARK)
        self.register_theme(theme.LIGHT)
        wanted = theme.first_theme(os.environ)
        self.theme = wanted if wanted in self.available_themes else theme.DARK.name

    @property
    def engine(self) -> Engine:
        """The facade of everything that is not a screen. Its first use loads it: half of the time to the first paint."""
        if self._engine is None:
            from engine.api import Engine

            self._engine = Engine()
        return self._engine

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return theme.VARIABLES

    def get_default_screen(self) -> Screen[None]:
        if self._first_run is not None:
            from tui.screens.live import LiveScreen

            return LiveScreen(self._first_run)
        from tui.screens.runs import RunsScreen

        return RunsScreen()

    def on_ready(self) -> None:
        self.once_ready()

    def open_run(self, run_id: str) -> None:
        """Show the run; coming from the screens of a new run, in their place."""
        from tui.screens.live import LiveScreen

        self._close_new_run()
        if isinstance(self.screen, Page):
            self.screen.opened(run_id)
        self.push_screen(LiveScreen(run_id))

    def new_run(self) -> None:
        """Go through the steps of a new run."""
        from tui.screens.new_run import NewRunScreen

        self.push_screen(NewRunScreen())

    def back(self) -> None:
        """Leave the present screen; the first one leaves the app."""
        if len(self.screen_stack) > 1:
            self.pop_screen()
        else:
            self.call_next(self.action_leave)

    async def action_leave(self) -> None:
        """Leave, and say which runs go on."""
        from tui.leaving import farewell

        try:
            async with asyncio.timeout(LEAVING_SECONDS):
                rows = await (await asyncio.to_thread(lambda: self.engine)).runs()
        except (OSError, TimeoutError) as error:
            message = f"the runs could not be looked at ({str(error) or 'too slow'}); whatever trained goes on: `droid-tune runs`"
            self.exit(message=Text(message))
        else:
            lines = farewell(rows)
            if not lines and self._first_run is None:  # a run that was watched alone says itself how it ended
                lines = ["nothing is training; `droid-tune` opens the list of runs again"]
            self.exit(message=Text("\n".join(lines)) if lines else None)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("help", "palette"):
            return isinstance(self.screen, Page) and self.screen.HAS_HELP
        return True

    def action_help(self) -> None:
        """Show every key of the screen."""
        from tui.screens.help import HelpScreen

        if isinstance(self.screen, Page):
            self.push_screen(HelpScreen(self.screen))

    def action_palette(self) -> None:
        """Search the actions of the screen."""
        from tui.palette import palette

        self.push_screen(palette())

    def action_theme(self) -> None:
        """Go to the next theme."""
        place = self._themes.index(self.theme) if self.theme in self._themes else -1
        self.theme = self._themes[(place + 1) % len(self._themes)]

    def _close_new_run(self) -> None:
        while len(self.screen_stack) > 1 and isinstance(self.screen, Page) and self.screen.SCOPE == NEW_RUN:
            self.pop_screen()


def refresh_seconds(environment: Mapping[str, str]) -> float:
    """The least seconds between two paints of what moves by itself: DROID_TUNE_REFRESH, else 1. What a key does is painted at
    once, and so is news after so long a silence.

    Raises ValueError where it is no time.
    """
    value = environment.get("DROID_TUNE_REFRESH")
    if not value:
        return 1.0
    seconds = float(value)
    if not 0.05 <= seconds <= 60:
        raise ValueError(f"DROID_TUNE_REFRESH is {value}: give seconds between 0.05 and 60")
    return seconds
