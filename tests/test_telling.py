"""Durations of the journal in words, where a line of text is asked for."""

from __future__ import annotations

import json

from engine.cli.watch import log_line
from engine.runs.journal import Event


def test_a_line_of_the_log_has_durations_in_words() -> None:
    """A checkpoint's seconds, and those of a step by phase; a reward keeps its digits."""
    saved = Event(7, 0.0, "checkpoint", {"step": 2, "reason": "schedule", "seconds": 0.12345678901234567})
    assert log_line(saved).split() == [
        "7",
        "checkpoint",
        *json.dumps({"step": 2, "reason": "schedule", "seconds": "0.12s"}).split(),
    ]
    done = Event(8, 0.0, "step", {"step": 2, "metrics": {"reward": 0.123456789, "seconds": {"rollout": 1.5, "total": 4000.25}}})
    assert '"reward": 0.123456789' in log_line(done) and "4000.25" not in log_line(done) and '"rollout": "1.5s"' in log_line(done)
