"""Step 1: which method, and what it does differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine import methods
from engine.errors import InputError
from engine.estimate import short
from engine.figures import number, size
from engine.method_costs import MethodCost
from engine.methods import Method
from tui.draft import Draft
from tui.forms import show
from tui.screens.base import ends
from tui.screens.new_run.parts import Paper, Rows, Scroll, columns, wrapped
from tui.screens.new_run.profile import first_tried_on
from tui.screens.new_run.step import Step


class MethodStep(Step):
    """The list of methods, the marked one explained below it."""

    TITLE = "method"
    ACTIONS: ClassVar[frozenset[str]] = frozenset({"discard", "profile", "open_config"})
    DEFAULT_CSS = """
    MethodStep > Rows { margin: 1 0; max-height: 40%; }
    """

    def compose(self) -> ComposeResult:
        table = methods.METHODS
        yield Rows([method_row(method) for method in table.values()], list(table).index(self.flow.draft.method))
        with Scroll(can_focus=False):
            yield Paper()

    def __init__(self) -> None:
        super().__init__()
        self._costs: Mapping[str, MethodCost] = {}

    def on_mount(self) -> None:
        self._explain()

    def draft_checked(self) -> None:
        self._count()

    @work(exclusive=True, group="costs", exit_on_error=False)
    async def _count(self) -> None:
        """What each method would cost in the draft's place; nothing where the draft cannot be estimated, as later steps say."""
        config = self.flow.checked.ready
        try:
            found = () if config is None else await self.flow.engine.method_costs(config)
        except InputError:
            found = ()
        self._costs = {row.method: row for row in found}
        self._explain()

    @property
    def rest(self) -> Widget:
        return self.query_one(Rows)

    @on(Rows.Moved)
    def _moved(self) -> None:
        chosen = list(methods.METHODS)[self.query_one(Rows).index]
        self.flow.change(self.flow.draft.with_method(chosen))
        self.query_one(Scroll).scroll_home(animate=False)
        self._explain()

    def draft_changed(self) -> None:
        self.query_one(Rows).index = list(methods.METHODS).index(self.flow.draft.method)
        self._explain()

    def page(self, rows: int) -> None:
        self.query_one(Scroll).scroll_relative(y=rows // 2, animate=False)  # the list is short, and what is below it is not

    def _explain(self) -> None:
        draft, cost = self.flow.draft, self._costs.get(self.flow.draft.method)
        self.query_one(Paper).drawing = lambda width: explanation(draft, width, cost)


def method_row(method: Method) -> str:
    """A method in a line."""
    longest = max(map(len, methods.METHODS))
    return f"{method.id:<{longest}}   {method.summary}"


def explanation(draft: Draft, width: int, cost: MethodCost | None = None) -> Content:
    """What the draft's method is, does and needs, and what it is first tried on."""
    method = methods.method(draft.method)
    if method.objective is None:
        options = ("defaults", "nothing to set: it has no rewards and no objective")
    else:  # against grpo, or all of grpo's own
        shown = (method.changed or method.defaults).items()
        values = ", ".join(f"{name} {'no bound' if value is None else show(value)}" for name, value in shown)
        options = ("changes" if method.changed else "defaults", values)
    rows = [
        ("differs", method.differs),
        ("use it", method.when),
        ("tried on", first_tried_on(draft)),
        options,
        ("source", method.source),
        ("data", f"{', '.join(method.formats)} rows"),
        *([("costs", cost_text(cost))] if cost is not None else []),
    ]
    title = Content.assemble((method.id, "bold"), "  ", method.title)
    right = Content.styled("" if cost is None else against_sft(cost), "$text-muted")
    return Content("\n").join(
        [
            Content.styled("─" * width, "$text-disabled"),
            ends(title, right, width),
            *(Content(f"  {line}") for line in wrapped(method.summary, width - 2)),
            Content(""),
            columns(rows, width, 11),
        ]
    )


def against_sft(cost: MethodCost) -> str:
    """In a few words: a step's time and the memory, as multiples of supervised training's."""
    if cost.method == "sft":
        return ""
    memory = f"{number(cost.memory, 2)}x memory"
    return f"{memory} of sft" if cost.time is None else f"{number(cost.time, 2)}x time, {memory} of sft"


def cost_text(cost: MethodCost) -> str:
    """What the method costs for the draft's model and data, against supervised training."""
    peak = size(cost.peak_bytes)
    if cost.method == "sft":
        step = "" if cost.seconds is None else f"about {short(cost.seconds)} a step, "
        return f"{step}peak {peak}; the others are compared with it"
    memory = f"peak {peak}, {number(cost.memory, 2)}x that of sft"
    if cost.seconds is None or cost.time is None:
        return f"{memory}; time not known yet (step 4: s measures)"
    return f"about {short(cost.seconds)} a step, {number(cost.time, 2)}x that of sft; {memory}"
