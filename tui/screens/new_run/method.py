"""Step 1: which method, and what it does differently."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine import methods
from engine.methods import Method
from tui.draft import Draft
from tui.forms import show
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

    def on_mount(self) -> None:
        self._explain()

    @property
    def rest(self) -> Widget:
        return self.query_one(Rows)

    @on(Rows.Moved)
    def _moved(self) -> None:
        chosen = list(methods.METHODS)[self.query_one(Rows).index]
        self.flow.change(self.flow.draft.with_method(chosen))
        self._explain()

    def draft_changed(self) -> None:
        self.query_one(Rows).index = list(methods.METHODS).index(self.flow.draft.method)
        self._explain()

    def page(self, rows: int) -> None:
        self.query_one(Scroll).scroll_relative(y=rows // 2, animate=False)  # the list is short, and what is below it is not

    def _explain(self) -> None:
        draft = self.flow.draft
        self.query_one(Paper).drawing = lambda width: explanation(draft, width)


def method_row(method: Method) -> str:
    """A method in a line."""
    longest = max(map(len, methods.METHODS))
    return f"{method.id:<{longest}}   {method.summary}"


def explanation(draft: Draft, width: int) -> Content:
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
    ]
    title = Content.assemble((method.id, "bold"), "  ", method.title)
    return Content("\n").join(
        [
            Content.styled("─" * width, "$text-disabled"),
            title.truncate(width, ellipsis=True),
            *(Content(f"  {line}") for line in wrapped(method.summary, width - 2)),
            Content(""),
            columns(rows, width, 11),
        ]
    )
