"""How far a phase is that goes through bytes, in figures: shared by the list of runs and the live view."""

from __future__ import annotations

from engine.figures import duration, size
from engine.runs.values import Progress

SHORT = {"downloading": "download", "converting": "convert"}  # for a column


def share(progress: Progress) -> float:
    """The part that is done, from 0 to 1."""
    return min(1.0, max(0.0, progress.done / progress.total)) if progress.total > 0 else 0.0


def percent(progress: Progress) -> str:
    """The part that is done, rounded down: 100% is all of it."""
    return f"{int(100 * share(progress))}%"


def amounts(progress: Progress) -> list[str]:
    """Bytes done and in all and, once it moves, bytes a second and the time to go."""
    found = [f"{size(progress.done)} of {size(progress.total)}"]
    if progress.bytes_per_second is not None:
        found += [f"{size(progress.bytes_per_second)}/s", f"{duration(progress.eta_seconds)} to go"]
    return found
