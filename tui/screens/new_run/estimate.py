"""Step 4: will it fit, and how long will it take? Memory by phase and part, seconds by phase, before anything is loaded."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine.estimate import Estimate, short
from engine.figures import size
from engine.plot import Glyphs
from engine.timing import TimePlan
from tui.screens.new_run.forecast import EstimatedStep, room, time_text, to_fit
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
    peak = f"peak {size(found.peak_bytes)} of {size(found.limit_bytes)} allowed, in the {found.binding_phase}   "
    lines = [Content.assemble((peak, "bold"), verdict), Content(bar(found.peak_bytes, found.limit_bytes, min(width, 60), glyphs))]
    summary = [*to_fit(found), ("time", time_text(found)), *room(found)]
    lines += [Content(""), columns(summary, width, 10, indent=0)]
    left = max(width - NAME_CELLS - SIZE_CELLS - 4, 4)

    def part(name: str, count: int, style: str = "") -> Content:
        return Content.styled(f"{name:<{NAME_CELLS}}{size(count):>{SIZE_CELLS}}  ", style).append(
            bar(count, found.peak_bytes, min(left, 30), glyphs)
        )

    for name, total, parts in phases(found):
        lines += [Content(""), part(name, total, "bold")]
        lines += [part(f"  {label}", count) for label, count in parts if count]
    if found.time is not None:
        lines += [Content(""), *seconds(found.time, left, glyphs)]
    facts = [
        ("trains", f"{found.trainable_parameters:,} parameters, {found.micro_batch_rows} rows at a time"),
        ("computes", f"in {found.dtype} on {found.backend}"),
        *(("assumed", line) for line in found.assumptions),
    ]
    return Content("\n").join([*lines, Content(""), columns(facts, width, 10, indent=0)])


def seconds(time: TimePlan, width: int, glyphs: Glyphs) -> list[Content]:
    """A step's seconds by phase, and what comes beside the steps."""
    rows = [("time of a step, at most", time.step, "bold"), *((f"  {name}", each, "") for name, each in time.phases.items())]
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


def phases(found: Estimate) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """What is held throughout, then the phases with the parts that come on top; the one that binds first."""
    held = [
        ("weights", found.weights_bytes),
        ("adapter", found.adapter_bytes),
        ("optimizer", found.optimizer_bytes),
        ("reference", found.reference_bytes),
    ]
    update = [("activations", found.activation_bytes), ("logits", found.logits_bytes), ("gradient", found.gradient_bytes)]
    both = [("peak of the update", found.update_peak_bytes, update)]
    if found.rollout_peak_bytes is not None:
        rollout = [("kv cache", found.cache_bytes), ("logits", found.rollout_logits_bytes)]
        both.insert(found.binding_phase != "rollout", ("peak of the rollout", found.rollout_peak_bytes, rollout))
    return [("held throughout", sum(count for _, count in held), held), *both]


def bar(part: float, whole: float, width: int, glyphs: Glyphs) -> str:
    """`part` of `whole` as a bar of at most `width` cells; something is seen of everything that is not 0."""
    share = min(part / whole, 1.0) if whole > 0 else 0.0
    if glyphs == "ascii":
        return "#" * max(round(share * width), int(part > 0))
    full, eighths = divmod(max(round(share * width * 8), int(part > 0)), 8)
    return "█" * full + _EIGHTHS[eighths].strip()
