"""Runs reward functions in a process of their own: a crash, a hang or a stray print there cannot harm the training process.

Plain blocking calls, for one thread. What the child does is in __main__.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from engine.config import RewardConfig
from engine.errors import InputError
from engine.rewards.options import OPTIONS
from engine.rewards.steps import split_steps

START_SECONDS = 120.0  # importing a user's file may load large libraries
_CLOSE_SECONDS = 2.0
_FOREVER_SECONDS = 1.0e6  # a timeout of .inf; no clock call takes that
_CHUNK_BYTES = 1 << 16
_TRL_ONLY = ("trainer_state", "log_extra", "log_metric", "environments")  # objects of TRL's own trainer
_DETAILS = 3  # of rows with the same fault, in its message


@dataclass(frozen=True, slots=True)
class RewardError:
    """One reward's failure in one call of score."""

    name: str
    rows: tuple[int, ...]  # indices of the completions that it failed for
    message: str
    traceback: str  # of the user's code; empty where nothing was raised
    all_rows: bool  # no completion got a value from this reward: the function itself is broken
    row_fault: bool = False  # but no: it is the data of these rows


@dataclass(frozen=True, slots=True)
class Scores:
    """What the rewards said of the completions; index i belongs to completions[i]."""

    # by reward name, a process reward's the mean of its steps' values; None = not applicable or failed
    parts: list[dict[str, float | None]]
    # by the name of every process reward: (exclusive end, in characters of the completion, value) of each applicable step
    steps: list[dict[str, list[tuple[int, float]]]]
    failed: list[bool]  # some reward failed for this completion
    errors: list[RewardError] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by reward name, of the call itself


class _Late(Exception):
    """The child did not answer in time."""


class _Gone(Exception):
    """The child ended by itself."""


