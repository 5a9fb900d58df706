"""The child end of RewardProcess: `python -P -m engine.rewards`, JSON lines in on stdin, JSON lines out on stdout.

    {"op": "load", "rewards": [{"name", "file"}], "limit": seconds}
        -> {"op": "ready", "columns": {name: [needed]}} or {"op": "error", "error", "where", "remedy"}
    {"op": "batch", "prompts": [...], "completions": [...], "columns": {name: [...]}}
        no reply
    {"op": "call", "reward": index, "limit": seconds}
        -> {"op": "result", "seconds", "values": [...], "bad": [[row, why]]} or {"op": "result", "seconds", "error", "traceback"}

User code can neither read the requests nor write into the replies: both pipes are moved away from descriptors 0 and 1.
The process ends when its stdin does, even in the midst of user code, and its process group with it: the programs that user
code has started. Code that also blocks the interpreter is ended by `faulthandler`'s own thread, soon after the call's time
limit, alone.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import io
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn, cast

from engine.errors import InputError
from engine.rewards.registry import Reward, arguments, needed_columns, resolve

_GRACE_SECONDS = 1.0  # the parent kills at the limit; this is for a child whose parent is gone
_MESSAGE_CHARACTERS = 2_000
_TRACEBACK_CHARACTERS = 20_000


def main() -> NoReturn:
    requests, replies = _take_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's affair
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests, inbox), daemon=True).start()
    rewards: list[tuple[str, Reward]] = []
    batch = b""
    while True:
        line = inbox.get()
        request = json.loads(line)
        if request["op"] == "batch":
            batch = line  # decoded anew for every call: a function may change what it is given
        elif request["op"] == "load":
            with _limited(request["limit"]):
                rewards, reply = _load(request["rewards"])
            _send(replies, reply)
        else:
            name, reward = rewards[request["reward"]]
            with _limited(request["limit"]):
                reply = _call(name, reward, json.loads(batch))
            _send(replies, reply)


def _take_pipes() -> tuple[int, int]:
    """Descriptors of requests and replies, which grandchildren do not inherit; 0 becomes /dev/null and 1 the error stream."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True, write_through=True, errors="backslashreplace")
    return requests, replies


def _read_requests(descriptor: int, inbox: SimpleQueue[bytes]) -> NoReturn:
    with os.fdopen(descriptor, "rb") as lines:
        for line in lines:
            inbox.put(line)
    _end()  # the parent closed its end, or is gone


def _end() -> NoReturn:
    """End this process and the programs that it has started."""
    if os.getpgrp() == os.getpid():  # a group of its own, as the parent makes it; started by hand it may be in a shell's
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _send(descriptor: int, reply: dict[str, Any]) -> None:
    data = memoryview(json.dumps(reply).encode() + b"\n")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        _end()


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends the process some time after `seconds`, even if the interpreter is blocked."""
    faulthandler.dump_traceback_later(seconds + _GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _load(specs: list[dict[str, Any]]) -> tuple[list[tuple[str, Reward]], dict[str, Any]]:
    try:
        rewards = [(spec["name"], resolve(spec["name"], Path(spec["file"]) if spec["file"] else None)) for spec in specs]
    except InputError as error:
        return [], {"op": "error", **error.as_dict()}
    return rewards, {"op": "ready", "columns": {name: needed_columns(reward) for name, reward in rewards}}


def _call(name: str, reward: Reward, batch: dict[str, Any]) -> dict[str, Any]:
    """One call's values; `error` and `traceback` where it failed as a whole, `bad` the rows whose value is no number."""
    started = time.monotonic()
    completions = batch["completions"]
    try:
        missing = [column for column in needed_columns(reward) if column not in batch["columns"]]
        if missing:
            raise LookupError(f"{name} needs the column {', '.join(missing)}, which the data does not have")
        returned: Any = reward(**arguments(reward, batch["prompts"], completions, batch["columns"]))
        if inspect.isawaitable(returned):
            returned = asyncio.run(_wait(returned))
        if not isinstance(returned, list | tuple):
            raise TypeError(f"{name} returned {type(returned).__name__}, not a list with one value per completion")
        if len(returned) != len(completions):
            raise ValueError(f"{name} returned {len(returned)} values for {len(completions)} completions")
    except BaseException as error:  # noqa: BLE001  # user code may raise anything, even SystemExit: the call failed
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, frames))
        why = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARACTERS]
        return {"op": "result", "error": why, "traceback": text[-_TRACEBACK_CHARACTERS:], "seconds": time.monotonic() - started}
    values: list[float | None] = []
    bad: list[tuple[int, str]] = []
    for row, value in enumerate(returned):
        number, why_bad = _number(value)
        values.append(number)
        if why_bad:
            bad.append((row, why_bad))
    return {"op": "result", "values": values, "bad": bad, "seconds": time.monotonic() - started}


async def _wait(value: Awaitable[Any]) -> Any:
    return await value


def _number(value: Any) -> tuple[float | None, str]:
    """(value, why it cannot be used)."""
    if value is None:
        return None, ""
    if not isinstance(value, int | float):  # bool is an int
        return None, f"{type(value).__name__} is not a number: return float, int, bool or None"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return (number, "") if math.isfinite(number) else (None, f"{number} is not a usable reward")


if __name__ == "__main__":
    main()
