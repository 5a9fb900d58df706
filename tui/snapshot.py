"""What the live screen draws: one frozen picture of a run, made from its journal by a Ledger. Pure: no clock, file or thread."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.runs.journal import Event
from engine.runs.state import Checkpoint, CommandStatus, Phase, RunState, RunWarning, Series
from tui.samples import StepSamples

LOG_KEPT = 2000  # newest events, for the log


@dataclass(frozen=True, eq=False)
class Metric:
    """The first `length` points of a series. The ledger only ever appends to a series that a metric shows, so this never
    changes; what a chart asks for is copied once."""

    source: Series
    length: int

    @cached_property
    def steps(self) -> Any:
        """array of int"""
        return self.source.steps[: self.length]

    @cached_property
    def values(self) -> Any:
        """array of float; may hold NaN and infinities"""
        return self.source.values[: self.length]

    @cached_property
    def lowest(self) -> float:
        """The lowest finite value; infinity where there is none."""
        values = self.values
        if math.isfinite(sum(values)):
            return float(min(values))
        return min((value for value in values if math.isfinite(value)), default=math.inf)

    @property
    def first(self) -> float:
        return self.source.values[0]

    @property
    def last(self) -> float:
        return self.source.values[self.length - 1]

    @property
    def last_step(self) -> int:
        return self.source.steps[self.length - 1]

    def recent(self, count: int) -> list[float]:
        """The last `count` values."""
        return list(self.source.values[max(0, self.length - count) : self.length])


@dataclass(frozen=True)
class Surroundings:
    """What is known of a run besides its journal. `state` is the derived one; `now` (unix seconds) is when this was looked at."""

    id: str = ""
    folder: Path | None = None
    name: str = ""
    method: str = ""
    model: str = ""
    state: str = "queued"
    steps: int | None = None
    now: float = field(default=0.0, compare=False)
    loaded: float = 0.0  # share of the journal that has been read; 1: all of it
    problem: str = ""  # why something cannot be read
    config: str | None = None  # text of config.yaml
    worker_log: tuple[str, ...] = ()  # its end, for a run that failed or is lost
    samples: StepSamples | None = None  # of the newest step that has a file
    torn: int = 0


@dataclass(frozen=True, eq=False)
class RunSnapshot:
    """A run at one moment; `version` rises with every change. Times are unix seconds, durations seconds, None: not known."""

    version: int
    around: Surroundings
    step: int = 0
    steps: int | None = None
    method: str = ""
    model: str = ""
    phase: Phase | None = None
    pid: int | None = None
    seq: int = 0
    created_t: float | None = None
    started_t: float | None = None
    last_t: float | None = None
    state_t: float | None = None
    resumes: int = 0
    step_seconds: float | None = None
    eta_seconds: float | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Metric] = field(default_factory=dict)
    held_out: Mapping[str, Metric] = field(default_factory=dict)
    best_step: int | None = None
    sample_files: Mapping[int, str] = field(default_factory=dict)  # of the rollouts, by step
    checkpoints: tuple[Checkpoint, ...] = ()
    commands: Mapping[str, CommandStatus] = field(default_factory=dict)
    warnings: tuple[RunWarning, ...] = ()
    warning_count: int = 0
    result: Mapping[str, Any] | None = None
    failure: Mapping[str, Any] | None = None
    log: tuple[Event, ...] = ()
    ignored: int = 0

    @property
    def state(self) -> str:
        return self.around.state

    @property
    def score(self) -> str:
        """The name of what the run improves: reward, or loss for supervised training."""
        return "loss" if self.method == "sft" else "reward"

    def last(self, name: str) -> float | None:
        """The latest value of a metric."""
        metric = self.series.get(name)
        return metric.last if metric is not None else None


class Ledger:
    """Folds events into a RunState and hands out snapshots. Whoever shares it between threads keeps a lock."""

    def __init__(self) -> None:
        self.version = 0
        self.state = RunState()
        self.around = Surroundings()
        self.samples_version = 0  # rises whenever a samples file was written, or fell away
        self._log: deque[Event] = deque(maxlen=LOG_KEPT)
        self._series: dict[str, Metric] = {}
        self._held_out: dict[str, Metric] = {}
        self._files: dict[int, str] = {}
        self._files_version = -1
        self._snapshot: RunSnapshot | None = None

    def take(self, events: Iterable[Event]) -> None:
        """Take the next events in."""
        for event in events:
            if event.type in ("step", "eval", "resumed"):
                self._part_from_what_was_shown(event)
            elif event.type == "samples":
                self.samples_version += 1
            self.state.apply(event)
            self._log.append(event)
        self.version += 1

    def restart(self) -> None:
        """Forget everything: another journal took the place of the one that was read."""
        self.state = RunState()
        self._log.clear()
        self.samples_version += 1
        self.version += 1

    def observe(self, around: Surroundings) -> None:
        """Note what is known besides the journal."""
        self.around = around
        self.version += 1

    def snapshot(self) -> RunSnapshot:
        """The run as it is now; the same object until something changes."""
        if self._snapshot is None or self._snapshot.version != self.version:
            self._snapshot = self._make()
        return self._snapshot

    def _make(self) -> RunSnapshot:
        state = self.state
        self._series = _metrics(state.series, self._series)
        self._held_out = _metrics(state.held_out, self._held_out)
        if self._files_version != self.samples_version:
            self._files, self._files_version = dict(state.samples.get("train", {})), self.samples_version
        return RunSnapshot(
            version=self.version,
            around=self.around,
            step=state.step,
            steps=state.steps if state.steps is not None else self.around.steps,
            method=state.method or self.around.method,
            model=state.model or self.around.model,
            phase=state.phase,
            pid=state.pid,
            seq=state.seq,
            created_t=state.created_t,
            started_t=state.started_t,
            last_t=state.last_t,
            state_t=state.state_t,
            resumes=state.resumes,
            step_seconds=state.step_seconds(),
            eta_seconds=state.eta_seconds(),
            machine=dict(state.machine),
            memory=dict(state.memory),
            series=self._series,
            held_out=self._held_out,
            best_step=state.best_step,
            sample_files=self._files,
            checkpoints=tuple(state.checkpoints),
            commands=dict(state.commands),
            warnings=tuple(state.warnings),
            warning_count=state.warning_count,
            result=None if state.result is None else dict(state.result),
            failure=None if state.failure is None else dict(state.failure),
            log=tuple(self._log),
            ignored=state.ignored,
        )

    def _part_from_what_was_shown(self, event: Event) -> None:
        """Before an event that drops points: go on with copies, so that earlier snapshots keep theirs."""
        state, step = self.state, event.fields.get("step")
        if event.type == "resumed":
            self.samples_version += 1
        if event.type == "resumed" or (event.type == "step" and isinstance(step, int) and step <= state.step):
            state.series = _copies(state.series)
        if event.type == "resumed" or (
            event.type == "eval" and any(_reaches(series, step) for series in state.held_out.values())
        ):
            state.held_out = _copies(state.held_out)


def _reaches(series: Series, step: object) -> bool:
    return isinstance(step, int) and len(series) > 0 and series.steps[-1] >= step


def _copies(series: Mapping[str, Series]) -> dict[str, Series]:
    return {name: replace(entry, steps=entry.steps[:], values=entry.values[:]) for name, entry in series.items()}


def _metrics(series: Mapping[str, Series], before: Mapping[str, Metric]) -> dict[str, Metric]:
    """A metric for every series that has points; where nothing was added, the one from before."""
    return {
        name: old
        if (old := before.get(name)) is not None and old.source is entry and old.length == len(entry)
        else Metric(entry, len(entry))
        for name, entry in series.items()
        if entry
    }