class RewardProcess:
    """The rewards of a run, in a child process with a process group of its own.

    `start` first, or use it as a context manager. `columns` says after start which columns each reward needs, `token_ids` which
    rewards look at token ids, if only by their **kwargs.

    The group ends as one: on a time-out, a crash or close, and, by the child's own doing, soon after this process has died
    in whatever way. That takes along the programs that a reward has started, but for those that moved to another group
    (a daemon does), and those of a reward that blocks the interpreter at the moment this process dies: then nobody is left
    to end more than the child.
    """

    def __init__(self, specs: Sequence[RewardConfig], *, start_seconds: float = START_SECONDS) -> None:
        self._specs = tuple(specs)
        self._start_seconds = start_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._unread = b""
        self.columns: dict[str, tuple[str, ...]] = {}
        self.token_ids: frozenset[str] = frozenset()
        self.refused: str | None = None  # after a start that failed, the reward that cannot be loaded, where that is known

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, None where none runs."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Spawn the child and wait until every reward is imported. InputError where one cannot be."""
        if self._child is None:
            self._spawn()
        if self._ready:
            return
        try:
            reply = self._receive(time.monotonic() + self._start_seconds)
        except _Late:
            self._kill()
            what = f"the reward functions were not imported within {self._start_seconds:g} s"
            remedy = "do slow work inside the function, not while the file is imported"
            raise InputError(what, where=self._files(), remedy=remedy) from None
        except _Gone:
            code = self._kill()
            what = f"the reward process ended while it was importing ({_exit(code)})"
            raise InputError(what, where=self._files(), remedy="its own output, above or in the log, says why") from None
        if reply["op"] == "error":
            self._kill()
            self.refused = reply["reward"]
            raise InputError(reply["error"], where=reply["where"], remedy=reply["remedy"])
        self.columns = {name: tuple(needed) for name, needed in reply["columns"].items()}
        self.token_ids = frozenset(reply["token_ids"])
        self._ready = True

    def score(
        self,
        prompts: list[str],
        completions: list[str],
        columns: dict[str, list[Any]],
        token_ids: list[list[int]] | None = None,
        skip: Collection[str] = (),
    ) -> Scores:
        """Every reward's value for every completion. prompts, completions and each column have one entry per completion, and so
        have `token_ids`, which are worth sending only where `self.token_ids` names a reward. Those in `skip` are not called.

        A call that raises, returns the wrong number of values or takes longer than its `timeout` seconds fails for all
        completions; a NaN, inf or non-number, and of a process reward anything but one value per step, for its own. Either
        is in `errors` and `failed`, and the other rewards' values stand. After a time-out or a crash a new child takes
        over. InputError where it can no longer be started.
        """
        for name, values in {"prompts": prompts, "token_ids": token_ids, **columns}.items():
            if values is not None and len(values) != len(completions):
                raise ValueError(f"{name}: {len(values)} entries for {len(completions)} completions")
        scores = Scores([{} for _ in completions], [{} for _ in completions], [False] * len(completions))
        if not completions:
            return scores
        batch = _line({"op": "batch", "prompts": prompts, "completions": completions, "columns": columns})
        if token_ids is not None:
            batch += _line({"op": "token_ids", "token_ids": token_ids})
        sent_to = None
        for index, spec in enumerate(self._specs):
            if spec.name in skip:
                continue
            self.start()
            started = time.monotonic()
            limit = min(spec.timeout, _FOREVER_SECONDS)
            request = _line({"op": "call", "reward": index, "limit": limit})
            try:
                self._send(request if sent_to is self._child else batch + request, started + limit)
                sent_to = self._child
                reply = self._receive(started + limit)
            except _Late:
                self._respawn()
                reply = {"error": f"took longer than its timeout of {spec.timeout:g} s", "seconds": time.monotonic() - started}
            except _Gone:
                code = self._respawn()
                reply = {"error": f"its process ended ({_exit(code)})", "seconds": time.monotonic() - started}
            _record(scores, spec, completions, reply)
        return scores

    def close(self) -> None:
        """End the child and wait for its end. Harmless when there is none."""
        if self._child is None:
            return
        assert self._child.stdin is not None
        self._child.stdin.close()  # the child ends when its stdin does, unless user code blocks the interpreter
        self._await_end(time.monotonic() + _CLOSE_SECONDS)
        self._kill()

    def _spawn(self) -> None:
        # The module search path must not hold the current folder (-P): an engine/ or datasets/ there is the user's own.
        command = [sys.executable, "-P", "-m", "engine.rewards"]
        self._child = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=True, process_group=0
        )
        assert self._child.stdin is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        self._ready, self._unread = False, b""
        rewards = [{"name": spec.name, "file": spec.file, "steps": spec.steps, "options": spec.options} for spec in self._specs]
        load = {"op": "load", "limit": self._start_seconds, "rewards": rewards}
        with suppress(_Late, _Gone):  # start, which waits for the answer, finds the same and says why
            self._send(_line(load), time.monotonic() + self._start_seconds)

    def _respawn(self) -> int:
        """Kill the child and spawn the next, which imports while this process goes on. Gives the old one's exit code."""
        code = self._kill()
        self._spawn()
        return code

    def _kill(self) -> int:
        child, self._child, self._ready = self._child, None, False
        assert child is not None and child.stdin is not None and child.stdout is not None
        # The child has not been waited for, so its id names its group and no other. No such process: it joined another group;
        # not permitted: macOS says so of a group that has ended.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()  # changes nothing for one that has ended: its own exit code stays
        child.stdin.close()
        child.stdout.close()
        return child.wait()

    def _await_end(self, deadline: float) -> None:
        """Return when the child's replies end, or at the deadline. To wait for the process would free its group's id."""
        assert self._child is not None and self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0] and os.read(pipe, _CHUNK_BYTES):
            continue

    def _files(self) -> str:
        return ", ".join(dict.fromkeys(spec.file or spec.name for spec in self._specs))

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._child is not None and self._child.stdin is not None
        left, pipe = memoryview(data), self._child.stdin.fileno()
        while left:
            if not select.select([], [pipe], [], max(0.0, deadline - time.monotonic()))[1]:
                raise _Late
            try:
                left = left[os.write(pipe, left[:_CHUNK_BYTES]) :]
            except BrokenPipeError:
                raise _Gone from None
            except BlockingIOError:
                continue  # room for less than one atomic write; wait for more

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._child is not None and self._child.stdout is not None
        pipe, pieces = self._child.stdout.fileno(), [self._unread]
        while b"\n" not in pieces[-1]:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _Late
            piece = os.read(pipe, _CHUNK_BYTES)
            if not piece:
                raise _Gone
            pieces.append(piece)
        line, _, self._unread = b"".join(pieces).partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply


