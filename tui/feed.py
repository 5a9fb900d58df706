"""RunFeed: follows a run's folder in a thread of its own, so that the screen only ever takes a finished picture.

A reader of any number: it writes nothing. What was left out: one message per event, which a fast run would drown the screen in.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.errors import InputError
from engine.runs.journal import JournalReader
from engine.runs.record import RunRecord, Summary, lock_is_held
from engine.runs.summary import observed_state
from tui.samples import StepSamples, read_samples
from tui.snapshot import Ledger, RunSnapshot, Surroundings

POLL_SECONDS = 0.25
PAUSE_SECONDS = 1.0  # at most between two looks: who shows the run does so no more often than it likes
SAMPLES_SECONDS = 1.0  # at least between two readings of samples
SLICE_BYTES = 1 << 16  # of the journal between two chances for the screen
SIGN_SECONDS = 5.0  # a picture is renewed at least so often while the run is not over, for the clocks in it
SAMPLES_SHARE = 200  # reading samples takes at most this share of the time
LOG_BYTES = 1 << 13  # of the end of worker.log
CONFIG_BYTES = 1 << 18

_SETTLED = frozenset({"stopped", "finished", "failed", "lost", "damaged"})


class RunFeed:
    """Everything there is to know of one run, kept up to date until close(). Threads may share it.

    `on_change` is called in the feed's own thread whenever there is something new.
    """

    def __init__(self, record: RunRecord, on_change: Callable[[], object] | None = None) -> None:
        self._record = record
        self._on_change = on_change
        self.looks = 0  # how often the folder was looked at, and what follows from it told
        self._told = -1  # the version that `on_change` was called for
        self._summary_of: tuple[int, int, int] | None = None  # of the run.json that was read last: inode, size, time
        self._found: tuple[Summary | None, str] = None, ""
        self._ledger = Ledger()
        self._reader = JournalReader(record.journal_file)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._pause_seconds = 0.0
        self._caught_up = threading.Event()
        self._slices = 0
        self._samples: StepSamples | None = None
        self._samples_version = 0
        self._samples_due = 0.0
        self._config: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"feed-{record.id}", daemon=True)
        self._ledger.observe(Surroundings(id=record.id, folder=record.folder, name=record.id))

    def start(self) -> RunFeed:
        """Begin to follow."""
        self._thread.start()
        return self

    @property
    def version(self) -> int:
        """Rises with every change."""
        return self._ledger.version

    def snapshot(self) -> RunSnapshot:
        """The run as it is known now."""
        with self._lock:
            return self._ledger.snapshot()

    def wait(self, seconds: float) -> bool:
        """Whether the journal was read to its end, once, within `seconds`."""
        return self._caught_up.wait(seconds)

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._closing.is_set()

    def close(self) -> None:
        """Stop following; returns at once."""
        self._closing.set()
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """From now on, after news was told, look again no sooner than in `seconds`: nothing is shown before."""
        hurries = seconds < self._pause_seconds
        self._pause_seconds = seconds
        if hurries:
            self._wake.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self.poll()
            except OSError as error:  # a disk that went away may come back
                self._note(f"the run folder cannot be read: {error}")
            except Exception as error:  # noqa: BLE001 - shown on the screen; a thread that died would just fall silent
                self._note(f"the run cannot be shown: {type(error).__name__}: {error}")
            self._caught_up.set()
            told = self._tell()
            self.looks += 1
            self._wake.wait(max(POLL_SECONDS, min(self._pause_seconds, PAUSE_SECONDS)) if told else POLL_SECONDS)
            self._wake.clear()

    def _tell(self) -> bool:
        """Whether there was news to tell."""
        if self._on_change is None or self._told == (version := self.version) or self._closing.is_set():
            return False
        self._told = version
        self._on_change()
        return True

    def poll(self) -> None:
        """Read everything that is new. Raises OSError where the disk does."""
        held = lock_is_held(self._record)  # before the journal is read: see derived_state
        self._read_journal()
        self._read_samples()
        if self._config is None:
            self._config = _beginning(self._record.config_file)
        summary, problem = self._summary()
        now = time.time()
        state = "damaged" if summary is None else observed_state(self._ledger.state, summary, held, now)
        new = Surroundings(
            id=self._record.id,
            folder=self._record.folder,
            name=summary.name if summary is not None else self._record.id,
            method=summary.method if summary is not None else "",
            model=summary.model if summary is not None else "",
            state=state,
            steps=summary.steps if summary is not None else None,
            now=now,
            loaded=1.0,
            problem=problem,
            config=self._config,
            worker_log=_end(self._record.log_file) if state in ("failed", "lost", "damaged") else (),
            samples=self._samples,
            torn=self._reader.torn,
        )
        old = self._ledger.around
        if new != old or (state not in _SETTLED and now - old.now >= SIGN_SECONDS):
            self._observe(new)

    def _read_journal(self) -> None:
        while not self._closing.is_set():
            events = self._reader.read(SLICE_BYTES)
            with self._lock:
                if self._reader.restarted:
                    self._ledger.restart()
                if events:
                    self._ledger.take(events)
            if not events:
                return
            if not self._caught_up.is_set():
                self._slices += 1
                size = os.stat(self._record.journal_file).st_size
                self._observe(replace(self._ledger.around, loaded=min(0.99, self._slices * SLICE_BYTES / max(size, 1))))
                self._tell()

    def _read_samples(self) -> None:
        """The newest step's rollouts; the ones from before stay while their file is being replaced."""
        version, start = self._ledger.samples_version, time.monotonic()
        if version == self._samples_version or start < self._samples_due:
            return
        files = self._ledger.state.samples.get("train")
        found = read_samples(self._record.folder, files[max(files)], max(files)) if files else None
        if found is None or found.groups or self._samples is None:
            self._samples = found
        self._samples_version = version
        self._samples_due = start + max(SAMPLES_SECONDS, SAMPLES_SHARE * (time.monotonic() - start))

    def _summary(self) -> tuple[Summary | None, str]:
        """run.json, or why it cannot be read; read again only where it is another file than before."""
        try:
            info = os.stat(self._record.summary_file)
            looks = info.st_ino, info.st_size, info.st_mtime_ns
        except OSError:
            looks = None  # what is wrong is said by who reads it
        if looks is None or looks != self._summary_of:
            try:
                self._found = self._record.summary(), ""
            except InputError as error:
                self._found = None, str(error)
            self._summary_of = looks
        return self._found

    def _note(self, problem: str) -> None:
        if self._ledger.around.problem != problem:
            self._observe(replace(self._ledger.around, problem=problem, loaded=1.0))

    def _observe(self, around: Surroundings) -> None:
        with self._lock:
            self._ledger.observe(around)


def _beginning(path: Path) -> str | None:
    """The text at `path` (its first CONFIG_BYTES), None where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(CONFIG_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _end(path: Path) -> tuple[str, ...]:
    """The last lines of a text file; none where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            lines = file.read(LOG_BYTES).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(lines[1:] if size > LOG_BYTES else lines)
