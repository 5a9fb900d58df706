"""Step 4: will it fit, and how long will it take? Memory by phase and part, seconds by phase, before anything is loaded."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine import estimate_words as words
from engine.estimate import Estimate, short
from engine.figures import counted, size
from engine.plot import Glyphs
from engine.time_plan import TimePlan
from tui.screens.new_run.forecast import EstimatedStep, advice
from tui.screens.new_run.parts import Paper, Scroll, columns, wrapped

NAME_CELLS, SIZE_CELLS = 22, 10
_EIGHTHS = " ▏▎▍▌▋▊▉"


class EstimateStep(EstimatedStep):
    """The plan of memory and time."""

    TITLE = "estimate"
    ACTIONS: ClassVar[frozenset[str]] = frozenset({"measure"})
    DEFAULT_CSS = "EstimateStep > Scroll { margin-top: 1; }"

    def compose(self) -> ComposeResult:
        with Scroll():
            yield Paper()

    def on_mount(self) -> None:
        self._draw("estimating ...")

    @property
    def rest(self) -> Widget:
        return self.query_one(Scroll)

    def draft_checked(self) -> None:
        self.estimate()

    def show_estimate(self, found: Estimate) -> None:
        glyphs = self.flow.app.glyphs
        self.query_one(Paper).drawing = lambda width: plan(found, width, glyphs)

    def show_without(self, why: str) -> None:
        self._draw(why)

    def _draw(self, text: str) -> None:
        self.query_one(Paper).drawing = lambda width: Content("\n".join(wrapped(text, width)))


def plan(found: Estimate, width: int, glyphs: Glyphs) -> Content:
    """The estimate: does it fit, what is held throughout, each phase's peak by part, what is taken for granted."""
    verdict = ("✓ fits", "bold $text-success") if found.fits else ("✕ does not fit", "bold $text-error")
    lines = [
        Content.assemble((f"{words.peak(found)}   ", "bold"), verdict),
        Content(bar(found.peak_bytes, found.limit_bytes, min(width, 60), glyphs)),
    ]
    lines += [Content(""), columns(advice(found), width, 10, indent=0)]
    left = max(width - NAME_CELLS - SIZE_CELLS - 4, 4)

    def part(name: str, count: int, style: str = "") -> Content:
        return Content.styled(f"{name:<{NAME_CELLS}}{size(count):>{SIZE_CELLS}}  ", style).append(
            bar(count, found.peak_bytes, min(left, 30), glyphs)
        )

    name, total, held = words.held(found)
    lines += [Content(""), part(name, total, "bold"), *(part(f"  {label}", count) for label, count in held)]
    for each in found.phases:
        lines += [Content(""), part(f"peak of the {each.phase}", each.peak_bytes, "bold")]
        lines += [Content.styled(f"  {each.moment}", "$text-muted"), *(part(f"  {label}", count) for label, count in each.parts)]
    if found.time is not None:
        lines += [Content(""), *seconds(found.time, left, glyphs)]
    facts = [
        ("trains", f"{counted(found.trainable_parameters, 'parameter')}, {counted(found.micro_batch_rows, 'row')} at a time"),
        ("computes", f"in {found.dtype} on {found.backend}"),
        *(("assumed", line) for line in found.assumptions),
    ]
    return Content("\n").join([*lines, Content(""), columns(facts, width, 10, indent=0)])


def seconds(time: TimePlan, width: int, glyphs: Glyphs) -> list[Content]:
    """A step's seconds by phase, and what comes beside the steps."""
    rows = [("time of a step, about", time.step, "bold"), *((f"  {name}", each, "") for name, each in time.phases.items())]
    lines = [
        Content.styled(f"{name:<{NAME_CELLS + 2}}{short(each):>{SIZE_CELLS - 2}}  ", style).append(
            bar(each, time.step, min(width, 30), glyphs)
        )
        for name, each, style in rows
        if each
    ]
    counted = (("evaluations", time.evaluations, time.evaluation), ("checkpoints", time.checkpoints, time.checkpoint))
    return lines + [
        Content(f"{f'{count} {name}, each':<{NAME_CELLS + 2}}{short(each):>{SIZE_CELLS - 2}}") for name, count, each in counted
    ]


def bar(part: float, whole: float, width: int, glyphs: Glyphs) -> str:
    """`part` of `whole` as a bar of at most `width` cells; something is seen of everything that is not 0."""
    share = min(part / whole, 1.0) if whole > 0 else 0.0
    if glyphs == "ascii":
        return "#" * max(round(share * width), int(part > 0))
    full, eighths = divmod(max(round(share * width * 8), int(part > 0)), 8)
    return "█" * full + _EIGHTHS[eighths].strip()