def check(specs: Sequence[RewardConfig], columns: Collection[str] | None = None) -> None:
    """InputError unless every reward can be imported and, where `columns` lists the data's, has the columns it needs.

    Imports users' files in a child that is gone when this returns.
    """
    with RewardProcess(specs) as process:
        for name, needed in process.columns.items():
            missing = [column for column in needed if columns is not None and column not in columns]
            if missing:
                raise without_column(name, missing[0], columns or ())


def without_column(name: str, column: str, columns: Collection[str]) -> InputError:
    """Of a reward that needs a column that the data does not have."""
    if column in _TRL_ONLY:
        what = f"the reward {name!r} needs the argument {column!r}, which TRL's own trainer alone can give"
        return InputError(what, where="rewards", remedy=f"give the parameter a default, `{column}=None`, or take it by **kwargs")
    what = f"the reward {name!r} needs the column {column!r}, which the data does not have"
    hint = "set the reward's `steps` key, or " if column == "steps" else ""
    if column in {option.name for option in OPTIONS.get(name, ()) if option.fills == "column"}:
        hint = f"set it for all rows with the reward's `options: {{{column}: ...}}`, or "
    remedy = f"{hint}rename one with data.columns; the data has: {', '.join(sorted(columns)) or 'none'}"
    remedy += "; besides, every reward gets `prompts` and `completions`"
    return InputError(what, where="rewards", remedy=remedy)


def _record(scores: Scores, spec: RewardConfig, completions: Sequence[str], reply: dict[str, Any]) -> None:
    """Enter one reward's reply into `scores`."""
    rows = len(completions)
    name = spec.name
    scores.seconds[name] = reply["seconds"]
    if "error" in reply:
        failures = {reply["error"]: [(row, "") for row in range(rows)]}
        values: list[Any] = [None] * rows
    else:
        values = reply["values"]
        failures = {}
        for row, why, detail in reply["bad"]:
            failures.setdefault(why, []).append((row, detail))
    for row, value in enumerate(values):
        if spec.steps is None:
            scores.parts[row][name] = value
            continue
        scored = [] if value is None else _by_end(completions[row], spec.steps, value)
        scores.steps[row][name] = scored
        scores.parts[row][name] = sum(number for _, number in scored) / len(scored) if scored else None
    failed = sum(map(len, failures.values()))
    for why, found in failures.items():
        failed_rows = tuple(row for row, _ in found)
        message = _message(why, [detail for _, detail in found if detail])
        blamed = set(failed_rows) <= set(reply.get("row_faults", ()))
        trace = reply.get("traceback", "")
        scores.errors.append(RewardError(name, failed_rows, message, trace, all_rows=failed == rows, row_fault=blamed))
        for row in failed_rows:
            scores.failed[row] = True


def _by_end(completion: str, separator: str, values: Sequence[float | None]) -> list[tuple[int, float]]:
    """(exclusive end, value) of the applicable steps. Parted here anew: the indices are those of this process's text."""
    steps = split_steps(completion, separator)
    return [(step.end, value) for step, value in zip(steps, values, strict=True) if value is not None]


def _message(why: str, details: Sequence[str]) -> str:
    """One message for all rows with the same fault: a journal must not get one for each."""
    details = list(dict.fromkeys(details))
    more = "; ..." if len(details) > _DETAILS else ""
    return f"{why}: {'; '.join(details[:_DETAILS])}{more}" if details else why


def _line(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode() + b"\n"  # ASCII: lone surrogates and odd line separators travel as escapes


def _exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
