"""Commands to a real worker at awkward moments, and the companion thread when the disk is against it."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from engine.api import Engine, Run
from engine.runs import control
from engine.runs import record as records
from engine.runs.journal import JournalReader, JournalWriter
from engine.worker.companion import Companion, StopRequested
from tests.support.live import await_condition, await_event, events, small_config

pytestmark = pytest.mark.usefixtures("warm_workers")


async def begun(home: Path) -> Run:
    """A run whose worker has just started to load; its rows and its first evaluation give a command time to come."""
    config = small_config("sft", run__steps=8, run__eval_rows=128, data__train="datasets/arithmetic-sft.jsonl")
    run = await Engine(home).start(config)
    await asyncio.to_thread(await_event, run, 0, lambda e: e.type == "started")
    return run


async def test_a_stop_while_loading_stops_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    run = await begun(tmp_path)
    assert await run.stop() in ("accepted", "done")
    state = await run.wait()
    assert (state.state, state.step) == ("stopped", 0), state.failure
    assert events(run)[-1].type == "stopped"  # no heartbeat after the end
    assert await run.resume() == "started"
    assert (await run.wait()).state == "finished"
    assert events(run)[-1].type == "finished"


async def test_a_pause_while_loading_holds_before_the_first_step(tmp_path: Path) -> None:
    run = await begun(tmp_path)
    assert await run.pause() in ("accepted", "done")
    await asyncio.to_thread(await_event, run, 0, lambda e: e.type == "paused")
    assert (await run.state()).state == "paused"
    await asyncio.to_thread(await_condition, lambda: run.record.summary().state == "paused", "run.json")
    assert not [e for e in events(run) if e.type == "step"]
    assert await run.resume() in ("accepted", "done")
    assert (await run.wait()).state == "finished"


@pytest.fixture
def companion(tmp_path: Path) -> Companion:
    """A live companion of a run folder, its thread not started."""
    record = records.create(small_config("sft"), tmp_path)
    record.update(state="starting")
    made = Companion(record, JournalWriter(record.journal_file), time.time())
    made.go_live()
    return made


def test_a_failing_thread_ends_a_pause_and_fails_the_run(companion: Companion) -> None:
    """The inbox cannot be read any more while the training thread stands still: it must not stand for ever."""
    with companion:
        control.send(companion.record, "pause")
        standing = threading.Thread(target=_attend_until_error, args=(companion, errors := []), daemon=True)
        standing.start()
        await_condition(lambda: companion.record.summary().state == "paused", "the pause")
        companion.inbox.poll = _no_disk  # type: ignore[method-assign]
        standing.join(10)
    assert not standing.is_alive()
    assert [type(error) for error in errors] == [RuntimeError]


def _attend_until_error(companion: Companion, errors: list[BaseException]) -> None:
    try:
        while True:
            companion.attend()
    except (RuntimeError, StopRequested) as error:
        errors.append(error)


def _no_disk() -> list[control.Command]:
    raise OSError(5, "Input/output error")


def test_a_stop_that_comes_with_a_pause_wins(companion: Companion) -> None:
    for verb in ("pause", "stop"):
        control.send(companion.record, verb)
    for command in companion.inbox.poll():
        companion._accept(command)
    with pytest.raises(StopRequested):
        companion.attend()
    written = [
        (e.type, e.fields.get("verb"), e.fields.get("status")) for e in JournalReader(companion.record.journal_file).read()
    ]
    assert ("command", "stop", "done") in written
    assert not [entry for entry in written if entry[0] == "paused"]


def test_a_pause_taken_back_before_it_was_carried_out_leaves_nothing(companion: Companion) -> None:
    for verb in ("pause", "resume"):
        control.send(companion.record, verb)
    for command in companion.inbox.poll():
        companion._accept(command)
    companion.attend()
    assert companion.record.summary().state == "running"


def test_a_full_disk_costs_heartbeats_not_the_run(companion: Companion, capfd: pytest.CaptureFixture[str]) -> None:
    companion.journal.close()  # every write raises OSError from now on
    companion._heartbeat()
    assert "no heartbeat could be written" in capfd.readouterr().err
