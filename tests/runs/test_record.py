"""Run folders, run.json, states and the lock."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import config as configs
from engine.config import RunConfig
from engine.errors import InputError
from engine.runs import record as records
from engine.runs.journal import JournalWriter
from engine.runs.record import STATES, TRANSITIONS, RunRecord, derived_state, lock_is_held
from engine.runs.summary import summarise
from tests.runs.conftest import make_config, until


def test_create_makes_a_whole_queued_run(config: RunConfig, home: Path) -> None:
    record = records.create(config, home)
    assert record.folder == home / "runs" / "grpo-demo"
    assert configs.dump(configs.load(record.config_file).config) == record.config_file.read_text() == configs.dump(config)
    summary = record.summary()
    assert (summary.id, summary.name, summary.state, summary.step, summary.steps) == ("grpo-demo", "grpo-demo", "queued", 0, 5)
    assert json.loads(record.summary_file.read_text())["created"] == summary.created
    assert (
        record.samples_dir.is_dir()
        and record.control_dir.is_dir()
        and record.checkpoints_dir.is_dir()
        and record.adapters_dir.is_dir()
    )
    assert [path.name for path in (home / "runs").iterdir()] == ["grpo-demo"]


def test_ids_are_slugs_and_unique(tmp_path: Path, home: Path) -> None:
    names = [None, None, "../../etc/Passwd ", "My Run #1", "***", "x" * 100]
    ids = [records.create(make_config(tmp_path, name=name and f"{name!r}"), home).id for name in names]
    assert ids == ["grpo-demo", "grpo-demo-2", "etc-passwd", "my-run-1", "grpo-demo-3", "x" * 64]


def test_makers_at_the_same_time_never_share_a_folder(config: RunConfig, home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: records.create(config, home), range(16)))
    assert sorted(record.id for record in made) == sorted(["grpo-demo", *(f"grpo-demo-{n}" for n in range(2, 17))])
    assert all(record.summary().id == record.id for record in made)
    assert not list((home / "runs").glob(".*"))


def test_a_failed_create_leaves_nothing(config: RunConfig, home: Path) -> None:
    home.mkdir()
    (home / "runs").write_text("in the way")
    with pytest.raises(InputError, match="DROID_TUNE_HOME"):
        records.create(config, home)
    assert [path.name for path in home.iterdir()] == ["runs"]


def test_home_is_the_variable_else_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DROID_TUNE_HOME", "~/elsewhere")
    assert records.home() == tmp_path / "elsewhere"
    monkeypatch.delenv("DROID_TUNE_HOME")
    assert records.home() == tmp_path / ".droid-tune"


def test_find_takes_an_id_or_a_unique_prefix(tmp_path: Path, home: Path) -> None:
    for name in ("alpha", "alpha", "beta-one"):
        records.create(make_config(tmp_path, name=name), home)
    assert records.find("alpha", home).id == "alpha"  # exact, although alpha-2 starts with it too
    assert records.find("b", home).id == "beta-one"
    with pytest.raises(InputError, match=r"2 runs start with 'alp'.*alpha-2, alpha|2 runs start with 'alp'.*alpha, alpha-2"):
        records.find("alp", home)
    with pytest.raises(InputError, match="did you mean beta-one"):
        records.find("bta-one", home)
    for wrong in ("zzz", "", "../runs/alpha"):
        with pytest.raises(InputError, match="no run"):
            records.find(wrong, home)
    with pytest.raises(InputError, match="there is none yet"):
        records.find("alpha", tmp_path / "empty")


def test_a_damaged_run_hides_no_other(tmp_path: Path, home: Path) -> None:
    for name in ("one", "two", "three"):
        records.create(make_config(tmp_path, name=name), home)
    (home / "runs" / "two" / "run.json").write_text('{"id": "two"')
    (home / "runs" / "three" / "run.json").unlink()
    rows = {record.id: summarise(record) for record in records.list_runs(home)}
    assert {key: row.state for key, row in rows.items()} == {"one": "queued", "two": "damaged", "three": "damaged"}
    assert "run.json" in rows["two"].damaged and "cannot be read" in rows["three"].damaged
    json.dumps(rows["two"].as_dict())


def test_runs_are_listed_latest_first(tmp_path: Path, home: Path) -> None:
    made = [records.create(make_config(tmp_path, name=name), home) for name in ("b", "c", "a")]
    for age, record in enumerate(made):
        record.update(created=1000.0 + age)
    assert [record.id for record in records.list_runs(home)] == ["a", "c", "b"]


def test_update_replaces_fields_and_checks_them(record: RunRecord) -> None:
    before = record.summary()
    after = record.update(step=3, reward=float("nan"))
    assert after.step == 3 and after.updated >= before.updated
    assert record.summary().reward is None  # JSON has no NaN
    with pytest.raises(ValueError, match="no such field"):
        record.update(stepp=3)
    with pytest.raises(ValueError, match="a queued run cannot become paused"):
        record.update(state="paused")
    with pytest.raises(ValueError, match="unknown state"):
        record.update(state="lost")
    assert record.summary().state == "queued"
    assert not list(record.folder.glob(".*.tmp"))


def test_readers_never_see_half_a_summary(record: RunRecord) -> None:
    """A reader that reads all the time while 100 updates replace the file sees whole ones, with rising steps."""
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(record.summary().step)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: bool(seen))
    for step in range(1, 101):
        record.update(step=step)
    done.set()
    reader.join()
    assert seen == sorted(seen)


def test_transitions() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert not TRANSITIONS["finished"]
    assert {"pausing", "stopping"} <= TRANSITIONS["starting"] and "pausing" not in TRANSITIONS["stopping"]
    assert all("starting" in TRANSITIONS[state] for state in STATES if state not in ("finished", "starting"))
    for old in STATES:
        for new in STATES:
            if new == old or new in TRANSITIONS[old]:
                records.check_transition(old, new)
            else:
                with pytest.raises(ValueError, match="cannot become"):
                    records.check_transition(old, new)


@pytest.mark.parametrize(
    ("state", "held", "age", "step_seconds", "expected"),
    [
        ("running", True, 30, None, "running"),
        ("running", True, 31, None, "stalled"),
        ("running", True, 89, 30.0, "running"),  # a step of 30 s: stalled after 90
        ("running", True, 91, 30.0, "stalled"),
        ("paused", True, 31, 1.0, "stalled"),
        ("running", False, 0, None, "lost"),
        ("stopping", False, 0, None, "lost"),
        ("queued", False, 5, None, "queued"),
        ("queued", False, 6, None, "lost"),
        ("starting", False, 6, None, "lost"),
        ("finished", True, 99, None, "finished"),
        ("stopped", False, 99, None, "stopped"),
        ("failed", False, 99, None, "failed"),
    ],
)
def test_derived_state(state: str, held: bool, age: float, step_seconds: float | None, expected: str) -> None:
    assert derived_state(state, lock_held=held, last_sign_t=1000.0, step_seconds=step_seconds, now=1000.0 + age) == expected


def test_lock_probe_sees_a_holder_and_leaves_no_lock(record: RunRecord) -> None:
    assert not lock_is_held(record)  # no lock file yet
    descriptor = os.open(record.lock_file, os.O_RDWR | os.O_CREAT)
    assert not lock_is_held(record)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # would fail if the probe still held its own
    assert lock_is_held(record) and lock_is_held(record)
    os.close(descriptor)
    assert not lock_is_held(record)


def test_the_lock_is_handed_over_to_a_child(record: RunRecord) -> None:
    """The parent locks and passes the descriptor on: it stays locked when the parent is gone, and is free when the child is."""
    parent_code = """
