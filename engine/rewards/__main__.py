"""The child end of RewardProcess: `python -P -m engine.rewards`, JSON lines in on stdin, JSON lines out on stdout.

    {"op": "load", "rewards": [{"name", "file", "steps": separator or null, "options"}], "limit": seconds}
        -> {"op": "ready", "columns": {name: [needed]}, "token_ids": [names]} or {"op": "error", "error", "where", "remedy"}
    {"op": "batch", "prompts": [...], "completions": [...], "columns": {name: [...]}}
    {"op": "token_ids", "token_ids": [[id, ...], ...]}    of the batch before it; for the rewards named in "token_ids"
        no reply
    {"op": "call", "reward": index, "limit": seconds}
        -> {"op": "result", "seconds", "values": [...], "bad": [[row, why, detail]],
               "row_faults": [row]}
           or {"op": "result", "seconds", "error", "traceback"}

A value is a number or null; of a reward with `steps` (a process reward) it is a list of them, one for each step of
split_steps(completion, separator), or null. A row in `bad` has the value null; `why` is the same text for all rows with
the same fault, `detail` says what is this row's own and may be empty; `row_faults` are those
of them whose data is at fault.

User code can neither read the requests nor write into the replies: both pipes are moved away from descriptors 0 and 1.
The process ends when its stdin does, even in the midst of user code, and its process group with it: the programs that user
code has started. Code that also blocks the interpreter is ended by `faulthandler`'s own thread, soon after the call's time
limit, alone.
"""

from __future__ import annotations

import faulthandler
import inspect
import io
import json
import math
import numbers
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
from typing import Any, NamedTuple, NoReturn, cast

from engine.errors import InputError
from engine.rewards.failed import Failed
from engine.rewards.registry import TOKEN_IDS, Reward, arguments, needed_columns, needs_token_ids, resolve, takes_token_ids
from engine.rewards.steps import split_steps

_GRACE_SECONDS = 1.0  # the parent kills at the limit; this is for a child whose parent is gone
_MESSAGE_CHARACTERS = 2_000
_TRACEBACK_CHARACTERS = 20_000
_NUMBERS = "float, int, bool or None"


class _Loaded(NamedTuple):
    name: str
    reward: Reward
    separator: str | None  # of reasoning steps; None: one value for the completion

    def needs(self) -> list[str]:
        """Columns of the data that it cannot be called without."""
        return [name for name in needed_columns(self.reward) if name != "steps" or self.separator is None]


def main() -> NoReturn:
    requests, replies = _take_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's affair
    inbox: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests, inbox), daemon=True).start()
    rewards: list[_Loaded] = []
    batch = token_ids = b""
    while True:
        line = inbox.get()
        request = json.loads(line)
        if request["op"] == "batch":
            batch, token_ids = line, b""  # decoded anew for every call: a function may change what it is given
        elif request["op"] == "token_ids":
            token_ids = line
        elif request["op"] == "load":
            with _limited(request["limit"]):
                rewards, reply = _load(request["rewards"])
            _send(replies, reply)
        else:
            with _limited(request["limit"]):
                loaded = rewards[request["reward"]]
                ids = json.loads(token_ids)["token_ids"] if token_ids and takes_token_ids(loaded.reward) else None
                reply = _call(loaded, json.loads(batch), ids)
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


def _load(specs: list[dict[str, Any]]) -> tuple[list[_Loaded], dict[str, Any]]:
    rewards = []
    for spec in specs:
        try:
            rewards.append(_loaded(spec["name"], spec["file"], spec["steps"], spec["options"]))
        except InputError as error:
            return [], {"op": "error", "reward": spec["name"], **error.as_dict()}
    token_ids = [loaded.name for loaded in rewards if takes_token_ids(loaded.reward)]
    return rewards, {"op": "ready", "columns": {loaded.name: loaded.needs() for loaded in rewards}, "token_ids": token_ids}


def _loaded(name: str, file: str | None, separator: str | None, options: dict[str, Any]) -> _Loaded:
    reward = resolve(name, Path(file) if file else None, options)
    if separator is not None and not file:
        what = f"the built-in reward {name!r} gives one value for a completion, none for its steps"
        raise InputError(what, where="rewards", remedy="remove its `steps` key, or give `file` for a function of your own")
    return _Loaded(name, reward, separator)


