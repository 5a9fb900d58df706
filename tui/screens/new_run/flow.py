"""The draft of a new run on its way: held, checked, kept in its file, and what is said about it. The keys are in screen.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.worker import Worker, WorkerState

from engine.errors import InputError
from engine.safe_text import safe_text
from tui import draft_file as drafts
from tui.draft import Checked, Draft
from tui.screens.base import Page
from tui.screens.new_run.checks import said
from tui.screens.new_run.parts import Paper, wrapped
from tui.screens.new_run.step import Step

if TYPE_CHECKING:
    from engine.api import Engine

SAVE_SECONDS = 0.5  # after the last change


class Flow(Page):
    """A page whose steps show the draft and change it."""

    DEFAULT_CSS = """
    Flow > #steps { height: 1fr; }
    Flow > #notice { dock: bottom; margin-bottom: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.draft = Draft()
        self.checked = Checked(None, {})
        self.steps = Vertical(id="steps")  # the step, and in front of it what is asked in its place
        self._kept = self.draft  # as it is in the file
        self._saving: Timer | None = None

    def compose_body(self) -> ComposeResult:
        yield self.steps
        yield Paper(id="notice")

    @property
    def engine(self) -> Engine:
        """The facade of everything that is not a screen."""
        return self.app.engine

    @property
    def step(self) -> Step:
        """The step that is shown, or what is asked in its place."""
        step = self.steps.children[-1]
        assert isinstance(step, Step)
        return step

    # what the steps call

    def change(self, draft: Draft) -> None:
        """Take another draft: check it, show it, keep it."""
        if draft == self.draft:
            return
        self.draft = draft
        self.step.draft_changed()
        self._check()
        self._stop_saving()
        self._saving = self.set_timer(SAVE_SECONDS, self._save)

    def tell(self, text: str, failed: bool = False) -> None:
        """Say something in a line above the keys; it stays until the next step."""
        style = "$text-error" if failed else "$text-muted"
        self.query_one("#notice", Paper).drawing = lambda width: Content.styled("\n".join(wrapped(text, width)[:3]), style)

    def fail(self, error: InputError) -> None:
        """Say what went wrong, and what to do."""
        self.tell(f"✕ {said(error)}", failed=True)

    async def started(self, run_id: str) -> None:
        """The draft has become a run: forget it and show the run."""
        await self.forget()
        self.app.open_run(run_id)

    # the draft's file and its check

    async def load(self) -> None:
        """Take the draft that was kept the last time."""
        try:
            kept = await asyncio.to_thread(drafts.load, self.engine.home)
        except InputError as error:
            kept = None
            self.fail(error)
        if kept is not None:
            self.draft = self._kept = kept
            changes = len(kept.typed)
            values = f"{changes} typed value{'s' if changes != 1 else ''}" if changes else "nothing typed yet"
            self.tell(f"your draft is back: {kept.method}, {values}; x starts anew")

    async def keep(self) -> None:
        """Write the draft to its file, where it is another one."""
        self._stop_saving()
        draft = self.draft
        if draft != self._kept:
            try:
                await asyncio.to_thread(drafts.save, draft, self.engine.home)
            except InputError as error:
                self.fail(error)
            else:
                self._kept = draft

    async def forget(self) -> None:
        """Take the draft's file away."""
        self._stop_saving()
        await asyncio.to_thread(drafts.discard, self.engine.home)
        self._kept = self.draft

    async def check(self) -> None:
        """Check the draft; the step is told where the result is another one."""
        draft = self.draft
        checked = await asyncio.to_thread(draft.checked, Path.cwd())
        if draft is self.draft and checked != self.checked:
            self.checked = checked
            if self.step.is_mounted:
                self.step.draft_checked()
            self.refresh_bindings()

    @work(exclusive=True, group="check", exit_on_error=False)
    async def _check(self) -> None:
        await self.check()

    @work(exclusive=True, group="keep", exit_on_error=False)
    async def _save(self) -> None:
        await self.keep()

    def _stop_saving(self) -> None:
        if self._saving is not None:
            self._saving.stop()

    @on(Worker.StateChanged)
    def _worker_failed(self, event: Worker.StateChanged) -> None:
        if event.state == WorkerState.ERROR:
            self.tell(
                safe_text(f"✕ {type(event.worker.error).__name__}: {event.worker.error} (go back a step and try again)"),
                failed=True,
            )
