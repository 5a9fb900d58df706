"""What the loop asks of a kind of training. Two rooms answer: step.py (rewards) and supervised.py (imitation)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx

from engine.types import Message, StepMetrics
from engine.worker.batching import Batch
from engine.worker.work import StepWork

Warn = Callable[..., None]  # (kind, message, remedy, **more): a warning in plain words with what to do about it


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out prompts, judged. `score` is what best-so-far compares (higher is better), `rows` its addends per prompt and
    `counts` their denominators, so that two evaluations can be compared in pairs."""

    score: float
    rows: tuple[float, ...]
    counts: tuple[float, ...]
    metrics: Mapping[str, Any]
    samples: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class Watch:
    """How a task tells the loop what it is doing, and gives it the chance to pause or stop between two tokens."""

    phase: Callable[[int, str, int | None], None]  # (step, name, update)
    alive: Callable[[], None]
    warn: Warn
    clock: Callable[[], float] = time.perf_counter  # seconds, pauses left out
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: int, name: str, update: int | None = None) -> Iterator[None]:
        """Journal the phase and add its seconds to `seconds[name]`."""
        self.phase(step, name, update)
        start = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - start


class Task(Protocol):
    """A kind of training, as the loop sees it."""

    updates_per_step: int
    example: Sequence[Message]  # a held-out prompt

    def begin(self, step: int, watch: Watch) -> StepWork:
        """Gather what the step's updates need (rollouts, rewards, scores); `work.seconds` is filled in."""
        ...

    def batches(self, work: StepWork) -> list[Batch]:
        """The micro-batches of the update that comes next (number len(work.updates))."""
        ...

    def loss(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Loss (a sum) and statistics of one micro-batch; runs the model."""
        ...

    def broken(self, work: StepWork) -> list[int]:
        """Indices of the step's completions whose scores are not finite: no update can be computed from them."""
        ...

    def named(self, work: StepWork, rows: Sequence[int]) -> Mapping[str, Any]:
        """What the user knows rows of the coming update by, for a warning."""
        ...

    def metrics(self, work: StepWork) -> StepMetrics:
        """What the finished step measured, without seconds.total and bytes."""
        ...

    def samples(self, work: StepWork) -> Sequence[Mapping[str, Any]]:
        """The step's rollouts as rows of its samples file."""
        ...

    def evaluate(self, step: int, watch: Watch) -> Evaluation:
        """Judge the current weights on the held-out rows."""
        ...

    def close(self) -> None:
        """Let go of what the task holds (processes)."""
        ...
