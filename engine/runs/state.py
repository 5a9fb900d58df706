"""RunState: what a viewer needs to know of a run, folded from its journal. Pure: it reads no clock, file or lock.

fold(a) followed by apply(b) is fold(a + b). Unknown event types and fields are passed over, so that an older viewer can
watch a newer worker.
"""

from __future__ import annotations

import statistics
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.runs.journal import Event, jsonable
from engine.runs.record import ENDED
from engine.runs.reducers import HANDLERS, WARNINGS_KEPT
from engine.runs.values import Checkpoint, CommandStatus, Phase, RunWarning, Series

__all__ = ["WARNINGS_KEPT", "Checkpoint", "CommandStatus", "Phase", "RunState", "RunWarning", "Series", "fold"]

STEPS_MEASURED = 20  # recent steps whose median is the step time


@dataclass
class RunState:
    """A run as its journal tells it. Times are unix seconds, durations seconds; None: not known yet."""

    id: str | None = None
    name: str | None = None
    method: str | None = None
    model: str | None = None
    state: str = "queued"
    state_t: float | None = None  # since when, or the start of the newest worker
    step: int = 0  # last finished step
    steps: int | None = None
    eval_every: int | None = None  # steps between evaluations; runs of older versions do not say
    predicted: dict[str, float] = field(default_factory=dict)  # seconds of a step and of an eval, estimated at the start
    pid: int | None = None
    phase: Phase | None = None
    seq: int = 0  # of the newest event
    created_t: float | None = None
    started_t: float | None = None  # of the first worker
    last_t: float | None = None
    last_heartbeat_t: float | None = None
    resumes: int = 0  # workers started after the first; un-pausing is none
    digests: dict[str, str] = field(default_factory=dict)  # config_sha256, data_sha256
    machine: dict[str, Any] = field(default_factory=dict)  # of the newest `started`: host, platform, versions, blas, ...
    memory: dict[str, float] = field(default_factory=dict)  # bytes by kind, of the newest heartbeat
    series: dict[str, Series] = field(default_factory=dict)  # by metric; nested ones as parts.NAME, seconds.PHASE, bytes.KIND
    held_out: dict[str, Series] = field(default_factory=dict)  # the same for evaluations
    best_steps: list[int] = field(default_factory=list)  # evaluations that were the best so far
    samples: dict[str, dict[int, str]] = field(default_factory=dict)  # split -> step -> file in the run folder
    checkpoints: list[Checkpoint] = field(default_factory=list)
    commands: dict[str, CommandStatus] = field(default_factory=dict)  # by id
    warnings: list[RunWarning] = field(default_factory=list)  # the newest WARNINGS_KEPT
    warning_count: int = 0
    result: dict[str, Any] | None = None  # summary of `finished`
    failure: dict[str, Any] | None = None  # step, error, remedy, kind of `failed`
    ignored: int = 0  # events of an unknown type, without a field they need, or seen before
    torn: int = 0  # lines of the journal that are no events; set by who read it

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The latest one."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def best_step(self) -> int | None:
        return self.best_steps[-1] if self.best_steps else None

    def latest_samples(self, split: str) -> str | None:
        """The newest samples file of `train` or `held_out`."""
        files = self.samples.get(split)
        return files[max(files)] if files else None

    def apply(self, event: Event) -> None:
        """Take the next event in."""
        if event.seq <= self.seq:
            self.ignored += 1
            return
        self.seq = event.seq
        self.last_t = event.t
        before = self.state
        handler = HANDLERS.get(event.type)
        if handler is None or not handler(self, event):
            self.ignored += 1
        if self.state != before or event.type == "started":
            self.state_t = event.t

    def step_seconds(self) -> float | None:
        """Seconds of a step: the median total of the last ones; None while no step was measured."""
        total = self.series.get("seconds.total")
        return statistics.median(total.values[-STEPS_MEASURED:]) if total else None

    def eval_seconds(self) -> float | None:
        """Seconds of the latest evaluation; None while none was measured."""
        measured = self.held_out.get("seconds.eval")
        return measured.last if measured else None

    def evaluations_left(self) -> int:
        """Evaluations still to come, the one after the last step among them; 0 where the number of steps is not known."""
        if self.steps is None or self.steps < self.step:
            return 0
        done = max((series.steps for series in self.held_out.values()), key=len, default=array("q"))
        every = self.eval_every or (done[-1] - done[-2] if len(done) > 1 else self.steps) or 1
        # its multiples from this step on, and the last step
        due = self.steps // every - (self.step - 1) // every + (self.steps % every > 0)
        return max(0, due - (len(done) - bisect_left(done, self.step)))

    def eta_seconds(self) -> float | None:
        """Seconds that the remaining steps and evaluations will take: by those that were measured, before that by the estimate at
        the start. None while neither is known. What has passed of a step under way is not taken off."""
        step, evaluation = self.step_seconds(), self.eval_seconds()
        step = self.predicted.get("step") if step is None else step
        evaluation = self.predicted.get("eval") if evaluation is None else evaluation
        if step is None or self.steps is None:
            return None
        return max(0, self.steps - self.step) * step + self.evaluations_left() * (evaluation or 0.0)

    def as_dict(self) -> dict[str, Any]:
        """The state for `--json`: latest values in place of whole series, non-finite numbers as strings."""
        return {
            "id": self.id,
            "name": self.name,
            "method": self.method,
            "model": self.model,
            "state": self.state,
            "state_t": self.state_t,
            "pid": self.pid,
            "step": self.step,
            "steps": self.steps,
            "phase": self.phase.as_dict() if self.phase else None,
            "seq": self.seq,
            "created_t": self.created_t,
            "started_t": self.started_t,
            "last_t": self.last_t,
            "last_heartbeat_t": self.last_heartbeat_t,
            "resumes": self.resumes,
            "step_seconds": jsonable(self.step_seconds()),
            "eval_seconds": jsonable(self.eval_seconds()),
            "evaluations_left": self.evaluations_left(),
            "eta_seconds": jsonable(self.eta_seconds()),
            "metrics": _latest(self.series),
            "held_out": _latest(self.held_out),
            "best_step": self.best_step,
            "samples": {split: self.latest_samples(split) for split in self.samples},
            "memory": jsonable(self.memory),
            "checkpoint": asdict(self.checkpoint) if self.checkpoint else None,
            "commands": {key: asdict(command) for key, command in self.commands.items()},
            "warnings": [asdict(warning) for warning in self.warnings],
            "warning_count": self.warning_count,
            "result": jsonable(self.result),
            "failure": jsonable(self.failure),
            "machine": jsonable(self.machine),
            "digests": self.digests,
            "ignored": self.ignored,
            "torn": self.torn,
        }


def fold(events: Iterable[Event]) -> RunState:
    """The state after `events`."""
    state = RunState()
    for event in events:
        state.apply(event)
    return state


def _latest(series: Mapping[str, Series]) -> dict[str, Any]:
    return {name: {"step": entry.steps[-1], "value": jsonable(entry.last)} for name, entry in series.items() if entry}
