"""For tests of the terminal app: the painted screen as text, waiting for conditions, run folders, and real terminals."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from textual.pilot import Pilot

from engine import config as configs
from engine.runs import record as records
from engine.runs.journal import JournalWriter
from engine.runs.record import RunRecord

GOLDENS = Path(__file__).with_name("goldens")
SECONDS = 30.0
COMMAND = [sys.executable, "-P", "-m", "tui"]
T0 = (
    1_700_000_000.0  # when the runs that tests write were created: run.json says so, and nothing on a screen moves with the clock
)


def painted_text(app: Any) -> str:
    """The whole screen as it is painted, without trailing blanks."""
    width, height = app.size
    console = Console(
        file=io.StringIO(), record=True, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
    )
    console.print(
        app.screen._compositor.render_update(full=True)
    )  # the only private name used; App.export_screenshot does the same
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


async def settle(pilot: Pilot[Any]) -> None:
    """Wait until every message is handled and no background work is under way."""
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


async def wait_for(pilot: Pilot[Any], condition: Callable[[], Any], what: str = "the condition") -> Any:
    """What `condition` gives once it is truthy; the screen's text is in the failure."""
    deadline, pause = time.monotonic() + SECONDS, 0.01
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} never came:\n{painted_text(pilot.app)}"
        await asyncio.sleep(pause)
        await pilot.pause()
        pause = min(1.3 * pause, 0.1)  # painting the screen for every look would keep a processor busy
    return found


async def wait_for_text(pilot: Pilot[Any], text: str) -> str:
    """The painted screen once it holds `text`."""
    await wait_for(pilot, lambda: text in painted_text(pilot.app), repr(text))
    return painted_text(pilot.app)


def check_golden(name: str, painted: str) -> None:
    """Compare with goldens/NAME.txt; DROID_TUNE_UPDATE_GOLDENS=1 writes it instead."""
    path = GOLDENS / f"{name}.txt"
    if os.environ.get("DROID_TUNE_UPDATE_GOLDENS") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(painted, encoding="utf-8")
    assert path.exists(), f"no golden {name}: run with DROID_TUNE_UPDATE_GOLDENS=1 and read what it writes"
    assert painted == path.read_text(encoding="utf-8")


def make_run(home: Path, name: str, *, method: str = "grpo", steps: int = 100, model: str = "demo") -> RunRecord:
    """The folder of a queued run, made as the engine makes it."""
    recipe = "sft" if method == "sft" else "grpo"
    path = Path(__file__).parents[2] / "configs" / f"{recipe}.yaml"
    config = configs.load(path, {"method": method, "run.steps": steps}).config
    config = config.model_copy(update={"model": model, "run": config.run.model_copy(update={"name": name})})
    return records.create(config, home)


class Tape:
    """Writes a run's journal with a real JournalWriter, and its run.json beside it."""

    def __init__(self, record: RunRecord, *, created: float = T0) -> None:
        self.record = record
        self._writer = JournalWriter(record.journal_file)
        summary = record.summary()
        self.write(
            "created",
            id=record.id,
            name=summary.name,
            method=summary.method,
            model=summary.model,
            steps=summary.steps,
            config_sha256="0" * 64,
            data_sha256="1" * 64,
        )
        self.summary(created=created, updated=created)

    def write(self, type: str, /, **fields: Any) -> None:
        """The next event."""
        self._writer.write(type, **fields)

    def steps(self, values: Iterable[float], *, first: int = 1, seconds: float = 10.0, name: str = "reward", **more: Any) -> None:
        """A step event for every value of the metric `name`, each of `seconds`."""
        for step, value in enumerate(values, first):
            self.write("step", step=step, metrics={name: value, "seconds": {"total": seconds}, **more})

    def summary(self, **changes: Any) -> None:
        """Change run.json, without the checks on the order of states."""
        old = self.record.summary()
        new = type(old).model_validate({**old.model_dump(), **changes})
        records.write_atomic(self.record.summary_file, new.model_dump_json().encode())

    def close(self) -> None:
        self._writer.close()


