"""Commands as files, and their acknowledgement."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import InputError
from engine.runs import control
from engine.runs.control import ControlInbox
from engine.runs.journal import JournalWriter
from engine.runs.record import RunRecord


@pytest.fixture
def lock(record: RunRecord) -> Iterator[int]:
    """This process holds the run's lock, as a worker would."""
    descriptor = os.open(record.lock_file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


def test_commands_come_in_order_and_stay_until_done(record: RunRecord) -> None:
    inbox = ControlInbox(record.control_dir, started_t=time.time())
    assert inbox.poll() == []
    sent = [control.send(record, verb, n=n) for n, verb in enumerate(["stop", "pause", "checkpoint", "resume", "pause"])]
    found = inbox.poll()
    assert [command.id for command in found] == sent
    assert [(command.verb, command.arguments, command.expired, command.error) for command in found][:2] == [
        ("stop", {"n": 0}, False, ""),
        ("pause", {"n": 1}, False, ""),
    ]
    inbox.done(found[0])
    inbox.done(found[0])
    assert [command.id for command in inbox.poll()] == sent[1:]
    for command in found[1:]:
        inbox.done(command)
    assert inbox.poll() == [] and not list(record.control_dir.iterdir())


def test_senders_at_the_same_time_lose_nothing(record: RunRecord) -> None:
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda _: control.send(record, "checkpoint"), range(40)))
    assert sorted(command.id for command in ControlInbox(record.control_dir, 0.0).poll()) == sorted(set(sent))
    assert len(set(sent)) == 40


def test_commands_from_before_the_start_are_expired(record: RunRecord) -> None:
    old = control.send(record, "stop")
    started_t = time.time()
    new = control.send(record, "pause")
    assert [(command.id, command.expired) for command in ControlInbox(record.control_dir, started_t).poll()] == [
        (old, True),
        (new, False),
    ]


def test_what_is_no_command_says_so(record: RunRecord) -> None:
    bodies = {"a": "no json", "b": "[1]", "c": '{"verb": "stop"}', "d": '{"verb": 1, "t": 1}', "deep": "[" * 100_000}
    bodies["e"] = '{"verb": "explode", "t": 1}'
    for name, body in bodies.items():
        (record.control_dir / f"{name}.json").write_text(body)
    (record.control_dir / ".half.json").write_text("still being written")
    inbox = ControlInbox(record.control_dir, 0.0)
    found = inbox.poll()
    assert [command.id for command in found] == list(bodies)
    assert all("not a command file" in command.error for command in found[:5]) and "unknown verb 'explode'" in found[5].error
    for command in found:
        inbox.done(command)
    assert inbox.poll() == []


def test_what_is_no_file_is_refused_and_put_aside(record: RunRecord) -> None:
    """A folder, a link to nowhere, one to itself and a pipe nobody writes to, named as commands: none may hang or raise."""
    inbox = ControlInbox(record.control_dir, 0.0)
    for _ in range(2):  # a second folder of the same name is put beside the first
        folder = record.control_dir / "a.json"
        folder.mkdir()
        (folder / "inside").touch()
        (record.control_dir / "b.json").symlink_to("nowhere")
        (record.control_dir / "c.json").symlink_to("c.json")
        os.mkfifo(record.control_dir / "d.json")
        found = inbox.poll()
        assert [command.id for command in found] == ["a", "b", "c", "d"]
        assert all("not a plain file" in command.error and not command.expired for command in found)
        for command in found:
            inbox.done(command)
        assert inbox.poll() == []
    aside = sorted(record.control_dir.iterdir())
    assert [path.name for path in aside] == [".refused"]
    assert [path.name[:2] for path in aside[0].iterdir()] == ["a-", "a-"] and all(path.is_dir() for path in aside[0].iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(record: RunRecord) -> None:
    command_id = control.send(record, "stop")
    (record.control_dir / f"{command_id}.json").chmod(0)
    inbox = ControlInbox(record.control_dir, 0.0)
    found = inbox.poll()
    assert [(command.id, command.error) for command in found] == [(command_id, "cannot be read: Permission denied")]
    inbox.done(found[0])
    assert inbox.poll() == []


def test_what_cannot_be_put_away_is_passed_over(record: RunRecord) -> None:
    """A folder, and a file where the place for such folders should be."""
    (record.control_dir / "a.json").mkdir()
    (record.control_dir / ".refused").touch()
    inbox = ControlInbox(record.control_dir, 0.0)
    (found,) = inbox.poll()
    inbox.done(found)
    assert inbox.poll() == []
    sent = control.send(record, "stop")
    assert [command.id for command in inbox.poll()] == [sent]


def test_send_refuses_an_unknown_verb(record: RunRecord) -> None:
    with pytest.raises(ValueError, match="unknown verb 'kill'"):
        control.send(record, "kill")
    assert not list(record.control_dir.iterdir())


@pytest.mark.parametrize("status", ["accepted", "refused", "expired", "done"])
async def test_the_answer_is_the_journals(record: RunRecord, lock: int, status: str) -> None:
    command_id = control.send(record, "pause")
    with JournalWriter(record.journal_file) as journal:
        journal.write("command", id="another", verb="stop", status="done", reason="")
        journal.write("command", id=command_id, verb="pause", status=status, reason="because")
    answer = await control.wait_acknowledged(record, command_id, timeout=10)
    assert (answer.verb, answer.status, answer.reason) == ("pause", status, "because")


async def test_no_answer_in_time(record: RunRecord, lock: int) -> None:
    with pytest.raises(InputError, match=r"not answered within 0\.05 s"):
        await control.wait_acknowledged(record, control.send(record, "pause"), timeout=0.05)


async def test_no_worker_no_answer(record: RunRecord) -> None:
    with pytest.raises(InputError, match="the worker is gone"):
        await control.wait_acknowledged(record, control.send(record, "pause"), timeout=10)