import fcntl, os, subprocess, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
fcntl.flock(descriptor, fcntl.LOCK_EX)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=sys.stdin, pass_fds=(descriptor,))
print(child.pid, flush=True)
os._exit(0)
"""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-c", parent_code, str(record.lock_file)]
    with subprocess.Popen(command, stdin=read_end, stdout=subprocess.PIPE, text=True) as parent:
        os.close(read_end)
        assert parent.stdout is not None and int(parent.stdout.readline()) > 0
        assert parent.wait(timeout=20) == 0
    assert lock_is_held(record)
    os.write(write_end, b"\n")  # the child reads a line and ends
    os.close(write_end)
    until(lambda: not lock_is_held(record))


def test_summary_row_follows_the_journal_and_the_lock(record: RunRecord) -> None:
    """run.json says running; the journal's end says stopped: the worker died between its two writes."""
    record.update(state="starting")
    record.update(state="running", step=2)
    with JournalWriter(record.journal_file) as journal:
        journal.write("started", pid=1, resumed=False)
        journal.write("step", step=2, metrics={"reward": 1.0})
        assert summarise(record).state == "lost"
        journal.write("stopped", step=2, reason="asked")
    assert summarise(record).state == "stopped"


def test_a_silent_holder_is_stalled(record: RunRecord) -> None:
    """The last line is a minute old; steps take 0.5 s, so that 30 s without a sign are too many."""
    record.update(state="starting")
    t = time.time() - 60
    record.update(state="running", created=t)
    lines = [
        {"v": 1, "seq": 1, "t": t, "type": "step", "step": 1, "metrics": {"seconds": {"total": 0.5}}},
        {"v": 1, "seq": 2, "t": t, "type": "heartbeat", "step": 1},
    ]
    record.journal_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    descriptor = os.open(record.lock_file, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    row = summarise(record)
    assert (row.state, row.recorded) == ("stalled", "running")
    with JournalWriter(record.journal_file) as journal:
        journal.write("heartbeat", step=1)
    assert summarise(record).state == "running"
    os.close(descriptor)
    assert summarise(record).state == "lost"
