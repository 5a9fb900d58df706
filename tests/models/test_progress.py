"""A download in the journal: bytes, rate and time to go, in the state and in what the command line prints of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli import screens, watch
from engine.plot import glyph_set
from engine.runs.journal import Event
from engine.runs.state import RunState, fold


def journal(*events: tuple[float, str, dict[str, object]]) -> list[Event]:
    return [Event(place, t, kind, fields) for place, (t, kind, fields) in enumerate(events, start=1)]


def beat(t: float, done: int) -> tuple[float, str, dict[str, object]]:
    return t, "heartbeat", {"bytes": {"downloaded": done, "to_download": 4_000_000_000}}


PHASE = (10.0, "phase", {"name": "downloading", "step": 0, "bytes": 4_000_000_000, "done": 1_000_000_000})


def test_bytes_rate_and_time_to_go() -> None:
    """1 GB was there; 0.5 GB came in 10 s: 50 MB/s, and 2.5 GB to go take 50 s. The rate is that of the last minute: 12
    heartbeats of 0.1 GB each in 5 s are 20 MB/s, and the 1.3 GB that are then left take 65 s."""
    events = journal((0.0, "started", {"pid": 1}), PHASE, beat(15.0, 1_250_000_000), beat(20.0, 1_500_000_000))
    state = fold(events)
    assert state.state == "starting" and state.memory == {} and state.phase is not None and state.phase.progress is not None
    told = state.as_dict()["phase"]
    assert (told["done_bytes"], told["total_bytes"]) == (1_500_000_000, 4_000_000_000)
    assert (told["bytes_per_second"], told["eta_seconds"]) == (pytest.approx(50e6), pytest.approx(50.0))
    line = "1.50 GB of 4.00 GB, 50.00 MB/s, 50s to go"
    assert f"bytes     {line}" in screens.status(state, Path("/run"))
    assert watch.plain_line(events[-1], state) == f"downloading {line}"
    assert f"downloading {line}" in watch.frame(state, [], 100, 24, glyph_set("utf-8", {}))
    for place in range(1, 13):
        state.apply(Event(len(events) + place, 20.0 + 5 * place, *beat(0.0, 1_500_000_000 + place * 100_000_000)[1:]))
    assert state.phase.progress.bytes_per_second == pytest.approx(20e6)
    assert state.phase.progress.eta_seconds == pytest.approx(65.0)


def test_a_phase_without_bytes_has_no_progress() -> None:
    after = (30.0, "phase", {"name": "load", "step": 0})
    measured = (35.0, "heartbeat", {"bytes": {"active": 7}})
    state = fold(journal(PHASE, beat(20.0, 2_000_000_000), after, measured))
    assert state.phase is not None and state.phase.progress is None and state.memory == {"active": 7.0}
    assert watch.plain_line(Event(9, 40.0, "heartbeat", {}), state) == ""
    stalled = fold(journal(PHASE, beat(15.0, 1_000_000_000)))
    assert stalled.phase is not None and stalled.phase.progress is not None
    assert screens.progress(stalled.phase.progress) == "1.00 GB of 4.00 GB, –/s, – to go"
    unmarked = fold(
        journal((10.0, "phase", {"name": "converting", "bytes": 10}), (12.0, "heartbeat", {"bytes": {"converted": 4}}))
    )
    assert unmarked.phase == replace(unmarked.phase, name="converting") and unmarked.phase.progress is not None
    assert unmarked.phase.progress.bytes_per_second == 2.0 and RunState().phase is None
