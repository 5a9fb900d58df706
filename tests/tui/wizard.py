"""For tests of a new run's screens: the app with the first step on top, keys, fields, data files, goldens.

A key that Pilot presses waits twice for an idle process, 40 ms at least. So text is pasted, and fields are focused as a key would
do it; the tests that are about typing and about going from field to field press every key.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from engine.api import Engine
from tests.tui.support import painted_text, wait_for, wait_for_text
from tui.app import DroidTuneApp
from tui.screens.new_run import NewRunScreen
from tui.screens.new_run.fields import Entry

SIZES = [(80, 24), (120, 40)]


@pytest.fixture
def home() -> Iterator[Path]:
    """A home whose path is as long everywhere, so that painted screens are the same."""
    path = Path(tempfile.mkdtemp(prefix="dt-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def wizard(home: Path, size: tuple[int, int] = (80, 24), step: int = 1) -> AsyncIterator[Pilot[Any]]:
    """The app with that step of a new run on top of the list of runs."""
    app = DroidTuneApp(Engine(home))
    async with app.run_test(size=size) as pilot:
        await wait_for_text(pilot, "n new run")
        await pilot.press("n")
        await wait_for_text(pilot, "1 of 5")
        for number in range(2, step + 1):
            await next_step(pilot, number)
        await settled(pilot)
        yield pilot


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until no background work is under way; a check that a later one ends is none any more."""
    while any(worker.is_running for worker in pilot.app.workers):
        with suppress(WorkerCancelled):
            await pilot.app.workers.wait_for_complete()
    await pilot.pause()


async def press(pilot: Pilot[Any], *keys: str) -> str:
    """The painted screen after the keys: letters, and names such as enter. They come one right behind the other."""
    for key in keys:
        pilot.app.post_message(events.Key(key, key if len(key) == 1 else None))
    await settled(pilot)
    return painted_text(pilot.app)


async def next_step(pilot: Pilot[Any], number: int) -> str:
    """The next step, painted."""
    await pilot.press("enter")
    return await wait_for_text(pilot, f"{number} of 5")


def screen(pilot: Pilot[Any]) -> NewRunScreen:
    """The screen of a new run, which is shown."""
    found = pilot.app.screen
    assert isinstance(found, NewRunScreen), found
    return found


def entry(pilot: Pilot[Any], key: str) -> Entry:
    """The field of that key."""
    return next(each for each in screen(pilot).step.entries() if each.field.key == key)


async def go_to_field(pilot: Pilot[Any], key: str) -> None:
    """Put the focus into the field."""
    entry(pilot, key).focus()
    await wait_for(pilot, lambda: pilot.app.focused is entry(pilot, key), f"the focus on {key}")


async def paste(pilot: Pilot[Any], text: str) -> None:
    """Replace what is in the line that has the focus."""
    await pilot.press("ctrl+u")
    pilot.app.post_message(events.Paste(text))
    await pilot.pause()


async def type_into(pilot: Pilot[Any], key: str, text: str) -> None:
    """Replace the field's text and confirm it."""
    await go_to_field(pilot, key)
    await paste(pilot, text)
    await wait_for(pilot, lambda: screen(pilot).draft.text(key) == text, f"{text!r} in {key}")
    await pilot.press("enter")


def rows_file(home: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    """A data file: rows as JSON, texts as they are, each on a line."""
    path = home / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, str]]:
    """Rows of a prompt and an answer."""
    return [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in range(10, 10 + count)]


def same_everywhere(painted: str, home: Path) -> str:
    """The screen without the figures and names that differ between machines."""
    painted = painted.replace(home.name, "dt-00000000")
    painted = re.sub(r"of [\d.]+ [GM]B allowed", "of LIMIT allowed", painted)
    painted = re.sub(r"(allowed, in the \w+   .*\n) .*", r"\1 BAR", painted)
    return re.sub(r"in (?:float32|16-bit) on \w+", "in DTYPE on BACKEND", painted)
