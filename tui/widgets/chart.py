"""A live chart: engine.plot's geometry as a widget that paints no more than what has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region

from engine.plot import Glyphs, Run, Series, draw
from tui.widgets.painted import Painted

_COLOURS = 3  # component classes of series; further ones share the last


class Chart(Painted):
    """Series over steps. The first is a line, further ones are marks, so that no colour is needed to tell them apart."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"chart--axis", "chart--series-0", "chart--series-1", "chart--series-2"}
    DEFAULT_CSS = """
    Chart { width: 1fr; height: 1fr; }
    Chart > .chart--axis { color: $text-muted; }
    Chart > .chart--series-0 { color: $success; }
    Chart > .chart--series-1 { color: $warning; }
    Chart > .chart--series-2 { color: $accent; }
    """

    def __init__(self, glyphs: Glyphs = "braille", *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.glyphs: Glyphs = glyphs
        self.drawings = 0  # how often the lines were computed
        self._series: tuple[Series, ...] = ()
        self._bounds: tuple[float | None, float | None] = (None, None)
        self._empty = "no data"
        self._colours: list[Style] | None = None  # of the series and the axis
        self._lines: list[list[Run]] = []
        self._drawn: tuple[int, int] | None = None  # the size that `_lines` are for; None: they are out of date

    def show(
        self, series: Sequence[Series], *, y_min: float | None = None, y_max: float | None = None, empty: str = "no data"
    ) -> None:
        """Show these series from now on, or `empty` where they hold nothing to draw; they must not change afterwards.

        The same ones again cost nothing.
        """
        shown = tuple(series)
        if (y_min, y_max) == self._bounds and empty == self._empty and _same(shown, self._series):
            return
        self._series, self._bounds, self._empty = shown, (y_min, y_max), empty
        before, size = self._lines, self._drawn
        self._drawn = None
        if size != (self.size.width, self.size.height) or not self.is_on_screen:
            self.refresh()
            return
        self._draw()
        changed = [row for row, line in enumerate(self._lines) if line != before[row]]
        if changed:
            self.refresh(*(Region(0, row, size[0], 1) for row in changed))

    def segments(self, y: int) -> list[Segment]:
        """One line."""
        if self._drawn is None or (y == 0 and self._drawn != (self.size.width, self.size.height)):
            self._draw()
        if self._colours is None:
            names = [*(f"chart--series-{number}" for number in range(_COLOURS)), "chart--axis"]
            self._colours = [self.get_component_rich_style(name) for name in names]
        *series, axis = self._colours
        return [
            Segment(text, axis if owner is None else series[min(owner, _COLOURS - 1)])
            for text, owner in (self._lines[y] if y < len(self._lines) else ())
        ]

    def notify_style_update(self) -> None:
        """Look the colours up again: another theme may have come."""
        self._colours = None
        super().notify_style_update()

    def _draw(self) -> None:
        width, height = self.size
        low, high = self._bounds
        self._lines = draw(self._series, width, height, glyphs=self.glyphs, y_min=low, y_max=high, empty=self._empty)
        self._drawn = (width, height)
        self.drawings += 1


def _same(left: tuple[Series, ...], right: tuple[Series, ...]) -> bool:
    """Whether these are the same objects under the same labels."""
    return len(left) == len(right) and all(
        a[0] is b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(left, right, strict=True)
    )