@contextmanager
def worker_lock(record: RunRecord) -> Iterator[None]:
    """Hold the run's lock, as its worker does for its life."""
    with record.lock_file.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# What a terminal, a markup parser or a line breaker could trip over, each between marks that a search finds again.
HOSTILE = {
    "markup": "q1[/INST]q2",
    "link": "q1[@click=app.quit]x[/]q2",
    "escape": "q1\x1b[31mq2",
    "clipboard": "q1\x1b]52;c;ZXZpbA==\x07q2",
    "c1": "q1\x9b31mq2",
    "nul": "q1\x00q2",
    "bidi": "q1\u202eq2",
    "cjk": "q1訓練q2",
    "zwj": "q1👩\u200d👩\u200d👧q2",
}


def raw_output(home: Path, arguments: Sequence[str], steps: Sequence[tuple[bytes, str]]) -> bytes:
    """Every byte that the app writes to a real terminal: each text is awaited in what came since the last one; then its keys."""
    master, slave = pty.openpty()
    environment = {**os.environ, "DROID_TUNE_HOME": str(home), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    command = [*COMMAND, *arguments]
    process = subprocess.Popen(command, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    raw, seen = b"", 0
    deadline = time.monotonic() + SECONDS
    try:
        for wanted, keys in steps:
            while wanted not in raw[seen:]:
                assert time.monotonic() < deadline, (wanted, raw[-2000:])
                if select.select([master], [], [], 0.1)[0]:
                    raw += os.read(master, 1 << 16)
            seen = len(raw)
            os.write(master, keys.encode())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)
    return raw


def assert_nothing_raw(raw: bytes, hostile: Mapping[str, str]) -> None:
    """None of the hostile texts reached the terminal as it was, and ESC did as its picture."""
    for kind in ("escape", "clipboard", "c1", "nul", "bidi"):
        before, after = hostile[kind][:3].encode(), hostile[kind].encode()
        assert before not in raw and after not in raw, kind
    assert b"q1\xe2\x90\x9b" in raw, "ESC is shown as its picture"
    assert b"\x1b]52" not in raw


class Tmux:
    """A real terminal: a tmux server of its own with one window of `width` x `height`, and a command in it."""

    def __init__(
        self,
        width: int,
        height: int,
        command: str,
        *,
        home: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        program = shutil.which("tmux")
        if program is None:
            pytest.skip("tmux is not installed")
        self._tmux = [program, "-L", f"droid-tune-{uuid.uuid4().hex[:8]}", "-f", os.devnull]
        left_out = {"TMUX", "TMUX_PANE", "NO_COLOR", "SSH_CONNECTION"}
        self._environment = {k: v for k, v in os.environ.items() if k not in left_out}
        self._environment |= {"DROID_TUNE_HOME": str(home), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", **(environment or {})}
        place = ["-c", str(cwd)] if cwd is not None else []
        self._run("new-session", "-d", "-x", str(width), "-y", str(height), *place, command)

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def send(self, *keys: str) -> None:
        """Press keys by tmux's names (Enter, Escape, C-p), one by one; a text is typed as it is."""
        for key in keys:
            self._run("send-keys", key)

    def type(self, text: str) -> None:
        """Type the text, whatever tmux calls its characters."""
        self._run("send-keys", "-l", text)

    def capture(self, *, escapes: bool = False) -> str:
        """What the window shows now; with `escapes` in its colours."""
        return self._run("capture-pane", "-p", *(["-e"] if escapes else []))

    def wait_for(self, wanted: str | Callable[[str], Any], seconds: float = 60.0) -> str:
        """The window's text once it holds `wanted`, or once the function of it is true."""
        holds = wanted if callable(wanted) else lambda shown: wanted in shown
        deadline = time.monotonic() + seconds
        while not holds(shown := self.capture()):
            assert time.monotonic() < deadline, f"{wanted!r} never came; the window shows:\n{shown}"
            time.sleep(0.1)  # the poll of a condition that another process makes true
        return shown

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def kill(self) -> None:
        """Take the terminal away, as closing its window does."""
        subprocess.run([*self._tmux, "kill-server"], env=self._environment, capture_output=True, check=False)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
