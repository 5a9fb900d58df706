"""Step 4: will it fit? Peak memory by phase and part, before anything is loaded."""

from __future__ import annotations

from textual import work
from textual.app import ComposeResult
from textual.content import Content
from textual.widget import Widget

from engine.errors import InputError
from engine.estimate import Estimate
from engine.figures import size
from engine.plot import Glyphs
from tui.screens.new_run.checks import said
from tui.screens.new_run.parts import Paper, Scroll, columns, wrapped
from tui.screens.new_run.step import Step

NAME_CELLS, SIZE_CELLS = 22, 10
_EIGHTHS = " ▏▎▍▌▋▊▉"
_SMALLER = {
    "rollout": "lower sampling.max_completion_tokens, prompts_per_step or group_size, or run.eval_rows",
    "update": "lower optim.micro_batch_rows or sampling.max_completion_tokens, or train a low-rank adapter",
}


class EstimateStep(Step):
    """The memory plan of the draft."""

    TITLE = "estimate"
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
        self._estimate()

    @work(exclusive=True, group="estimate", exit_on_error=False)
    async def _estimate(self) -> None:
        config = self.flow.checked.ready
        if config is None:
            self._draw("some values are wrong: the step before says which")
            return
        try:
            found = await self.flow.engine.estimate(config)
        except InputError as error:
            self._draw(f"✕ {said(error)}")
            return
        glyphs = self.flow.app.glyphs
        self.query_one(Paper).drawing = lambda width: plan(found, width, glyphs)

    def _draw(self, text: str) -> None:
        self.query_one(Paper).drawing = lambda width: Content("\n".join(wrapped(text, width)))


def plan(found: Estimate, width: int, glyphs: Glyphs) -> Content:
    """The estimate: does it fit, what is held throughout, each phase's peak by part, what is taken for granted."""
    verdict = ("✓ fits", "bold $text-success") if found.fits else ("✕ does not fit", "bold $text-error")
    peak = f"peak {size(found.peak_bytes)} of {size(found.limit_bytes)} allowed, in the {found.binding_phase}   "
    lines = [Content.assemble((peak, "bold"), verdict), Content(bar(found.peak_bytes, found.limit_bytes, min(width, 60), glyphs))]
    if not found.fits:
        lines += [Content(line) for line in wrapped(f"to make it fit: {_SMALLER[found.binding_phase]}", width)]
    room = max(width - NAME_CELLS - SIZE_CELLS - 4, 4)

    def part(name: str, count: int, style: str = "") -> Content:
        return Content.styled(f"{name:<{NAME_CELLS}}{size(count):>{SIZE_CELLS}}  ", style).append(
            bar(count, found.peak_bytes, min(room, 30), glyphs)
        )

    for name, total, parts in phases(found):
        lines += [Content(""), part(name, total, "bold")]
        lines += [part(f"  {label}", count) for label, count in parts if count]
    facts = [
        ("trains", f"{found.trainable_parameters:,} parameters, {found.micro_batch_rows} rows at a time"),
        ("computes", f"in {found.dtype} on {found.backend}"),
        ("time", found.seconds_reason),
        *(("assumed", line) for line in found.assumptions),
    ]
    return Content("\n").join([*lines, Content(""), columns(facts, width, 10, indent=0)])


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
