"""Lines of the live views: pure, cut to their width, and with every string from outside made safe."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from textual.content import Content

from engine.figures import number
from engine.plot import Glyphs
from engine.safe_text import safe_text
from tui.theme import drawn

MUTED = "$text-muted"
AMBER = "$text-warning"
RED = "$text-error"
REWARD = "$reward"
FOCUS = "bold $text-accent"

NEWLINE = "⏎"
_ASCII = str.maketrans({NEWLINE: "$", "←": "<", "→": ">"})
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True)
class Room:
    """Where lines must fit, in cells, and which signs the terminal has."""

    width: int
    height: int
    glyphs: Glyphs

    def sign(self, text: str) -> str:
        """One of the app's own signs, or what stands for it in ASCII."""
        return drawn(text, self.glyphs)

    @property
    def rule(self) -> Content:
        """A line that parts two things."""
        return Content.styled(("-" if self.glyphs == "ascii" else "─") * self.width, MUTED)

    def cut(self, line: Content) -> Content:
        """The line within the width."""
        return line.truncate(self.width, ellipsis=True)


def as_ascii(content: Content) -> Content:
    """The line with every sign of the app's own as one of ASCII; text from outside stays what it is."""
    return Content(drawn(content.plain, "ascii").translate(_ASCII), spans=list(content.spans))


def line(*parts: str | tuple[str, str] | Content) -> Content:
    """One line of pieces, none of which is read as markup."""
    return Content.assemble(*parts)


def one_line(text: str, width: int) -> str:
    """Text from outside on one line of at most `width` cells; newlines are shown as signs."""
    safe = safe_text(text[: 4 * width + 4].replace("\n", NEWLINE))
    if cell_len(safe) <= width and len(text) <= 4 * width + 4:
        return safe
    return "".join(chop_cells(safe, max(width - 1, 1))[:1]) + "…"


def wrapped(text: str, width: int, most: int = 1000) -> list[str]:
    """Text from outside in lines of at most `width` cells; its newlines end lines and are shown, `most` lines are given."""
    lines: list[str] = []
    pieces = text[: most * width + 1].split("\n")
    for index, piece in enumerate(pieces):
        mark = NEWLINE if index < len(pieces) - 1 else ""
        lines += chop_cells(safe_text(piece) + mark, max(width, 1)) or [""]
        if len(lines) >= most:
            break
    return lines[:most]


def words(text: str, width: int, most: int) -> list[str]:
    """As `wrapped`, for prose and commands: broken between words where they fit."""
    lines = textwrap.wrap(safe_text(text[: most * width]), max(width, 1), break_on_hyphens=False)
    return [piece for each in lines for piece in chop_cells(each, max(width, 1))][:most]


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """A bar of at most `width` cells, to an eighth of a cell where the terminal can show that."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8) if math.isfinite(share) else 0
    if glyphs == "ascii":
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def signed(value: float | None) -> str:
    """A figure with its sign."""
    return "–" if value is None else f"{value:+.2f}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{0 if value == 0 or value >= 0.1 else 1}f}%"


def columns(rows: Sequence[tuple[str, str]], room: Room) -> list[Content]:
    """Names and what belongs to them, the names muted and padded to the longest."""
    widest = max((cell_len(name) for name, _ in rows), default=0)
    return [room.cut(line((name + " " * (widest - cell_len(name) + 2), MUTED), value)) for name, value in rows]


def rate(value: float) -> str:
    """So many a second: whole from 100 on."""
    return f"{value:,.0f}" if value >= 100 else figure(value)


def mean(values: Sequence[float]) -> float | None:
    """The mean of the finite ones; None of none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def figure(value: float | None, digits: int = 3) -> str:
    """A figure, or – where there is none."""
    return number(value, digits)
