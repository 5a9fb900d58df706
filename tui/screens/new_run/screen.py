"""The screen that leads through the five steps of a new run. It holds the draft; the steps show it and change it."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.binding import BindingType
from textual.widgets import Input

from engine.safe_text import safe_text
from tui.actions.base import Action, bindings
from tui.draft import Draft
from tui.screens.new_run.configure import ConfigureStep
from tui.screens.new_run.data import DataStep
from tui.screens.new_run.estimate import EstimateStep
from tui.screens.new_run.fields import Entry
from tui.screens.new_run.flow import Flow
from tui.screens.new_run.forecast import EstimatedStep
from tui.screens.new_run.mapping import MappingAside
from tui.screens.new_run.method import MethodStep
from tui.screens.new_run.opening import OpeningAside
from tui.screens.new_run.profile import ProfileAside
from tui.screens.new_run.review import ReviewStep
from tui.screens.new_run.step import Aside, Step
from tui.theme import drawn

STEPS: tuple[type[Step], ...] = (MethodStep, DataStep, ConfigureStep, EstimateStep, ReviewStep)
ASIDES: tuple[type[Aside], ...] = (ProfileAside, MappingAside, OpeningAside)
OF_STEPS = frozenset().union(*(each.ACTIONS for each in (*STEPS, *ASIDES)))  # what works on some steps alone


class NewRunScreen(Flow):
    """Method, model and data, configure, estimate, review, start. Only keys; what is typed is kept until a run has started."""

    SCOPE = "new_run"
    BINDINGS: ClassVar[list[BindingType]] = bindings("new_run")

    def __init__(self) -> None:
        super().__init__()
        self.place = 0
        self._begun = False

    @on(events.Mount)
    async def _begin(self) -> None:
        await self.load()
        await self._go(0)

    # keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if not self._begun:
            return action in ("leave", "step_back")
        if action == "reset":
            return isinstance(self.step, MappingAside) or (
                isinstance(self.focused, Entry) and self.draft.changed(self.focused.field.key)
            )
        if action == "discard" and self.draft == Draft():
            return False
        if action == "measure":
            return isinstance(self.step, EstimatedStep) and self.step.can_measure
        if action in OF_STEPS:
            return action in self.step.ACTIONS
        return super().check_action(action, parameters)

    def label_of(self, action: Action) -> str:
        if not self._begun:
            return action.label
        step, in_field = self.step, isinstance(self.focused, Entry)
        match action.id:
            case _ if isinstance(step, Aside) and action.id in step.labels:
                return step.labels[action.id]
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
        step.leave_field()
        if isinstance(step, Aside):
            if await step.take():
                await self._close(step)
            return
        await self.check()
        obstacle = await step.obstacle()
        if obstacle:
            self.tell(f"✕ {obstacle}", failed=True)
        elif isinstance(step, ReviewStep):
            step.start()
        else:
            await self._go(self.place + 1)

    async def action_step_back(self) -> None:
        step = self.step
        if isinstance(step, Aside):
            await self._close(step)
        elif isinstance(self.focused, Entry):
            step.leave_field()
        elif self.place > 0:
            await self._go(self.place - 1)
        else:
            await self.action_leave()

    async def action_leave(self) -> None:
        await self.keep()
        self.app.back()

    def action_next_field(self) -> None:
        self.step.to_field(1)

    def action_previous_field(self) -> None:
        self.step.to_field(-1)

    def action_down(self) -> None:
        self.step.move(1)

    def action_up(self) -> None:
        self.step.move(-1)

    def action_page_down(self) -> None:
        self.step.page(max(self.size.height // 2, 1))

    def action_page_up(self) -> None:
        self.step.page(-max(self.size.height // 2, 1))

    def action_reset(self) -> None:
        entry, step = self.focused, self.step
        if isinstance(step, Aside):
            step.reset()
        elif isinstance(entry, Entry):
            entry.show(self.draft.start(entry.field.key))
            self.change(self.draft.with_text(entry.field.key, self.draft.start(entry.field.key)))

    def action_sample(self) -> None:
        if isinstance(self.step, DataStep):
            self.step.make_sample()

    async def action_profile(self) -> None:
        await self._ask(ProfileAside())

    async def action_columns(self) -> None:
        await self._ask(MappingAside())

    async def action_open_config(self) -> None:
        await self._ask(OpeningAside())

    def action_later(self) -> None:
        self._choose(1)

    def action_earlier(self) -> None:
        self._choose(-1)

    def action_origins(self) -> None:
        if isinstance(self.step, ReviewStep):
            self.step.toggle_origins()

    def action_measure(self) -> None:
        if isinstance(self.step, EstimatedStep):
            self.step.measure()

    def action_save(self) -> None:
        if isinstance(self.step, ReviewStep):
            self.step.save()

    async def action_discard(self) -> None:
        self.change(Draft())
        await self.forget()
        self.tell("begun anew")
        self.refresh_bindings()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if isinstance(event.input, Entry) and event.value != safe_text(self.draft.text(event.input.field.key)):
            self.change(self.draft.with_text(event.input.field.key, event.value))

    @on(Input.Submitted)
    def _confirmed(self) -> None:
        self.step.leave_field()

    def _choose(self, by: int) -> None:
        if isinstance(self.step, Aside):
            self.step.choose(by)

    async def _go(self, place: int) -> None:
        """Show another step."""
        if self._begun:
            self.tell("")
        self.place = place
        step = STEPS[place]()
        with self.app.batch_update():
            await self.steps.mount(step)  # first, for there to be a step at any moment
            for earlier in self.steps.children[:-1]:
                await earlier.remove()
        self._begun = True
        await self._show_step(step)

    async def _ask(self, aside: Aside) -> None:
        """Show the question in the place of its step."""
        self.tell("")
        title = self.step.TITLE
        self.step.display = False
        await self.steps.mount(aside)
        self.set_focus(aside.rest)
        self._say_where(f"{title} › {aside.TITLE}")
        self.refresh_bindings()

    async def _close(self, aside: Aside) -> None:
        """Show the step again that the question was asked from."""
        await aside.remove()
        self.step.display = True
        self.step.draft_changed()
        await self._show_step(self.step)

    async def _show_step(self, step: Step) -> None:
        self.set_focus(step.rest)
        self._say_where(step.TITLE)
        await self.check()
        step.draft_checked()
        self.refresh_bindings()

    def _say_where(self, title: str) -> None:
        self.set_where(drawn(f"new run › {title}", self.app.glyphs), f"{self.place + 1} of {len(STEPS)}")
