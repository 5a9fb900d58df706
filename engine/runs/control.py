"""Commands to a worker: one file each in the run's control folder, in order of their names, acknowledged in the journal."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import stat
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.runs import journal
from engine.runs.record import RunRecord, lock_is_held, write_atomic
from engine.runs.state import CommandStatus

VERBS = ("pause", "resume", "stop", "checkpoint")

_REFUSED = ".refused"  # in the control folder: what is named as a command but cannot be deleted as one, such as a folder
_TAIL_BYTES = 1 << 20  # where the acknowledgement of a command that has just been sent must lie


@dataclass(frozen=True, slots=True)
class Command:
    """A command as the worker finds it. `expired`: it was sent before this worker started. `error`: why it means nothing."""

    id: str
    verb: str
    t: float  # unix seconds
    arguments: dict[str, Any] = field(default_factory=dict)
    expired: bool = False
    error: str = ""


def send(record: RunRecord, verb: str, **arguments: Any) -> str:
    """Leave a command for the run's worker and return its id. Raises ValueError for an unknown verb."""
    if verb not in VERBS:
        raise ValueError(f"unknown verb {verb!r}; one of: {', '.join(VERBS)}")
    sent_ns = time.time_ns()
    command_id = f"{sent_ns:020d}-{verb}-{secrets.token_hex(4)}"
    record.control_dir.mkdir(exist_ok=True)
    body = {"id": command_id, "verb": verb, "t": sent_ns / 1e9, "arguments": arguments}
    write_atomic(record.control_dir / f"{command_id}.json", json.dumps(body, allow_nan=False).encode())
    return command_id


class ControlInbox:
    """The worker's side. `started_t` (unix seconds) is when this worker was launched: run.json has it as `launched`."""

    def __init__(self, folder: Path, started_t: float) -> None:
        self._folder = folder
        self._started_t = started_t
        self._kept: set[str] = set()  # names that could neither be deleted nor moved: acknowledged, and passed over

    def poll(self) -> list[Command]:
        """The commands that are not done yet, the oldest first; each stays until `done` is called for it."""
        try:
            found = os.listdir(self._folder)  # ten times a second: no path is made where there is nothing
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (name for name in found if name.endswith(".json") and not name.startswith("."))
        return [self._read(name) for name in sorted(names) if name not in self._kept]

    def done(self, command: Command) -> None:
        """Put the command away: it has been acknowledged in the journal, which keeps it. What is no file is moved aside."""
        path = self._folder / f"{command.id}.json"
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self._put_aside(path)

    def _put_aside(self, path: Path) -> None:
        aside = self._folder / _REFUSED
        try:
            aside.mkdir(exist_ok=True)
            path.rename(aside / f"{path.stem}-{secrets.token_hex(4)}{path.suffix}")
        except OSError:  # the control folder itself cannot be written; the worker must not stumble over it again and again
            self._kept.add(path.name)

    def _read(self, name: str) -> Command:
        path = self._folder / name
        command_id = path.stem
        changed_t = 0.0
        try:
            facts = path.lstat()
            changed_t = facts.st_mtime
            if not stat.S_ISREG(facts.st_mode):  # a folder; or a pipe, which would never end
                return Command(command_id, "", changed_t, error="not a command file: not a plain file")
            body = json.loads(path.read_bytes())
            verb, t, arguments = body["verb"], body["t"], body.get("arguments", {})
        except OSError as error:
            return Command(command_id, "", changed_t, error=f"cannot be read: {error.strerror}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Command(command_id, "", changed_t, error=f"not a command file: {error!r}")
        if not isinstance(t, int | float) or not isinstance(verb, str) or not isinstance(arguments, dict):
            return Command(command_id, "", changed_t, error="not a command file: a field has the wrong type")
        error_text = "" if verb in VERBS else f"unknown verb {verb!r}; one of: {', '.join(VERBS)}"
        return Command(command_id, verb, t, arguments, expired=t < self._started_t, error=error_text)


async def wait_acknowledged(record: RunRecord, command_id: str, timeout: float = 10.0) -> CommandStatus:
    """What the worker answered to a command that has just been sent: accepted, done, refused or expired.

    Raises InputError when no answer comes within `timeout` seconds, or when the worker is gone.
    """

    def gone() -> bool:
        return not lock_is_held(record)

    events = journal.follow(record.journal_file, poll_seconds=0.05, until=gone, tail_bytes=_TAIL_BYTES)
    try:
        async with asyncio.timeout(timeout), aclosing(events):
            async for event in events:
                if event.type == "command" and event.fields.get("id") == command_id:
                    return CommandStatus(*(str(event.fields.get(key, "")) for key in ("verb", "status", "reason")))
    except TimeoutError:
        remedy = f"the command stays until the worker takes it; `droid-tune status {record.id}` shows what it does"
        raise InputError(f"the worker has not answered within {timeout:g} s", where=record.id, remedy=remedy) from None
    remedy = f"`droid-tune resume {record.id}` starts it again"
    raise InputError("the worker is gone: it will not answer", where=record.id, remedy=remedy)
