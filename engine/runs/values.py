"""What a RunState is made of: series of metrics, and the small facts that events report."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.runs.journal import number

_MARKS_KEPT = 13
# the last four are maps: each entry is a series of its own
_NO_SERIES = frozenset({"step", "parts", "parts_spread", "seconds", "bytes"})


@dataclass(slots=True)
class Series:
    """A metric over the steps: `values[i]` belongs to `steps[i]`, steps strictly rising; values may be NaN or infinite."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None

    def add(self, step: int, value: float) -> None:
        """Append; a step that was there already takes the old one's place."""
        if self.steps and step <= self.steps[-1]:
            self.drop_after(step - 1)
        self.steps.append(step)
        self.values.append(value)

    def drop_after(self, step: int) -> None:
        """Forget every entry of a later step."""
        keep = bisect_right(self.steps, step)
        del self.steps[keep:], self.values[keep:]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is that goes through `total` bytes: what was done when, the newest last."""

    total: int
    marks: tuple[tuple[float, int], ...]  # unix seconds, bytes

    def at(self, t: float, done: int) -> Progress:
        """A moment later. A minute of heartbeats is kept: the rate is that of the last minute."""
        return Progress(self.total, (*self.marks, (t, done))[-_MARKS_KEPT:])

    @property
    def done(self) -> int:
        return self.marks[-1][1]

    @property
    def bytes_per_second(self) -> float | None:
        (first_t, first), (last_t, last) = self.marks[0], self.marks[-1]
        return (last - first) / (last_t - first_t) if last_t > first_t and last > first else None

    @property
    def eta_seconds(self) -> float | None:
        rate = self.bytes_per_second
        return None if rate is None else max(0, self.total - self.done) / rate


@dataclass(frozen=True, slots=True)
class Phase:
    """What the worker is doing, since `t`: in `step`, in its optimizer update `update` where there are several."""

    name: str
    step: int | None
    update: int | None
    t: float
    progress: Progress | None = None  # of a phase that goes through bytes: a download, a conversion

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        told: dict[str, Any] = {"name": self.name, "step": self.step, "update": self.update, "t": self.t}
        if self.progress is not None:
            progress = self.progress
            told |= {"done_bytes": progress.done, "total_bytes": progress.total}
            told |= {"bytes_per_second": progress.bytes_per_second, "eta_seconds": progress.eta_seconds}
        return told


@dataclass(frozen=True, slots=True)
class CommandStatus:
    """What became of a command: accepted, done, refused (with its reason) or expired."""

    verb: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunWarning:
    kind: str
    message: str
    remedy: str
    step: int | None
    t: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint after update `update` of step `step`; `path` is relative to the run folder."""

    step: int
    update: int | None
    path: str
    reason: str
    t: float


def record_metrics(series: dict[str, Series], step: int, metrics: Mapping[str, Any]) -> None:
    """Add the numbers in `metrics` at `step`, which is later than every step there; None and unknown kinds are skipped."""
    for name, item in _flat(metrics):
        value = item if type(item) is float else number(item)
        if value is None:
            continue
        entry = series.get(name)
        if entry is None:
            entry = series[name] = Series()
        entry.steps.append(step)
        entry.values.append(value)


def _flat(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of `metrics` and of the maps inside it."""
    for name, item in metrics.items():
        if name not in _NO_SERIES:
            yield name, item
        elif isinstance(item, dict):
            for key, value in item.items():
                yield f"{name}.{key}", value
