"""A model on its way: what a run shows while its worker fetches the model or brings it into the form that it trains on."""

from __future__ import annotations

from textual.content import Content

from engine.runs.values import Phase, Progress
from tui.progress import amounts, percent, share
from tui.screens.live.text import MUTED, REWARD, Room, bar, line, one_line
from tui.snapshot import RunSnapshot

BAR_CELLS = 70  # at most: a longer bar says nothing more
_PERCENT_CELLS = 6
_WHY = {
    "downloading": "the model is fetched first; what is here stays, paused or stopped",
    "converting": "the model is converted first; the next run finds it done",
}


def fetching(snapshot: RunSnapshot) -> tuple[Phase, Progress] | None:
    """The phase that goes through bytes, and how far it is; None in any other phase."""
    phase = snapshot.phase
    return None if phase is None or phase.progress is None else (phase, phase.progress)


def told(snapshot: RunSnapshot) -> str:
    """What a run that is starting does: why it fetches, or how far that is where curves take the bar's place."""
    if (found := fetching(snapshot)) is None:
        return "the worker loads the model"
    phase, progress = found
    if snapshot.series:
        return f"{one_line(phase.name, 20)} {percent(progress)}: {', '.join(amounts(progress))}"
    return _WHY.get(phase.name, "the worker prepares the model")


def bar_lines(phase: Phase, progress: Progress, model: str, room: Room) -> list[Content]:
    """Phase and model, a bar with its percentage, and the amounts: in the middle of the room's height, within its width."""
    cells = max(min(room.width - _PERCENT_CELLS, BAR_CELLS), 1)
    done = bar(share(progress), cells, room.glyphs)
    rest = ("-" if room.glyphs == "ascii" else "─") * (cells - len(done))
    head = f"{one_line(phase.name, 20)}  "
    lines = [
        line((head, MUTED), (one_line(model, max(room.width - len(head), 1)), "bold")),
        Content(""),
        line((done, REWARD), (rest, MUTED), (f"{percent(progress):>{_PERCENT_CELLS}}", "bold")),
        Content(""),
        Content("   ").join(line(text) for text in amounts(progress)),
    ]
    if room.height < len(lines):
        lines = [each for each in lines if each]
    above = [Content("")] * max((room.height - len(lines)) // 2, 0)
    return [room.cut(each) for each in [*above, *lines][: room.height]]
