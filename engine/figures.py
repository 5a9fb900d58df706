"""Figures as people read them, and the one vocabulary of run states: shared by the command line and the terminal app."""

from __future__ import annotations

STATE_GLYPHS = {
    "queued": "·",
    "starting": "…",
    "running": "●",
    "pausing": "⏸",
    "paused": "⏸",
    "stopping": "■",
    "stopped": "■",
    "finished": "✓",
    "failed": "✕",
    "stalled": "?",
    "lost": "?",
    "damaged": "!",
}


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or – where there is none."""
    return "–" if value is None else f"{value:.{digits}g}"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def counted(count: int, thing: str) -> str:
    """1 row, 2 rows, 1,024 rows."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Seconds as 12s, 3m 20s or 2h 07m."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def about(time: str) -> str:
    """A time that is predicted, in words: not a bound, since a cold prediction is as often under the measured time as over it."""
    return f"about {time}, with every completion at its limit"
