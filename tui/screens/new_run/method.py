"""Step 1: which method, and what it does differently."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine import methods
from engine.methods import Method
from tui.forms import show
from tui.screens.new_run.parts import Paper, Rows, Scroll, Step, columns, wrapped


class MethodStep(Step):
    """The list of methods, the marked one explained below it."""

    TITLE = "method"
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

    def _explain(self) -> None:
        method = methods.method(self.flow.draft.method)
        self.query_one(Paper).drawing = lambda width: explanation(method, width)


def method_row(method: Method) -> str:
    """A method in a line."""
    longest = max(map(len, methods.METHODS))
    return f"{method.id:<{longest}}   {method.summary}"


def explanation(method: Method, width: int) -> Content:
    """What a method is, does and needs."""
    if method.objective is None:
        options = ("defaults", "nothing to set: it has no rewards and no objective")
    else:  # against grpo, or all of grpo's own
        shown = (method.changed or method.defaults).items()
        values = ", ".join(f"{name} {'no bound' if value is None else show(value)}" for name, value in shown)
        options = ("changes" if method.changed else "defaults", values)
    rows = [
        ("differs", method.differs),
        ("use it", method.when),
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
