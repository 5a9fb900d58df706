"""What a run will need, as the last two steps say it: peak memory, time, what to change where it does not fit."""

from __future__ import annotations

from textual import work

from engine import estimate_words as words
from engine.errors import InputError
from engine.estimate import Estimate, short
from engine.figures import about, duration
from engine.safe_text import safe_text
from tui.screens.new_run.checks import said
from tui.screens.new_run.step import Step


class EstimatedStep(Step):
    """A step that shows the estimate of the draft. It is made in a thread; the machine's speed is measured where it is asked for
    alone, in a process of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Estimate | None = None

    @property
    def can_measure(self) -> bool:
        """Whether the time is not known because the machine's speed is not, and nobody measures it already."""
        is_measuring = any(each.group == "measure" and not each.is_finished for each in self.workers if each.node is self)
        return self.found is not None and is_unmeasured(self.found) and not is_measuring

    def show_estimate(self, found: Estimate) -> None:
        """Show what was found."""
        raise NotImplementedError

    def show_without(self, why: str) -> None:
        """Show why there is no estimate."""
        raise NotImplementedError

    @work(exclusive=True, group="estimate", exit_on_error=False)
    async def estimate(self) -> None:
        """Estimate the draft as it is now."""
        config = self.flow.checked.ready
        if config is None:
            self.found = None
            self.show_without("some values are wrong: configure says which")
            return
        try:
            self.found = await self.flow.engine.estimate(config)
        except InputError as error:
            self.found = None
            self.show_without(f"✕ {said(error)}")
            return
        self.show_estimate(self.found)
        self.flow.refresh_bindings()

    @work(exclusive=True, group="measure", exit_on_error=False)
    async def measure(self) -> None:
        """Measure the machine's speed, and estimate again."""
        flow = self.flow
        flow.refresh_bindings()
        try:
            await flow.engine.measure_rates(lambda text: flow.tell(f"measuring this machine's speed: {text} ..."))
        except InputError as error:
            flow.fail(error)
            return
        flow.tell("this machine's speed is measured, and kept for every run to come")
        self.estimate()


def is_unmeasured(found: Estimate) -> bool:
    """Whether the speed of the machine is what the estimate lacks for a time."""
    return found.time is None and found.knows_sizes


def forecast(found: Estimate) -> list[tuple[str, str]]:
    """Labels and texts: does it fit, and `advice`."""
    verdict = "✓ fits" if found.fits else "✕ does not fit"
    return [("memory", f"{verdict}: {words.peak(found)}"), *advice(found)]


def advice(found: Estimate) -> list[tuple[str, str]]:
    """What to change in a run that does not fit, how its work is cut, how long it takes, how far its sizes could go."""
    fits = [] if found.fits else [("to fit", words.to_fit(found.change, found.tried, found.several))]
    room = words.room(found)
    return [*fits, *words.cut(found), ("time", time_text(found)), *([("room for", room)] if room else [])]


def time_text(found: Estimate) -> str:
    """How long the run takes and by what it is known, or how to get to know it."""
    if is_unmeasured(found):
        return "not known: this machine's speed was not measured yet; s does it, in some seconds"
    if found.time is None:
        return found.seconds_reason
    time = found.time
    known = f", corrected by {safe_text(', '.join(time.sources))}" if time.sources else ""
    how = f"{short(time.step)} a step, the {time.longest} takes longest"
    return f"{about(duration(time.run))}: {how}; from the speed measured on this machine{known}"
