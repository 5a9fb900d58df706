"""What watching costs: the terminal app attached to a live run of the demo, in a pseudo-terminal of its own.

The run trains throughout. Windows without the app and with it alternate; in each the CPU time of the app's process and the
seconds of the steps that began and ended within are taken. The app's start, up to its first whole picture and some steps more, is
not in its window.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import config as configs
from engine import machine_load
from engine.api import Engine, Run
from engine.errors import InputError
from engine.runs import launch
from engine.runs.record import lock_is_held
from engine.share import share_root

PROGRAM = (sys.executable, "-P", "-m", "tui")
COLUMNS, ROWS = 120, 40
LEAST_STEPS = 3  # a window lasts until so many steps lie within it
LIMIT_SECONDS = 120.0  # for the steps of a window to come, and for the app to show the run
PICTURE = "eta "  # in the app's first line of figures, once it has read the journal
_FOREVER = 10**6  # steps: the run is stopped long before
_TAIL_BYTES = 1 << 16


@dataclass(slots=True)
class Steps:
    """The steps of a run as its journal tells them."""

    run: Run
    seen: list[tuple[float, float]] = field(default_factory=list)  # (unix seconds of its end, its duration in seconds)
    _ended: bool = False
    _fresh: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """Until the run ends."""
        async for event in self.run.events():
            if event.type == "step":
                self.seen.append((event.t, float(event.fields["metrics"]["seconds"]["total"])))
                self._fresh.set()
        self._ended = True
        self._fresh.set()

    def since(self, t: float) -> list[float]:
        """Durations of the steps that began after `t`."""
        return [seconds for end, seconds in self.seen if end - seconds >= t]

    async def window(self, seconds: float) -> list[float]:
        """Durations of the steps within the next `seconds`, or longer until there are enough. Raises InputError where no more
        come."""
        start = time.time()
        await asyncio.sleep(seconds)
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                while len(found := self.since(start)) < LEAST_STEPS:
                    if self._ended:
                        raise TimeoutError
                    self._fresh.clear()
                    await self._fresh.wait()
        except TimeoutError:
            state = await self.run.state()
            said = str(state.failure.get("error")) if state.failure else f"it is {state.state}"
            remedy = "does `droid-tune demo` work?"
            raise InputError(f"the run makes no steps: {said}", where="bench app", remedy=remedy) from None
        return found


class Terminal:
    """The app in a pseudo-terminal; what it draws is read, and the last of it kept."""

    def __init__(self, run_id: str, home: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        path = launch.python_path(os.environ.get("PYTHONPATH", ""))
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
            **({"PYTHONPATH": path} if path else {}),
            "DROID_TUNE_HOME": str(home),
            "TERM": "xterm-256color",
        }
        command = [*PROGRAM, "attach", run_id]
        self._process = subprocess.Popen(
            command, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self._drawn = b""
        self.drawn_bytes = 0
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._master, self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def shows(self, text: str) -> None:
        """Until `text` has been drawn. Raises InputError where it does not come."""
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                while text.encode() not in self._drawn:
                    self._more.clear()
                    if self._process.poll() is not None:
                        raise TimeoutError
                    await self._more.wait()
        except TimeoutError:
            last = self._drawn[-200:].decode("utf-8", "replace")
            remedy = "does `droid-tune attach` work in a terminal of yours?"
            raise InputError(f"the app shows no {text!r}, but {last!r}", where="bench app", remedy=remedy) from None

    def close(self) -> None:
        """End the app."""
        asyncio.get_running_loop().remove_reader(self._master)
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self) -> None:
        try:
            drawn = os.read(self._master, 1 << 16)
        except OSError:  # Linux: the other end is closed
            drawn = b""
        if not drawn:
            asyncio.get_running_loop().remove_reader(self._master)
        self.drawn_bytes += len(drawn)
        self._drawn = (self._drawn + drawn)[-_TAIL_BYTES:]
        self._more.set()


async def app(seconds: float, repeats: int, told: Callable[[str], None]) -> dict[str, Any]:
    """The app's share of one core, and the steps' seconds with it over those without it."""
    shares, starts, drawn = [], [], 0
    pairs: list[tuple[list[float], list[float]]] = []
    with tempfile.TemporaryDirectory(prefix="droid-tune-bench-") as folder:
        home = Path(folder)
        told("starting a run")
        async with _training(home) as steps:
            pid = steps.run.record.summary().pid
            start = machine_load.mark([] if pid is None else [pid])
            for number in range(repeats):
                told(f"without the app, {number + 1} of {repeats}")
                without = await steps.window(seconds)
                told(f"with the app, {number + 1} of {repeats}")
                terminal = Terminal(steps.run.id, home)
                try:
                    await terminal.shows(PICTURE)
                    starts.append(machine_load.cpu_seconds(terminal.pid))
                    await steps.window(0.0)  # what the first picture left to do is part of the start too
                    begun, before = time.monotonic(), machine_load.cpu_seconds(terminal.pid)
                    beside = await steps.window(seconds)
                    used = machine_load.cpu_seconds(terminal.pid) - before
                    shares.append(used / (time.monotonic() - begun))
                    drawn += terminal.drawn_bytes
                finally:
                    terminal.close()
                pairs.append((without, beside))
            load = machine_load.since(start)
    return {
        "window_seconds": seconds,
        "windows": repeats,
        "share_of_one_core": statistics.median(shares),
        "share_most": max(shares),
        "start_cpu_seconds": statistics.median(starts),
        "drawn_bytes": drawn,
        **slowdown(pairs),
        "load": load.as_dict(),
    }


def slowdown(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """The median step of all windows without the app and of all with it, and the one over the other; from the seconds of the
    steps in each pair of neighbouring windows. Beside it the same for each pair, which says how far apart they are."""
    without = [seconds for one, _ in pairs for seconds in one]
    beside = [seconds for _, one in pairs for seconds in one]
    middle = {"without": statistics.median(without), "with": statistics.median(beside)}
    return {
        "step_seconds": middle,
        "steps": {"without": len(without), "with": len(beside)},
        "slowdown": middle["with"] / middle["without"],
        "slowdown_by_pair": [statistics.median(one) / statistics.median(other) for other, one in pairs],
    }


@asynccontextmanager
async def _training(home: Path) -> AsyncIterator[Steps]:
    """A run of the demo that goes on for as long as it is needed."""
    changes = {"run.steps": _FOREVER, "run.eval_every": _FOREVER, "run.checkpoint_every": _FOREVER}
    run = await Engine(home).start(configs.load(share_root("configs") / "demo.yaml", changes).config)
    steps = Steps(run)
    following = asyncio.create_task(steps.follow())
    try:
        await steps.window(0.0)
        yield steps
    finally:
        following.cancel()
        if lock_is_held(run.record):
            await run.stop()
            await run.wait()
