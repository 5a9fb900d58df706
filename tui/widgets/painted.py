"""Widgets that keep what they have painted: Textual asks every visible widget for all of its lines whenever one line has changed,
and goes through borders, padding and effects for each.

Kept      a container: its lines stay until it is refreshed
Painted   lines without border, padding or effects: each is made once, then only when it is refreshed
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style as RichStyle
from textual.containers import Horizontal
from textual.content import Content
from textual.filter import LineFilter
from textual.geometry import Region
from textual.reactive import reactive
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget
from textual.widgets import ContentSwitcher

_Look = tuple[Style, str, Sequence[LineFilter]]  # the widget's own style, the theme, what the terminal makes of colours

if TYPE_CHECKING:
    _Mixin = Widget
else:
    _Mixin = object  # Textual takes a widget's style rules from its first base that is one


class Kept(_Mixin):
    """Gives the lines of its last painting again."""

    _lines_kept: tuple[_Look, Region, list[Strip]] | None = None

    def refresh(self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False) -> Kept:
        """Paint anew: what was kept is out of date."""
        self._lines_kept = None
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of the widget, which must not be changed."""
        look = _look(self)
        kept = self._lines_kept
        if kept is None or kept[1] != crop or kept[0] != look:
            self._lines_kept = kept = look, crop, super().render_lines(crop)
        return kept[2]


class Row(Kept, Horizontal):
    """Widgets side by side."""


class Switcher(Kept, ContentSwitcher):
    """One of several widgets at a time."""


class Painted(Widget):
    """Its lines are what `segments` gives. It may have a margin, but no border and no padding."""

    auto_links = reactive(False)  # there are none, and to look for them costs a tenth of a line
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._look: _Look | None = None
        self._width = 0
        self._strips: dict[int, Strip] = {}
        self._part_styles: dict[str | Style, RichStyle] = {}  # of the parts of a line, over the widget's own
        self._all: tuple[Region, list[Strip]] | None = None

    def segments(self, y: int) -> Sequence[Segment]:
        """One line; what it lacks at its end is filled up."""
        raise NotImplementedError

    def content_segments(self, content: Content) -> list[Segment]:
        """The pieces of a line in the widget's colours."""
        text, spans = content.plain, content.spans
        base = self.visual_style
        plain, place, found = base.rich_style, 0, []
        for span in spans:
            if span.start < place:  # one within another: the general way
                pieces = content.render(
                    base, end="", parse_style=lambda name: name if isinstance(name, Style) else Style.parse(name)
                )
                return [Segment(part, style.rich_style) for part, style in pieces]
            if span.start > place:
                found.append(Segment(text[place : span.start], plain))
            if span.end > span.start:
                found.append(Segment(text[span.start : span.end], self._style(span.style)))
            place = span.end
        if place < len(text):
            found.append(Segment(text[place:], plain))
        return found

    def refresh(self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False) -> Painted:
        """Paint these lines anew, or all of them."""
        self._all = None
        if regions:
            for region in regions:
                for y in region.line_range:
                    self._strips.pop(y, None)
        else:
            self._strips.clear()
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of the widget, which must not be changed."""
        look, width = _look(self), self.size.width
        if look != self._look or width != self._width:
            self._look, self._width, self._all = look, width, None
            self._strips.clear()
            self._part_styles.clear()
        if self._all is None or self._all[0] != crop:
            missing = [y for y in crop.line_range if y not in self._strips]
            if missing:
                background = self.background_colors[1]
                for y in missing:
                    strip = self.render_line(y)
                    for each in look[2]:
                        strip = strip.apply_filter(each, background)
                    self._strips[y] = strip
            found = [self._strips[y] for y in crop.line_range]
            if crop.column_span != (0, width):
                found = [strip.crop(*crop.column_span) for strip in found]
            self._all = crop, found
        return self._all[1]

    def render_line(self, y: int) -> Strip:
        """One painted line."""
        return Strip(self.segments(y)).adjust_cell_length(self._width, self.visual_style.rich_style)

    def _style(self, style: str | Style) -> RichStyle:
        found = self._part_styles.get(style)
        if found is None:
            found = (self.visual_style + (Style.parse(style) if isinstance(style, str) else style)).rich_style
            self._part_styles[style] = found
        return found


def _look(widget: Widget) -> _Look:
    return widget.visual_style, widget.app.theme, widget.get_line_filters()
