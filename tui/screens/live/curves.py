"""Curves: one metric on the whole screen, or four of them where there is room for four."""

from __future__ import annotations

import math
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Grid
from textual.content import Content

from engine.plot import Series
from tui.screens.live.text import MUTED, REWARD, Room, figure, line
from tui.screens.live.view import Block, View
from tui.snapshot import RunSnapshot
from tui.widgets.chart import Chart

GRID_FROM = 98  # width from which four charts fit
GRID = ("reward", "loss", "kl", "length")


@dataclass(frozen=True, slots=True)
class Shown:
    """A page of the view: series of the steps and of the held-out evaluations, by metric and label."""

    name: str
    steps: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...] = ()
    without: str = "this run has none"  # what it means that there is none although there are steps


PAGES = (
    Shown("reward", (("reward", "reward"),), (("reward", "held-out"),)),
    Shown("held-out", (), (("reward", "held-out reward"), ("loss", "held-out loss")), "the first evaluation is yet to come"),
    Shown("loss", (("loss", "loss"),), (("loss", "held-out"),)),
    Shown("kl", (("kl", "kl"),), (), "it is not computed where beta is 0"),
    Shown("length", (("length", "length"),), (("length", "held-out"),)),
    Shown("entropy", (("entropy", "entropy"),)),
    Shown("clip", (("clip_high", "clipped high"), ("clip_low", "clipped low"))),
    Shown("ratio", (("ratio_gap_later", "mean |ratio - 1|"),), (), "a single update has the ratio 1"),
    Shown("groups", (("zero_std_groups", "groups of one score"), ("discarded", "replaced"))),
    Shown("gap", (("mismatch", "sampler to trainer"),)),
    Shown("grad_norm", (("grad_norm", "gradient norm"),)),
    Shown("lr", (("lr", "learning rate"),)),
    Shown("tokens", (("tokens", "tokens"),)),
)


class Curves(View):
    """[ and ] change the metric; where four charts fit, the first page has four."""

    TITLE = "curves"
    METHODS = frozenset({"next", "previous"})
    DEFAULT_CSS = """
    Curves #metric { height: 1; }
    Curves #four { grid-size: 2 2; grid-gutter: 1 2; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.page = 0  # of PAGES, or -1: four at once
        self._chosen = False

    def compose(self) -> ComposeResult:
        yield Block(id="metric")
        yield Chart(self.app.glyphs, id="one")
        with Grid(id="four"):
            for name in GRID:
                yield Chart(self.app.glyphs, id=f"four-{name}")

    def draw(self, snapshot: RunSnapshot, room: Room) -> None:
        wide = room.width >= GRID_FROM
        if not self._chosen:
            self.page = -1 if wide else 0
        elif self.page < 0 and not wide:
            self.page = 0
        one, four = self.query_one("#one", Chart), self.query_one("#four", Grid)
        one.display, four.display = self.page >= 0, self.page < 0
        shown = [page for page in PAGES if page.name in GRID] if self.page < 0 else [PAGES[self.page]]
        for page in shown:
            chart = one if self.page >= 0 else self.query_one(f"#four-{page.name}", Chart)
            chart.show(series_of(page, snapshot), empty=f"{page.name}: {why_none(page, snapshot)}")
        self.query_one("#metric", Block).put([self._title(snapshot, room, wide)])

    def move(self, method: str) -> None:
        first = -1 if self.room.width >= GRID_FROM else 0
        count = len(PAGES) - first
        self.page = (self.page - first + (1 if method == "next" else -1)) % count + first
        self._chosen = True
        self.draw_again()

    def _title(self, snapshot: RunSnapshot, room: Room, wide: bool) -> Content:
        if self.page < 0:
            return room.cut(line("four curves", (f"   ] shows one after another, {len(PAGES)} in all", MUTED)))
        page = PAGES[self.page]
        place = f"   {self.page + 1 + wide} of {len(PAGES) + wide}"
        return room.cut(line((page.name, f"bold {REWARD}"), f"   {summary(page, snapshot)}", (place, MUTED)))


def series_of(page: Shown, snapshot: RunSnapshot) -> list[Series]:
    """What the page shows of the run."""
    found: list[Series] = []
    for wanted, source in ((page.steps, snapshot.series), (page.held_out, snapshot.held_out)):
        for name, label in wanted:
            if (metric := source.get(name)) is not None:
                found.append((metric.steps, metric.values, label))
    return found or [((), (), page.name)]


def why_none(page: Shown, snapshot: RunSnapshot) -> str:
    """What it means that the page has nothing to show."""
    if not snapshot.series and page.steps:
        return "no step yet"
    if snapshot.method == "sft":
        return "supervised training has none"
    return page.without


def summary(page: Shown, snapshot: RunSnapshot) -> str:
    """The range of the page's first series, or why there is none."""
    _, values, _ = series_of(page, snapshot)[0]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return why_none(page, snapshot)
    missing = len(values) - len(finite)
    gaps = f", {missing} not finite" if missing else ""
    return f"lowest {figure(min(finite))}, highest {figure(max(finite))}, last {figure(values[-1])} of {len(values)}{gaps}"
