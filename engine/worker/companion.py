"""What runs beside the training thread: the heartbeat, and the reading of commands. It never touches mlx.

The training thread asks it at its own moments (`attend`), between two tokens of a rollout and between two updates.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from engine.runs.control import Command, ControlInbox
from engine.runs.journal import JournalWriter
from engine.runs.record import RunRecord, State

HEARTBEAT_SECONDS = 5.0
_POLL_SECONDS = 0.2


class StopRequested(Exception):
    """A stop command (or a signal) was accepted; the loop checkpoints and ends."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Companion:
    """Heartbeats into the journal and commands out of control/, in a thread of its own. A context manager."""

    def __init__(self, record: RunRecord, journal: JournalWriter, started_t: float) -> None:
        self.record = record
        self.journal = journal
        self.inbox = ControlInbox(record.control_dir, started_t)
        self.step = 0
        self.phase = "load"
        self.bytes: Mapping[str, int] = {}  # last measured by the training thread
        self.paused_seconds = 0.0
        self._checkpoint: Command | None = None
        self._pause: Command | None = None
        self._stop: Command | str | None = None  # a command, or the name of a signal
        self.save: Callable[[str], None] = lambda reason: None  # the loop's own, once it exists
        self._live = False  # loaded: run.json follows the commands
        self._standing = False
        self._go = False  # a standing thread may go on
        self._changing = threading.Lock()  # a pause taken back and a pause carried out must not cross
        self._wake = threading.Event()  # set when a command came or this thread failed
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="companion", daemon=True)

    def __enter__(self) -> Companion:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def clock(self) -> float:
        """Seconds, with the time spent paused left out."""
        return time.perf_counter() - self.paused_seconds

    def warn(self, kind: str, message: str, remedy: str, **more: Any) -> None:
        """Journal a warning in plain words with what to do about it."""
        self.journal.write("warning", kind=kind, message=message, remedy=remedy, step=self.step, **more)

    def signal_stop(self, reason: str) -> None:
        """Ask for a stop from a signal handler: nothing here may wait for a lock."""
        self._stop = self._stop or reason

    def go_live(self) -> None:
        """The run is loaded. From here on run.json follows the commands; those that came while loading are carried out now."""
        with self._changing:
            if self._stop is None:
                self.record.update(state="running", step=self.step)
                self._live = True
        self.attend()

    def attend(self) -> None:
        """Do what was asked for: save a checkpoint, stand still, or raise StopRequested.

        Called by the training thread between two tokens and between two updates: always where weights and cursor agree.
        """
        self._attend_checkpoint()
        self.attend_while_loading()

    def attend_while_loading(self) -> None:
        """Of what was asked for the pause and the stop: while the run is still loading, there is nothing to save."""
        command = self._pause
        if command is not None:
            self._stand_still(command)
        self.attend_stop()

    @property
    def is_to_pause(self) -> bool:
        """Whether a pause was asked for that is not carried out yet."""
        return self._pause is not None and not self._standing

    def attend_stop(self) -> None:
        """Of what was asked for only the stop."""
        if self._error is not None:
            raise RuntimeError("the companion thread failed") from self._error
        stop = self._stop
        if isinstance(stop, Command):
            self._done(stop)
            raise StopRequested("command")
        if stop is not None:
            raise StopRequested(stop)

    def _attend_checkpoint(self) -> None:
        command, self._checkpoint = self._checkpoint, None
        if command is not None:
            self.save("command")
            self._done(command)

    def _done(self, command: Command) -> None:
        self.journal.write("command", id=command.id, verb=command.verb, status="done", reason="")

    def _stand_still(self, command: Command) -> None:
        start = time.perf_counter()
        with self._changing:
            if self._pause is not command or self._stop is not None:  # taken back just now
                return
            self._standing, self._go = True, False
            self.journal.write("paused", step=self.step)
            self.record.update(state="pausing")
            self.record.update(state="paused")
        self._done(command)
        while self._must_wait():
            self._wake.wait(_POLL_SECONDS)  # a signal wakes nobody
            self._wake.clear()
            if self._live:  # else there is nothing to save yet: the command waits
                self._attend_checkpoint()
        with self._changing:
            self._standing = False
            self.paused_seconds += time.perf_counter() - start
            if self._may_go_on():
                self.journal.write("resumed", from_step=self.step)
                self.record.update(state="running" if self._live else "starting")

    def _may_go_on(self) -> bool:
        return self._stop is None and self._error is None

    def _must_wait(self) -> bool:
        return not self._go and self._may_go_on()

    def _run(self) -> None:
        beat = 0.0
        try:
            while not self._ending.is_set():
                if time.monotonic() - beat >= HEARTBEAT_SECONDS:
                    beat = time.monotonic()
                    self._heartbeat()
                for command in self.inbox.poll():
                    self._accept(command)
                self._ending.wait(_POLL_SECONDS)
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which fails the run with it
            self._error = error
            self._wake.set()

    def _heartbeat(self) -> None:
        """A full disk costs heartbeats, not the run: training may get to its next checkpoint when there is room again."""
        try:
            self.journal.write("heartbeat", step=self.step, phase=self.phase, bytes=dict(self.bytes))
        except OSError as error:
            sys.stderr.write(f"no heartbeat could be written: {error}\n")

    def _accept(self, command: Command) -> None:
        with self._changing:
            status, reason = self._take(command)
        self.journal.write("command", id=command.id, verb=command.verb, status=status, reason=reason)
        self.inbox.done(command)
        self._wake.set()

    def _take(self, command: Command) -> tuple[str, str]:
        """Note what the command asks for: (status, reason)."""
        if command.expired:
            return "expired", "it is older than this worker"
        if command.error:
            return "refused", command.error
        if command.verb == "pause" and self._pause is None and self._stop is None:
            self._pause = command
            self._show("pausing")
        elif command.verb == "resume" and self._pause is not None:
            self._pause, self._go = None, True
            if not self._standing:
                self._show("running")
        elif command.verb == "stop" and self._stop is None:
            self._stop = command
            self._show("stopping")
        elif command.verb == "checkpoint" and self._checkpoint is None:
            self._checkpoint = command
        else:
            return "refused", f"{command.verb}: there is nothing to do"
        return "accepted", ""

    def _show(self, state: State) -> None:
        """Put the state into run.json, once the run is loaded."""
        if self._live:
            self.record.update(state=state)
