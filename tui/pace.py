"""When a screen may do again what costs something: take a picture of what it shows, read the list. A timer runs only where
something waits for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from textual.message_pump import MessagePump
from textual.timer import Timer

EARLY = 0.05  # news that is early by this share of the pace is taken at once: a timer for so short a time costs more


class Pace:
    """Of a screen that hears of news: `take` is called at once where the last time is old enough, else when it is; news that
    comes meanwhile waits with it. `seconds` gives the least time between two, as it is now."""

    def __init__(self, screen: MessagePump, take: Callable[[], None], seconds: Callable[[], float]) -> None:
        self._screen, self._take, self._seconds = screen, take, seconds
        self._due: Timer | None = None
        self._taken_t = -math.inf  # monotonic seconds

    @property
    def is_waiting(self) -> bool:
        """Whether `take` is going to be called anyway."""
        return self._due is not None

    def news(self) -> None:
        """There is something to take."""
        seconds = self._seconds()
        wait = self._taken_t + seconds - time.monotonic()
        if wait <= EARLY * seconds:
            self._call()
        elif self._due is None:
            self._due = self._screen.set_timer(wait, self._call)

    def taken(self) -> None:
        """It was taken, whoever asked for it: the next one keeps its distance."""
        self._taken_t = time.monotonic()

    def changed(self) -> None:
        """`seconds` gives another time: what waits does so at the new pace."""
        if self._due is not None:
            self._stop()
            self.news()

    def _call(self) -> None:
        self._stop()
        self._take()

    def _stop(self) -> None:
        if self._due is not None:
            self._due.stop()
            self._due = None


class Readings:
    """Of a screen that reads by itself every `every` seconds: reads take at most one part in `share` of the time, so that a
    slow disk is read less often."""

    def __init__(self, every: float, share: int) -> None:
        self._every, self._share = every, share
        self._read_t = self._due_t = -math.inf  # monotonic seconds

    @property
    def is_due(self) -> bool:
        """Whether it may be read again."""
        return time.monotonic() >= self._due_t

    @property
    def age_seconds(self) -> float:
        """Of what was read last; infinite where nothing was."""
        return time.monotonic() - self._read_t

    def read(self) -> None:
        """Something was read."""
        self._read_t = time.monotonic()

    def done(self, seconds: float) -> None:
        """A read is over that took so many seconds."""
        self._due_t = time.monotonic() + max(self._share * seconds - self._every, 0.0)
