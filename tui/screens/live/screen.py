"""LiveScreen: one run, watched. Its feed says when there is news; it takes a snapshot at its own pace, which it hands to the view
that is open. While there is no news, nothing is done: no timer ticks.

A viewer: whatever happens here, the run goes on. Commands are sent through engine.api and shown as the journal answers them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.timer import Timer

from engine.api import Run
from engine.errors import InputError
from engine.safe_text import safe_text
from tui.actions.base import Action, bindings
from tui.feed import RunFeed
from tui.pace import Pace
from tui.screens.base import Page
from tui.screens.confirm import ConfirmScreen
from tui.screens.live.commands import LIVE, PAUSED, RESUMABLE, Request
from tui.screens.live.config import Config
from tui.screens.live.curves import Curves
from tui.screens.live.groups import Groups
from tui.screens.live.log import Log
from tui.screens.live.overview import Overview
from tui.screens.live.state_lines import where
from tui.screens.live.system import System
from tui.screens.live.text import AMBER, FOCUS, MUTED, line, one_line
from tui.screens.live.view import Block, View
from tui.snapshot import RunSnapshot
from tui.theme import drawn
from tui.widgets.painted import Switcher

VIEWS: tuple[type[View], ...] = (Overview, Curves, Groups, System, Log, Config)
WAITED_FOR_SECONDS = 0.2
COST_SHARE = 150  # pictures take at most one part in so many of the time of a core: those that cost more come later,
LATEST = 2.0  # up to so many times the pace
SETTLED_SECONDS = 6.0  # that a command's answer stays on the screen
_PAIRS = {  # actions whose footer entry stands for a neighbour too
    "live.overview": ("1-6", "views"),
    "live.next": ("[ ]", "metric"),
    "live.down": ("j k", "line"),
    "live.later": ("h l", "step"),
}
_WORDS = {("live.next", "groups"): "prompt", ("live.down", "groups"): "answer"}


class LiveScreen(Page):
    """The run with that id; six views, 1 to 6."""

    SCOPE = "live"
    BINDINGS: ClassVar[list[BindingType]] = bindings("live")
    DEFAULT_CSS = """
    LiveScreen #notice { height: 1; display: none; }
    LiveScreen #views { height: 1fr; }
    LiveScreen Chart > .chart--series-0 { color: $reward; }
    LiveScreen Chart > .chart--series-1 { color: $accent; }
    """

    class News(Message):
        """The feed knows more than it did."""

    snapshot: reactive[RunSnapshot | None] = reactive(None, layout=False, repaint=False)
    request: reactive[Request | None] = reactive(None, layout=False, repaint=False)

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id
        self.feed: RunFeed | None = None
        self.run: Run | None = None
        self._views = tuple(make() for make in VIEWS)
        self._pace = Pace(self, self._take, lambda: self.pace_seconds)  # of the snapshots
        self._settling: Timer | None = None  # until a command's answer leaves the screen
        self._trouble = ""
        self._used_seconds = time.thread_time()
        self._picture_seconds = 0.0  # of CPU, from the last but one to the last: to take it, to lay it out, to draw it
        self._keys_for: tuple[str, str] | None = None

    def compose_body(self) -> ComposeResult:
        yield Block(id="notice")
        with Switcher(id="views", initial=Overview.TITLE):
            yield from self._views

    def on_mount(self) -> None:
        super().on_mount()
        self.set_where(safe_text(self.run_id), "opening")
        self.run_worker(self._open_run(), group="attach", exit_on_error=False)

    def on_unmount(self) -> None:
        if self.feed is not None:
            self.feed.close()

    def on_screen_resume(self) -> None:
        self.drain()

    @property
    def view(self) -> View:
        """The one that is open."""
        current = self.query_one("#views", Switcher).current
        return next(view for view in self._views if view.id == current)

    @property
    def pace_seconds(self) -> float:
        """The least time between two snapshots: short while somebody waits, for the journal's end or a command's answer."""
        loading = self.snapshot is None or self.snapshot.around.loaded < 1
        asking = self.request is not None and self._settling is None
        refresh = self.app.refresh_seconds
        if loading or asking:
            return min(WAITED_FOR_SECONDS, refresh)
        return max(refresh, min(COST_SHARE * self._picture_seconds, LATEST * refresh))

    def on_live_screen_news(self) -> None:
        """Take it, now or once the last snapshot is old enough; a screen that lies below another waits until it is on top."""
        self._pace.news()

    def _take(self) -> None:
        if self.is_active:
            self.drain()

    def drain(self) -> None:
        """Take what the feed has, where it has something new."""
        if self.feed is not None and (self.snapshot is None or self.feed.version != self.snapshot.version):
            self._pace.taken()
            self.snapshot = self.feed.snapshot()
            used = time.thread_time()
            self._picture_seconds, self._used_seconds = used - self._used_seconds, used
            self.feed.pause(self.pace_seconds)

    def watch_snapshot(self, snapshot: RunSnapshot | None) -> None:
        if snapshot is None:
            return
        self._show_where(snapshot)
        self.view.show(snapshot)
        self._show_notice()
        self._show_keys(snapshot)

    def watch_request(self) -> None:
        if self._settling is not None:
            self._settling.stop()
            self._settling = None
        self._pace.changed()
        if self.feed is not None:
            self.feed.pause(self.pace_seconds)
        self._show_notice()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What the run's state and the open view make of a key."""
        state = self.snapshot.state if self.snapshot is not None else ""
        match action:
            case "pause":
                return state in LIVE
            case "checkpoint" | "stop":
                return state in LIVE
            case "resume":
                return state in RESUMABLE
            case "next" | "previous" | "down" | "up" | "later" | "earlier" | "fold" | "page_down" | "page_up" | "first" | "last":
                return self.is_mounted and action in self.view.METHODS
        return True

    def label_of(self, action: Action) -> str:
        """The footer's word: what P does now, what [ ] and j k move in this view."""
        if action.id == "live.pause" and self.snapshot is not None and self.snapshot.state in PAUSED:
            return "go on"
        return _WORDS.get((action.id, self.view.TITLE)) or (_PAIRS[action.id][1] if action.id in _PAIRS else action.label)

    def _key(self, action: Action) -> Content:
        """The footer's entry; one stands for both keys of a pair."""
        if action.id not in _PAIRS:
            return super()._key(action)
        return line((drawn(_PAIRS[action.id][0], self.app.glyphs), FOCUS), " ", (self.label_of(action), MUTED))

    # Views

    def action_overview(self) -> None:
        self._open(Overview)

    def action_curves(self) -> None:
        self._open(Curves)

    def action_groups(self) -> None:
        self._open(Groups)

    def action_system(self) -> None:
        self._open(System)

    def action_log(self) -> None:
        self._open(Log)

    def action_config(self) -> None:
        self._open(Config)

    def action_next(self) -> None:
        self.view.move("next")

    def action_previous(self) -> None:
        self.view.move("previous")

    def action_down(self) -> None:
        self.view.move("down")

    def action_up(self) -> None:
        self.view.move("up")

    def action_later(self) -> None:
        self.view.move("later")

    def action_earlier(self) -> None:
        self.view.move("earlier")

    def action_fold(self) -> None:
        self.view.move("fold")

    def action_page_down(self) -> None:
        self.view.move("page_down")

    def action_page_up(self) -> None:
        self.view.move("page_up")

    def action_first(self) -> None:
        self.view.move("first")

    def action_last(self) -> None:
        self.view.move("last")

    # Commands

    def action_pause(self) -> None:
        if self.run is not None and self.snapshot is not None:
            if self.snapshot.state in PAUSED:
                self._send("resume", self.run.resume)
            else:
                self._send("pause", self.run.pause)

    def action_checkpoint(self) -> None:
        if self.run is not None:
            self._send("checkpoint", self.run.checkpoint)

    def action_resume(self) -> None:
        if self.run is not None:
            self._send("resume", self.run.resume)

    def action_stop(self) -> None:
        if self.run is not None:
            question = f"Stop {self.run_id}?\nIt writes a checkpoint first; resuming goes on from there, to the same figures."
            self.app.push_screen(ConfirmScreen(question, word=self.run.id), self._stop_if)

    def _forget(self) -> None:
        self.request = None

    def _stop_if(self, sure: bool | None) -> None:
        if sure and self.run is not None:
            self._send("stop", self.run.stop)

    def _send(self, verb: str, command: Callable[[], Awaitable[str]]) -> None:
        if self.snapshot is not None:
            self.request = Request(verb, frozenset(self.snapshot.commands), self.snapshot.seq)
            self.run_worker(self._ask(self.request, command), group="command", exit_on_error=False)

    async def _ask(self, request: Request, command: Callable[[], Awaitable[str]]) -> None:
        try:
            outcome = "a worker was started" if await command() == "started" else ""
        except (InputError, OSError) as error:
            outcome = str(error)
        if outcome and self.request == request:
            self.request = replace(request, outcome=f"{request.verb}: {outcome}")
        self.drain()

    async def _open_run(self) -> None:
        try:
            engine = await asyncio.to_thread(lambda: self.app.engine)
            self.run = await engine.attach(self.run_id)
        except (InputError, OSError) as error:
            self._trouble = str(error)
            self.set_where(safe_text(self.run_id), "cannot be opened")
            self._show_notice()
            return
        self.run_id = self.run.id
        self.feed = RunFeed(self.run.record, self._tell).start()

    def _tell(self) -> None:
        """The feed's thread calls it; where a snapshot is going to be taken anyway, there is nothing to say."""
        if not self._pace.is_waiting:
            self.post_message(self.News())

    # Painting

    def _open(self, view: type[View]) -> None:
        self.query_one("#views", Switcher).current = view.TITLE
        if self.snapshot is not None:
            self._show_where(self.snapshot)
            self.view.show(self.snapshot)
        self.refresh_bindings()

    def _show_where(self, snapshot: RunSnapshot) -> None:
        self.set_where(*where(self.run_id, self.view.TITLE, snapshot, self.size.width - 2, self.app.glyphs))

    def _show_keys(self, snapshot: RunSnapshot) -> None:
        """The footer follows the state; a tick that changes nothing in it leaves it alone."""
        if (keys := (snapshot.state, self.view.TITLE)) != self._keys_for:
            self._keys_for = keys
            self.refresh_bindings()

    def _show_notice(self) -> None:
        """One line under the header for what was asked of the worker, or for what stands in the way."""
        text = self._trouble
        if not text and self.request is not None and self.snapshot is not None:
            text = self.request.line(self.snapshot.commands)
            if self._settling is None and self.request.is_settled(self.snapshot.commands):
                self._settling = self.set_timer(SETTLED_SECONDS, self._forget)
        notice = self.query_one("#notice", Block)
        notice.display = bool(text)
        notice.put([line((one_line(text, max(self.size.width - 2, 1)), AMBER))] if text else [Content("")])
