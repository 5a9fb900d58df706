"""What a row of the list of runs shows: the engine's summary, and from the journal's end the curve, the eta and the trouble.

Reading is bounded: the last 64 KiB of a journal the first time, then only what is new.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.runs.journal import JournalReader
from engine.runs.state import RunState
from engine.runs.summary import RunSummary

TAIL_BYTES = 1 << 16
CURVE_POINTS = 48  # as many as the widest sparkline has characters
_TRAINING = frozenset({"starting", "running", "pausing", "stopping"})
_HAS_ETA = frozenset({"running", "pausing"})


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. Strings are as they were written: what is drawn goes through safe_text."""

    summary: RunSummary
    curve: tuple[float, ...] = ()  # the newest rewards, or losses of supervised training
    value: float | None = None  # the last of them
    eta_seconds: float | None = None
    trouble: str = ""  # what is wrong
    remedy: str = ""  # and what to do

    @property
    def id(self) -> str:
        return self.summary.id

    @property
    def state(self) -> str:
        return self.summary.state

    @property
    def model_name(self) -> str:
        return Path(self.summary.model).name

    @property
    def is_training(self) -> bool:
        return self.state in _TRAINING

    def matches(self, text: str) -> bool:
        """Whether its name, method, model or state holds `text`, in any case."""
        fields = (self.id, self.summary.name, self.summary.method, self.model_name, self.state)
        return any(text.casefold() in field.casefold() for field in fields)


class RowReader:
    """Makes rows of summaries; remembers how far each journal was read. One thread at a time may use it."""

    def __init__(self, home: Path) -> None:
        self._runs = home / "runs"
        self._followed: dict[str, tuple[JournalReader, RunState]] = {}

    def rows(self, summaries: Iterable[RunSummary]) -> list[RunRow]:
        """A row for each. Raises OSError where a journal cannot be read."""
        rows = [row_of(summary, self._recent(summary.id)) for summary in summaries]
        present = {row.id for row in rows}
        self._followed = {run_id: pair for run_id, pair in self._followed.items() if run_id in present}
        return rows

    def _recent(self, run_id: str) -> RunState:
        reader, state = self._followed.get(run_id) or (
            JournalReader(self._runs / run_id / "events.jsonl", tail_bytes=TAIL_BYTES),
            RunState(),
        )
        while True:
            events = reader.read()
            if reader.restarted:
                state = RunState()
            if not events:
                break
            for event in events:
                state.apply(event)
        self._followed[run_id] = reader, state
        return state


def row_of(summary: RunSummary, recent: RunState | None = None) -> RunRow:
    """The row of a run whose journal's end says `recent`; without it the summary speaks alone."""
    recent = recent or RunState()
    series = recent.series.get("loss" if summary.method == "sft" else "reward")
    seconds = recent.step_seconds()
    left = max((summary.steps or 0) - summary.step, 0)
    trouble, remedy = trouble_of(summary, recent)
    return RunRow(
        summary,
        curve=tuple(series.values[-CURVE_POINTS:]) if series else (),
        value=series.last if series else summary.reward,
        eta_seconds=left * seconds if seconds is not None and summary.state in _HAS_ETA else None,
        trouble=trouble,
        remedy=remedy,
    )


def trouble_of(summary: RunSummary, recent: RunState) -> tuple[str, str]:
    """What is wrong with a run and what to do about it; two empty strings where nothing is."""
    match summary.state:
        case "failed" if recent.failure is not None:
            return str(recent.failure.get("error") or "failed"), str(recent.failure.get("remedy") or "press r to resume")
        case "failed":
            return "failed", f"its folder's worker.log says why; press r to resume from step {summary.step}"
        case "lost":
            saved = recent.checkpoint
            place = f"its checkpoint of step {saved.step}" if saved is not None else "its last checkpoint"
            return "its worker is gone", f"press r to go on from {place}, to the same figures"
        case "stalled":
            return "no sign of life, though its worker is there", f"wait, or end process {summary.pid} and press r"
        case "damaged":
            return summary.damaged, "mend run.json, or start a new run from its config.yaml"
    return "", ""
