"""The screen that leads through the five steps of a new run. It holds the draft; the steps show it and change it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Input
from textual.worker import Worker, WorkerState

from engine.errors import InputError
from engine.safe_text import safe_text
from tui import draft as drafts
from tui.actions.base import Action, bindings
from tui.draft import Checked, Draft
from tui.screens.base import Page
from tui.screens.new_run.checks import said
from tui.screens.new_run.configure import ConfigureStep
from tui.screens.new_run.data import DataStep
from tui.screens.new_run.estimate import EstimateStep
from tui.screens.new_run.method import MethodStep
from tui.screens.new_run.parts import Entry, Paper, Step, wrapped
from tui.screens.new_run.review import ReviewStep
from tui.theme import drawn

if TYPE_CHECKING:
    from engine.api import Engine

STEPS: tuple[type[Step], ...] = (MethodStep, DataStep, ConfigureStep, EstimateStep, ReviewStep)
SAVE_SECONDS = 0.5  # after the last change


class NewRunScreen(Page):
    """Method, model and data, configure, estimate, review, start. Only keys; what is typed is kept until a run has started."""

    SCOPE = "new_run"
    BINDINGS: ClassVar[list[BindingType]] = bindings("new_run")
    DEFAULT_CSS = """
    NewRunScreen > #steps { height: 1fr; }
    NewRunScreen > #notice { dock: bottom; margin-bottom: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.draft = Draft()
        self.checked = Checked(None, {})
        self.place = 0
        self._begun = False
        self._kept = self.draft  # as it is in the file
        self._saving: Timer | None = None
        self.last_field = -1  # the one that had the focus last, in this step

    def compose_body(self) -> ComposeResult:
        yield Vertical(id="steps")
        yield Paper(id="notice")

    @on(events.Mount)
    async def _begin(self) -> None:
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
        await self._go(0)

    @property
    def engine(self) -> Engine:
        """The facade of everything that is not a screen."""
        return self.app.engine

    @property
    def step(self) -> Step:
        """The step that is shown."""
        return self.query_one("#steps").query_one(Step)

    # what the steps call

    def change(self, draft: Draft) -> None:
        """Take another draft: check it, show it, keep it."""
        if draft == self.draft:
            return
        self.draft = draft
        self.step.draft_changed()
        self._check()
        if self._saving is not None:
            self._saving.stop()
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
        self._stop_saving()
        await asyncio.to_thread(drafts.discard, self.engine.home)
        self._kept = self.draft
        self.app.open_run(run_id)

    # keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if not self._begun:
            return action in ("leave", "step_back")
        fields = isinstance(self.step, DataStep | ConfigureStep)
        match action:
            case "next_field" | "previous_field":
                return fields
            case "sample":
                return isinstance(self.step, DataStep)
            case "save":
                return isinstance(self.step, ReviewStep)
            case "reset":
                return isinstance(self.focused, Entry) and self.draft.changed(self.focused.field.key)
            case "discard":
                return isinstance(self.step, MethodStep) and self.draft != Draft()
            case _:
                return super().check_action(action, parameters)

    def label_of(self, action: Action) -> str:
        in_field = isinstance(self.focused, Entry)
        match action.id:
            case "new_run.next" if in_field:
                return "done"
            case "new_run.next" if self.place == len(STEPS) - 1:
                return "start"
            case "new_run.back" if in_field:
                return "out of the field"
            case "new_run.field" if in_field:
                return "next field"
            case _:
                return action.label

    async def action_next(self) -> None:
        step = self.step
        self._leave_field()
        await self._check_now()
        obstacle = await step.obstacle()
        if obstacle:
            self.tell(f"✕ {obstacle}", failed=True)
        elif isinstance(step, ReviewStep):
            step.start()
        else:
            await self._go(self.place + 1)

    async def action_step_back(self) -> None:
        if isinstance(self.focused, Entry):
            self._leave_field()
        elif self.place > 0:
            await self._go(self.place - 1)
        else:
            await self.action_leave()

    async def action_leave(self) -> None:
        self._stop_saving()
        await self._keep()
        self.app.back()

    def action_next_field(self) -> None:
        self._to_field(1)

    def action_previous_field(self) -> None:
        self._to_field(-1)

    def action_down(self) -> None:
        self._move(1)

    def action_up(self) -> None:
        self._move(-1)

    def action_page_down(self) -> None:
        self.step.move(max(self.size.height // 2, 1))

    def action_page_up(self) -> None:
        self.step.move(-max(self.size.height // 2, 1))

    def action_reset(self) -> None:
        entry = self.focused
        if isinstance(entry, Entry):
            entry.show(self.draft.start(entry.field.key))
            self.change(self.draft.with_text(entry.field.key, self.draft.start(entry.field.key)))

    def action_sample(self) -> None:
        if isinstance(self.step, DataStep):
            self.step.make_sample()

    def action_save(self) -> None:
        if isinstance(self.step, ReviewStep):
            self.step.save()

    async def action_discard(self) -> None:
        self.change(Draft())
        self._stop_saving()
        await asyncio.to_thread(drafts.discard, self.engine.home)
        self._kept = self.draft
        self.tell("begun anew")
        self.refresh_bindings()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if isinstance(event.input, Entry) and event.value != safe_text(self.draft.text(event.input.field.key)):
            self.change(self.draft.with_text(event.input.field.key, event.value))

    @on(Input.Submitted)
    def _confirmed(self) -> None:
        self._leave_field()

    def _leave_field(self) -> None:
        entries = self.step.entries()
        if isinstance(self.focused, Entry) and self.focused in entries:
            self.last_field = entries.index(self.focused)
        self.set_focus(self.step.rest)

    def _to_field(self, by: int) -> None:
        entries = self.step.entries()
        if not entries:
            return
        focused = self.focused
        if isinstance(focused, Entry):
            place = entries.index(focused)
        else:
            place = max(self.last_field, -1 if by > 0 else 0)  # before the first, or back from the first to the last
        entries[(place + by) % len(entries)].focus()

    def _move(self, by: int) -> None:
        if isinstance(self.focused, Entry):
            self._to_field(by)
        else:
            self.step.move(by)

    @work(exclusive=True, group="check", exit_on_error=False)
    async def _check(self) -> None:
        await self._check_now()

    async def _check_now(self) -> None:
        draft = self.draft
        checked = await asyncio.to_thread(draft.checked, Path.cwd())
        if draft is self.draft and checked != self.checked:
            self.checked = checked
            self.step.draft_checked()
            self.refresh_bindings()

    @work(exclusive=True, group="keep", exit_on_error=False)
    async def _save(self) -> None:
        await self._keep()

    async def _keep(self) -> None:
        draft = self.draft
        if draft != self._kept:
            try:
                await asyncio.to_thread(drafts.save, draft, self.engine.home)
            except InputError as error:
                self.fail(error)
            else:
                self._kept = draft

    def _stop_saving(self) -> None:
        if self._saving is not None:
            self._saving.stop()

    async def _go(self, place: int) -> None:
        """Show another step."""
        if self._begun:
            self.tell("")
        self.place, self.last_field = place, -1
        step = STEPS[place]()
        holder = self.query_one("#steps")
        await holder.remove_children()
        await holder.mount(step)
        self._begun = True
        self.set_focus(step.rest)
        self.set_where(drawn(f"new run › {step.TITLE}", self.app.glyphs), f"{place + 1} of {len(STEPS)}")
        await self._check_now()
        step.draft_checked()
        self.refresh_bindings()

    @on(Worker.StateChanged)
    def _worker_failed(self, event: Worker.StateChanged) -> None:
        if event.state == WorkerState.ERROR:
            self.tell(
                safe_text(f"✕ {type(event.worker.error).__name__}: {event.worker.error} (go back a step and try again)"),
                failed=True,
            )