def _call(loaded: _Loaded, batch: dict[str, Any], token_ids: list[list[int]] | None) -> dict[str, Any]:
    """One call's values; `error` and `traceback` where it failed as a whole, `bad` the rows whose value cannot be used."""
    started = time.monotonic()
    name, reward, separator = loaded
    completions, columns = batch["completions"], batch["columns"]
    count = len(completions)  # before the call, which may change the list
    step_counts: list[int] = []
    try:
        if separator is not None:
            steps = [[step.text for step in split_steps(text, separator)] for text in completions]
            step_counts = [len(texts) for texts in steps]
            columns = {"steps": steps, **columns}  # a column of the data is never hidden
        missing = [column for column in loaded.needs() if column not in columns]
        if missing:
            raise LookupError(f"{name} needs the column {', '.join(missing)}, which the data does not have")
        if token_ids is not None:
            columns = {TOKEN_IDS[0]: token_ids, **columns}
        elif needs_token_ids(reward) and not any(key in columns for key in TOKEN_IDS):
            raise LookupError(f"{name} needs the completions' token ids, and here is no tokenizer")
        returned: Any = reward(**arguments(reward, batch["prompts"], completions, columns))
        if inspect.isawaitable(returned):
            import asyncio  # few rewards are coroutines; every start would pay for it

            returned = asyncio.run(_wait(returned))
        if not isinstance(returned, list | tuple):
            raise TypeError(f"{name} returned {type(returned).__name__}, not a list with one value per completion")
        returned = list(returned)
        if len(returned) != count:
            raise ValueError(f"{name} returned {len(returned)} values for {count} completions")
    except BaseException as error:  # noqa: BLE001  # user code may raise anything, even SystemExit: the call failed
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, frames))
        why = f"{type(error).__name__}: {error}{_hint(error)}"[:_MESSAGE_CHARACTERS]
        return {"op": "result", "error": why, "traceback": text[-_TRACEBACK_CHARACTERS:], "seconds": time.monotonic() - started}
    values: list[float | list[float | None] | None] = []
    bad: list[tuple[int, str, str]] = []
    row_faults = [row for row, value in enumerate(returned) if isinstance(value, Failed) and value.is_row_fault]
    for row, value in enumerate(returned):
        if isinstance(value, Failed):
            values.append(None)
            bad.append((row, value.why, value.detail))
            continue
        usable, why_bad, detail = (*_number(value), "") if separator is None else _step_values(row, value, step_counts[row])
        values.append(usable)
        if why_bad:
            bad.append((row, why_bad, detail))
    return {
        "op": "result",
        "values": values,
        "bad": bad,
        "row_faults": row_faults,
        "seconds": time.monotonic() - started,
    }


async def _wait(value: Awaitable[Any]) -> Any:
    return await value


def _hint(error: BaseException) -> str:
    is_messages = isinstance(error, TypeError) and "string indices must be integers" in str(error)
    return " (completions are strings here, not lists of messages)" if is_messages else ""


def _scalar(value: Any) -> Any:
    """What an array library's scalar, or array of one element, holds; other values as they are."""
    try:
        return value.item() if callable(getattr(value, "item", None)) else value
    except (TypeError, ValueError, RuntimeError):  # several elements
        return value


def _number(value: Any) -> tuple[float | None, str]:
    """(value, why it cannot be used)."""
    if value is None:
        return None, ""
    value = _scalar(value)
    if not isinstance(value, numbers.Real):  # bool is an int
        remedy = ", or set the reward's `steps` key where its values are for steps" if isinstance(value, list | tuple) else ""
        return None, f"{type(value).__name__} is not a number: return {_NUMBERS}{remedy}"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return (number, "") if math.isfinite(number) else (None, f"{number} is not a usable reward")


def _step_values(row: int, value: Any, count: int) -> tuple[list[float | None] | None, str, str]:
    """(values of the completion's `count` steps, why they cannot be used, what of it is this row's own)."""
    if value is None:
        return None, "", ""
    if not isinstance(value, list | tuple):
        return None, f"{type(value).__name__} is not a list: return one value per step, {_NUMBERS}", f"value [{row}]"
    items = list(value)
    if len(items) != count:
        return None, "not one value per step", f"completion [{row}] has {count} steps and got {len(items)} values"
    found: list[float | None] = []
    for index, item in enumerate(items):
        if isinstance(item, list | tuple):  # _number would speak of a `steps` key that is there
            return None, f"{type(item).__name__} is not a number: a step's value is {_NUMBERS}", f"value [{row}][{index}]"
        number, why_bad = _number(item)
        if why_bad:
            return None, why_bad, f"value [{row}][{index}]"
        found.append(number)
    if not math.isfinite(sum(number for number in found if number is not None)):
        return None, "the sum of its steps' values is not finite", f"value [{row}]"
    return found, "", ""


if __name__ == "__main__":
    main()
