"""What is said when the app is left: which runs go on, and how to come back to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.safe_text import safe_text

if TYPE_CHECKING:
    from engine.runs.summary import RunSummary

_GOES_ON = {
    "queued": "is about to start",
    "starting": "is starting",
    "running": "goes on training",
    "pausing": "is about to pause",
    "paused": "stays paused; its worker waits",
    "stopping": "writes its last checkpoint and ends",
    "stalled": "shows no sign of life, but its worker is there",
}


def farewell(rows: Sequence[RunSummary]) -> list[str]:
    """Two lines for every run that has a worker."""
    lines: list[str] = []
    for row in rows:
        if row.state in _GOES_ON:
            run_id = safe_text(row.id)
            lines += [f"{run_id} {_GOES_ON[row.state]} (step {row.step}/{row.steps})", f"  come back: droid-tune attach {run_id}"]
    return lines
