"""What a row of the list of runs shows: the engine's summary, and from the journal's end the curve, the eta and the trouble.

Reading is bounded: a journal's first line and its last 64 KiB the first time, then only what is new; of a run that is over,
nothing until its files change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.runs.journal import JournalReader
from engine.runs.record import ENDED, RunRecord
from engine.runs.state import RunState
from engine.runs.summary import RunSummary, begun, summarise
from tui.progress import SHORT, percent

TAIL_BYTES = 1 << 16
CURVE_POINTS = 48  # as many as the widest sparkline has characters
_TRAINING = frozenset({"starting", "running", "pausing", "stopping"})
_Looks = tuple[int, int, int] | None  # of a file
_HAS_ETA = frozenset({"running", "pausing"})


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. Strings are as they were written: what is drawn goes through safe_text."""

    summary: RunSummary
    curve: tuple[float, ...] = ()  # the newest rewards, or losses of supervised training
    value: float | None = None  # the last of them
    eta_seconds: float | None = None
    fetched: str = ""  # how far its model is that is downloaded or converted first
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
        self._known: dict[str, tuple[tuple[_Looks, _Looks], RunSummary]] = {}
        self._rows: dict[str, RunRow] = {}

    def summaries(self) -> list[RunSummary]:
        """Every run, the latest made first, as Engine.runs() gives them. Raises OSError where the disk does."""
        found: list[tuple[float, str]] = []
        before, self._known = self._known, {}
        folders = self._runs.iterdir() if self._runs.is_dir() else ()
        for record in [RunRecord(folder) for folder in folders if folder.is_dir() and not folder.name.startswith(".")]:
            looks = _looks(record.summary_file), _looks(record.journal_file)  # before they are read
            known = before.get(record.id)
            if known is None or known[0] != looks or known[1].state not in ENDED:
                known = looks, summarise(record)
            self._known[record.id] = known
            created = known[1].created
            found.append((record.folder.stat().st_mtime if created is None else created, record.id))
        return [self._known[run_id][1] for _, run_id in sorted(found, reverse=True)]

    def rows(self, summaries: Iterable[RunSummary]) -> list[RunRow]:
        """A row for each. Raises OSError where a journal cannot be read."""
        made = []
        for summary in summaries:
            old = self._rows.get(summary.id)
            made.append(old if old is not None and old.summary is summary else row_of(summary, self._recent(summary.id)))
        self._rows = {row.id: row for row in made}
        self._followed = {run_id: pair for run_id, pair in self._followed.items() if run_id in self._rows}
        return made

    def _recent(self, run_id: str) -> RunState:
        record = RunRecord(self._runs / run_id)
        reader, state = self._followed.get(run_id) or (
            JournalReader(record.journal_file, tail_bytes=TAIL_BYTES),
            begun(record),
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


def _looks(path: Path) -> _Looks:
    """What changes when the file does; None where there is none."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def row_of(summary: RunSummary, recent: RunState | None = None) -> RunRow:
    """The row of a run whose journal's end says `recent`; without it the summary speaks alone."""
    recent = recent or RunState()
    series = recent.series.get("loss" if summary.method == "sft" else "reward")
    trouble, remedy = trouble_of(summary, recent)
    return RunRow(
        summary,
        curve=tuple(series.values[-CURVE_POINTS:]) if series else (),
        value=series.last if series else summary.reward,
        eta_seconds=recent.eta_seconds() if summary.state in _HAS_ETA else None,
        fetched=fetched_of(summary, recent),
        trouble=trouble,
        remedy=remedy,
    )


def fetched_of(summary: RunSummary, recent: RunState) -> str:
    """How far the model of a run that is starting is on its way, in a column's width; empty where it is not on its way."""
    phase = recent.phase
    if phase is None or phase.progress is None or summary.state not in _TRAINING:
        return ""
    return f"{SHORT.get(phase.name, phase.name)} {percent(phase.progress)}"


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
