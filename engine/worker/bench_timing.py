"""How the benchmark times: sides alternated in one process (ours, floor, ours, floor ...), a warm-up of each apart, medians.

A ratio is the median of the ratios of neighbours, so that a load which comes and goes falls on both sides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from engine import machine_load


@dataclass(frozen=True, slots=True)
class Part:
    """One part of one pass. CPU seconds are those of this process with all its threads; bytes are mlx's peak within the part."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Clock:
    """Times the parts of one pass: `now` ends the part under way and begins the next."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self._name: str | None = None
        self._start = self._cpu_start = 0.0

    def now(self, name: str | None) -> None:
        """From here on it is the part `name`; None: nothing that counts. A part that comes again is added to."""
        if self._name is not None:
            seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu_start
            old = self.parts.get(self._name, Part(0.0, 0.0, 0))
            peak = max(old.peak_bytes, mx.get_peak_memory(), mx.get_active_memory())  # the first is 0 where nothing was allocated
            self.parts[self._name] = Part(old.seconds + seconds, old.cpu_seconds + cpu, peak)
        self._name = name
        mx.reset_peak_memory()
        self._start, self._cpu_start = time.perf_counter(), time.process_time()


Side = Callable[[Clock], None]
Pass = Mapping[str, Part]  # a pass by its parts
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Timed:
    """Every counted pass of every side, and what else the machine did meanwhile."""

    passes: Mapping[str, Sequence[Pass]]  # by side; pass i of one side was made next to pass i of the others
    load: machine_load.Load
    weights_bytes: int

    def seconds(self, side: str, *parts: str) -> list[float]:
        """Of each pass, the parts together; all of them where none is named."""
        return [sum(part.seconds for name, part in one.items() if not parts or name in parts) for one in self.passes[side]]

    def cpu_seconds(self, side: str, *parts: str) -> list[float]:
        """As `seconds`, of CPU time."""
        return [sum(part.cpu_seconds for name, part in one.items() if not parts or name in parts) for one in self.passes[side]]

    def ratio(self, above: str, below: str, *parts: str) -> float:
        """Seconds of `above` over those of `below`, the median of neighbours."""
        return _neighbours(self.seconds(above, *parts), self.seconds(below, *parts))

    def cpu_ratio(self, above: str, below: str, *parts: str) -> float:
        """The same of CPU seconds, which other processes disturb less; on a GPU it says little."""
        return _neighbours(self.cpu_seconds(above, *parts), self.cpu_seconds(below, *parts))

    def peak(self, side: str, *parts: str) -> int:
        """The most bytes above the weights in these parts (in all where none is named), over all passes."""
        found = [part.peak_bytes for one in self.passes[side] for name, part in one.items() if not parts or name in parts]
        return max(found) - self.weights_bytes

    def told(self, side: str, *parts: str, tokens: int | None = None) -> dict[str, Any]:
        """The parts together as JSON: the median, least and most seconds, and tokens a second where `tokens` says how many."""
        seconds = self.seconds(side, *parts)
        middle = statistics.median(seconds)
        found = {
            "seconds": middle,
            "seconds_least": min(seconds),
            "seconds_most": max(seconds),
            "cpu_seconds": statistics.median(self.cpu_seconds(side, *parts)),
            "peak_bytes_above_weights": self.peak(side, *parts),
        }
        return found if tokens is None else {**found, "tokens_per_second": tokens / middle}


def alternate(sides: Mapping[str, Side], repeats: int, weights_bytes: int, told: Told, *, warm: bool = True) -> Timed:
    """Run each side once for nothing (unless it is `warm` already), then all in turn, `repeats` times."""
    if warm:
        for name, side in sides.items():
            told(f"{name}, warm-up")
            side(Clock())
    passes: dict[str, list[Pass]] = {name: [] for name in sides}
    start = machine_load.mark()
    for number in range(repeats):
        for name, side in sides.items():
            told(f"{name}, {number + 1} of {repeats}")
            clock = Clock()
            side(clock)
            clock.now(None)
            passes[name].append(clock.parts)
    return Timed(passes, machine_load.since(start), weights_bytes)


def _neighbours(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(above, below, strict=True))
