"""One row of the list of runs: run.json, corrected by the end of the journal and by the lock."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import InputError
from engine.runs.journal import JournalReader, jsonable
from engine.runs.record import RunRecord, Summary, derived_state, lock_is_held
from engine.runs.state import RunState, fold

_TAIL_BYTES = 1 << 16  # some 50 steps: enough for the latest lifecycle event, heartbeat and step times
_FIRST_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in one row. `state` is derived (it may be stalled, lost, or damaged), `recorded` the one that was written."""

    id: str
    name: str
    method: str
    model: str
    state: str
    recorded: str
    pid: int | None
    step: int
    steps: int | None
    reward: float | None
    held_out: float | None
    created: float | None  # unix seconds
    updated: float | None
    damaged: str = ""  # why the folder cannot be read; then the other fields are empty

    def as_dict(self) -> dict[str, Any]:
        """The row for `--json`."""
        row: dict[str, Any] = jsonable(asdict(self))
        return row


def summarise(record: RunRecord) -> RunSummary:
    """The run's row; a damaged folder gives one that says so."""
    held = lock_is_held(record)  # before the journal is read: see derived_state
    try:
        summary = record.summary()
    except InputError as error:
        return RunSummary(record.id, record.id, "", "", "damaged", "damaged", None, 0, None, None, None, None, None, str(error))
    recent = fold(JournalReader(record.journal_file, tail_bytes=_TAIL_BYTES).read(_TAIL_BYTES))
    recorded = recorded_state(recent, summary)
    return RunSummary(
        id=record.id,
        name=summary.name,
        method=summary.method,
        model=summary.model,
        state=observed_state(recent, summary, held, time.time()),
        recorded=recorded,
        pid=summary.pid,
        step=summary.step,
        steps=summary.steps,
        reward=summary.reward,
        held_out=summary.held_out,
        created=summary.created,
        updated=summary.updated,
    )


def begun(record: RunRecord) -> RunState:
    """The state after the journal's first event, which says what is to be done: for those who go on with the journal's end."""
    return fold(JournalReader(record.journal_file).read(_FIRST_BYTES)[:1])


def recorded_state(folded: RunState, summary: Summary) -> str:
    """The state that was written last. `folded` may be of the journal's end alone; then it may not know, and run.json does.

    The journal is written before run.json, so it stands; but a launch puts `starting` into run.json before its worker
    can write to the journal.
    """
    launching = summary.launched is not None and folded.state_t is not None and summary.launched > folded.state_t
    return summary.state if launching or folded.state == "queued" else folded.state


def observed_state(folded: RunState, summary: Summary, lock_held: bool, now: float) -> str:
    """The recorded state as the lock and the last sign of life correct it; the lock must have been probed first."""
    return derived_state(
        recorded_state(folded, summary),
        lock_held=lock_held,
        last_sign_t=max(summary.launched or summary.created, folded.last_t or 0.0),
        step_seconds=folded.step_seconds(),
        now=now,
    )
