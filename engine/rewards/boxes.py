"""Starts enclosed programs, keeps them within their limits, and kills them."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.rewards import enclosures
from engine.rewards.enclosures import Enclosure
from engine.rewards.inside.boot import BOOTED, HEADER_BYTES
from engine.rewards.usage import folder_bytes, resident_bytes

START_SECONDS = 60.0  # until the first line of a program runs, on a busy machine
TICK_SECONDS = 0.05
_CHUNK_BYTES = 1 << 16
_PACKAGE = "engine.rewards.inside"
_IS_MACOS = sys.platform == "darwin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one sandbox. `seconds` is wall-clock time and starts when the program does."""

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    processes: int = 16  # and threads; macOS: one process
    file_bytes: int = 8 << 20  # of one file
    room_bytes: int = 64 << 20  # of all files in /tmp
    open_files: int = 32
    output_bytes: int = 1 << 20  # of standard output, and of standard error


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. `killed_for` is empty, or the limit that it went beyond: time, memory, output or files."""

    exit_code: int  # 128 + n, or -n, where signal n ended it; -1 where it was killed
    stdout: bytes
    stderr: bytes
    killed_for: str = ""


class SandboxFailure(RuntimeError):
    """The sandbox itself could not be started: that says nothing of the program."""


class Box:
    """One enclosed program that is running."""

    def __init__(self, process: subprocess.Popen[bytes], room: Path | None, to_send: bytes) -> None:
        self.process = process
        self._room = room  # a folder out here that it may fill; None where its folder is in memory, with a size of its own
        self._to_send = memoryview(to_send)
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._open = 2  # of stdout and stderr

    def register(self, selector: selectors.BaseSelector) -> None:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        os.set_blocking(self.process.stdin.fileno(), False)
        selector.register(self.process.stdin, selectors.EVENT_WRITE, self._write)
        for stream, into in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr)):
            selector.register(stream, selectors.EVENT_READ, lambda pipe, into=into: self._read(pipe, into))

    def _write(self, pipe: IO[bytes]) -> bool:
        """Send what there is room for. False: nothing more will be sent."""
        try:
            self._to_send = self._to_send[os.write(pipe.fileno(), self._to_send[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        if not self._to_send:
            pipe.close()
            return False
        return True

    def _read(self, pipe: IO[bytes], into: bytearray) -> bool:
        """Take what there is. False: there will be no more."""
        piece = os.read(pipe.fileno(), _CHUNK_BYTES)
        into += piece
        self._open -= not piece
        return bool(piece)

    @property
    def is_booted(self) -> bool:
        return self.stdout.startswith(BOOTED)

    def has_ended(self) -> bool:
        """Whether it has, waiting for a moment where its output has."""
        if self._open:
            return False
        try:
            self.process.wait(TICK_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wrote_too_much(self, limits: Limits) -> bool:
        return max(len(self.stdout) - len(BOOTED), len(self.stderr)) > limits.output_bytes

    def took_too_much(self, limits: Limits) -> str:
        """The limit that it is beyond, memory or files, or empty."""
        if resident_bytes(self.process.pid) > limits.memory_bytes:
            return "memory"
        if self._room is not None and folder_bytes(self._room) > limits.room_bytes:
            return "files"
        return ""


def attend(boxes: Sequence[Box], limits: Limits) -> Outcome:
    """How the first of them ended; the others serve it. SandboxFailure where one never came to run its program."""
    running, deadline = False, time.monotonic() + START_SECONDS
    next_look = 0.0
    with selectors.DefaultSelector() as selector:
        for box in boxes:
            box.register(selector)
        while True:
            now = time.monotonic()
            if now > deadline and not running:
                raise SandboxFailure(f"the sandbox did not start within {START_SECONDS:g} s")
            killed_for = "time" if now > deadline else ""
            if now >= next_look:
                next_look = now + TICK_SECONDS
                killed_for = killed_for or next(filter(None, (box.took_too_much(limits) for box in boxes)), "")
            if any(box.wrote_too_much(limits) for box in boxes):
                killed_for = "output"
            if killed_for:
                return _outcome(boxes[0], -1, killed_for)
            for key, _ in selector.select(min(TICK_SECONDS, max(0.0, deadline - now))):
                if not key.data(key.fileobj):
                    selector.unregister(key.fileobj)
            for box in boxes:
                if not box.is_booted and box.has_ended():
                    why = box.stderr.decode(errors="replace").strip()[-500:]
                    raise SandboxFailure(f"the sandbox ended at once (exit code {box.process.returncode}): {why}")
            if not running and all(box.is_booted for box in boxes):
                running, deadline = True, time.monotonic() + limits.seconds
            if boxes[0].has_ended():
                return _outcome(boxes[0], boxes[0].process.returncode, "output" if boxes[0].wrote_too_much(limits) else "")


def _outcome(box: Box, exit_code: int, killed_for: str) -> Outcome:
    return Outcome(exit_code, bytes(box.stdout.removeprefix(BOOTED)), bytes(box.stderr), killed_for)


@contextmanager
def started(
    enclosure: Enclosure,
    modules: Sequence[str],
    payload: Mapping[str, Any],
    stdin: bytes,
    descriptors: Sequence[int],
    limits: Limits,
) -> Iterator[Box]:
    """An enclosure in which the last of `modules` takes over; killed, with all that it has started, at the end."""
    arguments = ["-s", "-S", "-B", "-c", enclosures.source("boot"), json.dumps(_resource_limits(limits))]
    sources = {f"{_PACKAGE}.{name}": enclosures.source(name) for name in modules}
    data = json.dumps({**payload, "modules": sources}).encode()
    as_nobody: dict[str, Any] = {"user": enclosures.NOBODY, "group": enclosures.NOBODY, "extra_groups": []}
    with _room() as room:
        # On Linux a session of its own is made inside; the process out here stays in our group and dies with it.
        try:
            process = subprocess.Popen(
                enclosure.command(arguments, room, limits.room_bytes),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=descriptors,
                cwd=room if _IS_MACOS else "/",
                env=enclosures.environment(str(room)),
                **(as_nobody if os.getuid() == 0 and not _IS_MACOS else {}),
            )
        except OSError as error:
            raise SandboxFailure(f"the sandbox did not start: {error}") from error
        try:
            yield Box(process, room if _IS_MACOS else None, b"%*d" % (HEADER_BYTES, len(data)) + data + stdin)
        finally:
            process.kill()  # the enclosure dies with it, and everything in there with the enclosure
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is not None
                stream.close()
            process.wait()


@contextmanager
def _room() -> Iterator[Path]:
    """The private folder as the program sees it. On Linux it is inside, in memory: nothing is left out here."""
    if not _IS_MACOS:
        yield Path("/tmp")
        return
    with tempfile.TemporaryDirectory(prefix="droid-tune-sandbox-", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def _resource_limits(limits: Limits) -> dict[str, int]:
    kinds = {
        "RLIMIT_CPU": int(limits.seconds) + 1,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
    }
    if not _IS_MACOS:  # macOS does not keep the first, and counts all of the user's processes for the second
        kinds |= {"RLIMIT_AS": limits.memory_bytes, "RLIMIT_NPROC": limits.processes}
    return kinds
