"""Runs, the first screen: what is training, and how is it going?"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.widgets import Static
from textual.worker import Worker, WorkerState

from engine.safe_text import safe_text
from tui.actions.base import bindings
from tui.machine_line import demo_config, look
from tui.pace import Readings
from tui.screens.base import Page, plain
from tui.screens.runs_table import RunTable
from tui.theme import SELFTEST_STYLES, drawn

if TYPE_CHECKING:
    from textual.widgets import Input

    from engine.selftest_checks import Outcome
    from tui.run_rows import RowReader, RunRow

REFRESH_SECONDS = 2.0
LOOK_SECONDS = 5.0  # between two looks at the machine's memory and at the last self-test
COST_SHARE = 5  # a read may take one part in so many of the time: a slow disk is read less often
RESUMABLE = ("lost", "stopped", "failed")
READING, STARTING = "reading", "starting"  # groups of background work

WHAT_IT_IS = "droid-tune fine-tunes language models on this machine with rewards, and shows whether they learn."
FIRST_STEPS = (("d", "watch the demo model learn to think (about a minute, offline)"), ("n", "start your own run"))


class RunsScreen(Page):
    """All runs, the newest first. The list is read in the background; a failed read keeps the old one and says so."""

    SCOPE = "runs"
    BINDINGS: ClassVar[list[BindingType]] = bindings("runs")
    VERTICAL_BREAKPOINTS = [(0, "-short"), (16, "-tall")]  # noqa: RUF012 - Textual declares it so
    DEFAULT_CSS = """
    RunsScreen RunTable { margin-top: 1; }
    RunsScreen #empty { display: none; height: 1fr; padding: 1; }
    RunsScreen.-empty #empty { display: block; }
    RunsScreen.-empty RunTable { display: none; }
    RunsScreen #note { height: auto; max-height: 3; }
    RunsScreen #selftest { height: auto; max-height: 2; }
    RunsScreen.-short #selftest { display: none; }
    RunsScreen #filter { height: 1; border: none; padding: 0; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[RunRow] | None = None  # None: not read yet
        self._reader: RowReader | None = None
        self._filter = ""
        self._machine = ""
        self._reads = Readings(REFRESH_SECONDS, COST_SHARE)
        self._looks = Readings(LOOK_SECONDS, 1)  # at the machine
        self._reading_failed = False
        self._wanted = False
        self._tested = "", ""  # the self-test's line and its style

    def compose_body(self) -> ComposeResult:
        yield RunTable(self.app.glyphs)
        yield Static(first_steps(), id="empty")
        yield Static(plain("looking for runs", "$text-muted"), id="note")
        yield Static(id="selftest")

    def on_mount(self) -> None:
        self.set_where("runs")
        self.table.focus()
        self.set_interval(REFRESH_SECONDS, self._tick)
        self.call_after_refresh(self.load)  # what is known is painted first

    def on_screen_resume(self) -> None:
        if self._rows is not None:
            self.load()

    @property
    def table(self) -> RunTable:
        return self.query_one(RunTable)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if not self.is_mounted:
            return True
        marked = self.table.marked
        match action:
            case "open":
                return marked is not None and self._field() is None  # there, enter keeps the filter
            case "first" | "last" | "up" | "down":
                return marked is not None
            case "resume":
                return marked is not None and marked.state in RESUMABLE
            case "filter":
                return bool(self._rows) and self._field() is None
            case "clear":
                return bool(self._filter) or self._field() is not None
        return True

    def opened(self, run_id: str) -> None:
        self.table.mark(run_id)

    # what keys do

    def action_down(self) -> None:
        self._move(self.table.cursor + 1)

    def action_up(self) -> None:
        self._move(self.table.cursor - 1)

    def action_first(self) -> None:
        self._move(0)

    def action_last(self) -> None:
        self._move(len(self.table.rows))

    def action_open(self) -> None:
        if self.table.marked is not None:
            self.app.open_run(self.table.marked.id)

    def action_new(self) -> None:
        self.app.new_run()

    def action_demo(self) -> None:
        if self._is_busy(STARTING):
            return  # pressed twice
        self._say("starting the demo: a worker of its own trains the embedded model")
        self._start_demo()

    def action_resume(self) -> None:
        if self.table.marked is not None and not self._is_busy(STARTING):
            self._say(f"{self.table.marked.id}: resume requested")
            self._resume(self.table.marked.id)

    async def action_filter(self) -> None:
        from textual.widgets import Input

        if self._field() is None:
            await self.mount(
                Input(self._filter, placeholder="part of a name, method, model or state", id="filter"), before="#keys"
            )
        self.query_one("#filter").focus()

    async def action_clear(self) -> None:
        self._filter = ""
        await self._close_field()
        self._show()

    async def action_quit(self) -> None:
        await self.app.action_leave()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._filter = event.value
        self._show()

    async def on_input_submitted(self) -> None:
        await self._close_field()
        self._show()

    # background work; what it finds is shown by the event loop alone

    def _tick(self) -> None:
        if self.is_current and self._reads.is_due:
            self.load()

    def load(self) -> None:
        """Read the list anew; where that is under way already, once more after it."""
        self._wanted = True
        if not self._is_busy(READING):
            self._read()

    @work(group=READING, exit_on_error=False)
    async def _read(self) -> None:
        from tui.run_rows import RowReader, row_of

        while self._wanted:
            self._wanted = False
            started = monotonic()
            engine = await asyncio.to_thread(lambda: self.app.engine)
            first = self._reader is None
            reader = self._reader = self._reader or RowReader(engine.home)
            summaries = await asyncio.to_thread(reader.summaries)
            if first:
                self._take([row_of(summary) for summary in summaries])  # their journals' ends take as long again
            self._take(await asyncio.to_thread(reader.rows, summaries))
            self._reads.done(monotonic() - started)
            if self._looks.age_seconds >= LOOK_SECONDS:
                self._machine, tested = await asyncio.to_thread(look, engine.home)
                self._looks.read()
                self._show_where()
                self._show_selftest(*tested)

    @work(group=STARTING, exit_on_error=False)
    async def _start_demo(self) -> None:
        engine = await asyncio.to_thread(lambda: self.app.engine)
        run = await engine.start(await asyncio.to_thread(demo_config))
        self._say("")
        self.app.open_run(run.id)

    @work(group=STARTING, exit_on_error=False)
    async def _resume(self, run_id: str) -> None:
        run = await self.app.engine.attach(run_id)
        self._say(f"{run_id}: resume {await run.resume()}")
        self.load()

    def _is_busy(self, group: str) -> bool:
        return any(worker.group == group and not worker.is_finished for worker in self.workers if worker.node is self)

    @on(Worker.StateChanged)
    def _failed(self, event: Worker.StateChanged) -> None:
        if event.state is not WorkerState.ERROR:
            return
        if event.worker.group != READING:
            self._say(str(event.worker.error), "$text-error")
            return
        self._reading_failed = True
        age = f"; the list is {self._reads.age_seconds:.0f} s old" if self._rows is not None else ""
        self._say(f"the runs cannot be read: {event.worker.error}{age}", "$text-warning")

    # showing

    def _take(self, rows: list[RunRow]) -> None:
        self._reads.read()
        if rows == self._rows and not self._reading_failed:
            return
        if self._rows is None or self._reading_failed:
            self._reading_failed = False
            self._say("")
        self._rows = rows
        self._show()

    def _show(self) -> None:
        every = self._rows or []
        self.set_class(self._rows is not None and not every, "-empty")
        self.table.show([row for row in every if not self._filter or row.matches(self._filter)])
        self._show_where()
        self.refresh_bindings()

    def _show_where(self) -> None:
        every, shown = self._rows or [], len(self.table.rows)
        filtered = f" › {safe_text(self._filter)} ({shown} of {len(every)})" if self._filter else ""
        training = sum(row.is_training for row in every)
        right = [self._machine, f"{training} training" if training else ""]
        self.set_where(drawn(f"runs{filtered}", self.app.glyphs), safe_text("   ".join(filter(None, right))))

    def _show_selftest(self, outcome: Outcome, line: str) -> None:
        sign, style = SELFTEST_STYLES[outcome]
        shown = plain(drawn(sign + safe_text(line), self.app.glyphs), style)
        if (shown.plain, style) != self._tested:  # an update lays the screen out anew
            self._tested = shown.plain, style
            self.query_one("#selftest", Static).update(shown)

    def _move(self, to: int) -> None:
        self.table.move(to)
        self.refresh_bindings()  # another run may be resumed or not

    def _say(self, text: str, style: str = "$text-muted") -> None:
        self.query_one("#note", Static).update(plain(safe_text(text), style))

    def _field(self) -> Input | None:
        found = self.query("#filter")
        return found.first() if found else None  # type: ignore[return-value]

    async def _close_field(self) -> None:
        field = self._field()
        if field is not None:
            await field.remove()
        self.table.focus()


def first_steps() -> Content:
    """What the tool does in one sentence, and the two ways to begin."""
    steps = [Content.assemble("  ", (key, "bold $text-accent"), "  ", text) for key, text in FIRST_STEPS]
    return Content("\n").join([Content(WHAT_IT_IS), Content(""), *steps])
