"""Work that may be left half-way: ctrl+c, a terminal that closes and a plain `kill` end it, and what it made half is gone."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[Any, Any, T], nothing_left: str) -> T:
    """What `work` gives. The first of those signals cancels it, later ones do not disturb its cleaning up; then `nothing_left` is
    said, and the exit status is 128 + the signal's number. A signal that whoever started this ignores (nohup) stays ignored."""
    came: list[signal.Signals] = []

    async def whole() -> T:
        task = asyncio.current_task()
        assert task is not None

        def leave(number: signal.Signals) -> None:
            if not came:
                came.append(number)
                task.cancel()

        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, leave, number)
        return await work

    try:
        return asyncio.run(whole())
    except asyncio.CancelledError:
        if not came:
            raise
        print(f"\nleft; {nothing_left}", file=sys.stderr)
        raise typer.Exit(128 + came[0]) from None
