"""The feed: every event arrives, snapshots never change afterwards, and whatever a folder lacks is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.runs.journal import Event, JournalWriter
from engine.runs.record import RunRecord
from engine.runs.state import fold
from tests.support.live import await_condition
from tests.tui.support import Tape, make_run, worker_lock
from tui.feed import RunFeed
from tui.samples import MOST_CHARACTERS, read_samples
from tui.snapshot import LOG_KEPT, Ledger, RunSnapshot

HOSTILE = "a\x1b[31m\x1b]52;c;AAAA\x07\x9b2J\u202eback\x00 [/INST] [@click=app.quit] 漢字 👩\u200d💻"


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return make_run(tmp_path, "arith", steps=50)


def step_event(seq: int, step: int, value: float) -> Event:
    return Event(seq, float(seq), "step", {"step": step, "metrics": {"reward": value, "seconds": {"total": 2.0}}})


def sample(member: int, text: str, **more: Any) -> str:
    row = {
        "step": 1,
        "prompt_id": 0,
        "member": member,
        "prompt": "1+1?",
        "answer": "2",
        "text": text,
        "token_ids": [1, 2],
        **more,
    }
    return json.dumps({"finish": "stop", "parts": {"answer": 1.0}, "reward": 1.0, "advantage": 0.5 - member, **row}) + "\n"


def seen(feed: RunFeed, condition: Callable[[RunSnapshot], Any]) -> RunSnapshot:
    """The first snapshot of which the condition is true."""
    return await_condition(lambda: (snapshot := feed.snapshot()) and condition(snapshot) and snapshot, "a snapshot")


# The ledger


def test_a_snapshot_is_the_fold_of_the_events() -> None:
    events = [step_event(seq, seq, seq / 100) for seq in range(1, 301)]
    ledger = Ledger()
    ledger.take(events[:100])
    first = ledger.snapshot()
    ledger.take(events[100:])
    snapshot, state = ledger.snapshot(), fold(events)
    assert (snapshot.step, snapshot.seq, snapshot.step_seconds) == (state.step, state.seq, 2.0)
    assert snapshot.series["reward"].values == state.series["reward"].values
    assert len(first.series["reward"].values) == 100 and first.version < snapshot.version


def test_nothing_that_comes_later_changes_a_snapshot() -> None:
    """Steps are done again after a resume from step 2 with other values; the earlier picture keeps its five."""
    ledger = Ledger()
    ledger.take([step_event(seq, seq, float(seq)) for seq in range(1, 6)])
    ledger.take([Event(6, 6.0, "eval", {"step": 4, "metrics": {"reward": 0.4}, "best": True})])
    before = ledger.snapshot()  # its arrays are copied only when they are asked for: that must not matter
    ledger.take([Event(7, 7.0, "resumed", {"from_step": 2})])
    ledger.take([step_event(8, 3, 30.0), step_event(9, 4, 40.0), step_event(10, 4, 41.0), step_event(11, 5, 50.0)])
    ledger.take([Event(12, 12.0, "eval", {"step": 4, "metrics": {"reward": 0.9}, "best": True})])
    after = ledger.snapshot()
    assert list(before.series["reward"].values) == [1.0, 2.0, 3.0, 4.0, 5.0] and before.step == 5
    assert list(before.held_out["reward"].values) == [0.4]
    assert list(after.series["reward"].values) == [1.0, 2.0, 30.0, 41.0, 50.0]
    assert list(after.held_out["reward"].values) == [0.9]


def test_what_did_not_grow_is_not_copied_again() -> None:
    """So that a chart of a metric without new points is not drawn again."""
    ledger = Ledger()
    ledger.take([step_event(1, 1, 1.0)])
    before = ledger.snapshot()
    assert ledger.snapshot() is before
    ledger.take([Event(2, 2.0, "heartbeat", {"bytes": {"peak": 7}})])
    after = ledger.snapshot()
    assert after is not before and after.memory == {"peak": 7.0} and before.memory == {}
    assert after.series["reward"].values is before.series["reward"].values


def test_the_log_keeps_the_newest_events() -> None:
    ledger = Ledger()
    ledger.take([step_event(seq, seq, 0.0) for seq in range(1, LOG_KEPT + 51)])
    log = ledger.snapshot().log
    assert len(log) == LOG_KEPT and log[0].seq == 51 and log[-1].seq == LOG_KEPT + 50


# The feed


def test_the_feed_sees_every_event_and_its_version_rises(record: RunRecord) -> None:
    """5,000 events in two halves, the second written while the feed follows; a torn line and nonsense among them."""
    with worker_lock(record), JournalWriter(record.journal_file) as writer:
        for step in range(1, 2501):
            writer.write("step", step=step, metrics={"reward": step / 5000})
        feed = RunFeed(record).start()
        first = seen(feed, lambda s: s.seq == 2500 and s.around.loaded == 1)
        with record.journal_file.open("ab") as file:
            file.write(b'{"v":1,"seq":2501,"t":1.0,"ty\nnot json\n')
        for step in range(2501, 5001):
            writer.write("step", step=step, metrics={"reward": step / 5000})
        last = seen(feed, lambda s: s.seq == 5000 and s.around.torn == 2)
        feed.close()
    assert last.version > first.version and last.step == 5000 and last.state == "running"
    assert len(last.series["reward"].values) == 5000 and len(first.series["reward"].values) == 2500


def test_a_torn_last_line_is_waited_for(record: RunRecord) -> None:
    with worker_lock(record), JournalWriter(record.journal_file) as writer:
        writer.write("step", step=1, metrics={"reward": 0.5})
        feed = RunFeed(record).start()
        seen(feed, lambda s: s.step == 1 and s.around.loaded == 1)
        line = b'{"v":1,"seq":2,"t":2.0,"type":"step","step":2,"metrics":{"reward":0.75}}\n'
        with record.journal_file.open("ab", buffering=0) as file:
            file.write(line[:40])
            feed.poll()
            assert feed.snapshot().step == 1 and feed.snapshot().around.torn == 0
            file.write(line[40:])
        assert seen(feed, lambda s: s.step == 2).last("reward") == 0.75
        feed.close()


def test_another_journal_in_its_place_starts_anew(record: RunRecord) -> None:
    with JournalWriter(record.journal_file) as writer:
        for step in range(1, 11):
            writer.write("step", step=step, metrics={"reward": 1.0})
    feed = RunFeed(record)
    feed.poll()
    before = feed.snapshot()
    with record.journal_file.open("r+b") as file:
        file.truncate(0)
    with JournalWriter(record.journal_file) as writer:
        writer.write("step", step=1, metrics={"reward": 0.25})
    feed.poll()
    after = feed.snapshot()
    assert (before.step, after.step, after.seq) == (10, 1, 1) and after.version > before.version
    assert list(after.series["reward"].values) == [0.25] and len(before.series["reward"].values) == 10
    os.unlink(record.journal_file)
    feed.poll()
    assert feed.snapshot().seq == 0 and feed.snapshot().log == ()


def test_the_state_is_the_derived_one(record: RunRecord) -> None:
    """Without its worker's lock a run that trained is lost; with it, it runs."""
    tape = Tape(record)
    tape.write("started", pid=1, resumed=False)
    tape.write("phase", step=1, name="rollout")
    feed = RunFeed(record)
    with worker_lock(record):
        feed.poll()
        assert feed.snapshot().state == "running"
    record.log_file.write_text("first\nthe last words\n")
    feed.poll()
    assert feed.snapshot().state == "lost" and feed.snapshot().around.worker_log == ("first", "the last words")
    tape.close()


@pytest.mark.parametrize("missing", ["run.json", "events.jsonl", "config.yaml", "samples", "run.lock", "everything"])
def test_a_folder_that_lacks_something_is_shown_as_far_as_it_goes(record: RunRecord, missing: str) -> None:
    tape = Tape(record)
    tape.write("step", step=1, metrics={"reward": 0.5})
    tape.write("samples", step=1, split="train", file="samples/step-000001.jsonl")
    tape.close()
    for path in record.folder.iterdir() if missing == "everything" else [record.folder / missing]:
        if path.is_dir():
            path.rmdir()
        elif path.exists():
            path.unlink()
    feed = RunFeed(record)
    feed.poll()
    snapshot = feed.snapshot()
    assert snapshot.around.loaded == 1
    assert (snapshot.state == "damaged") == (missing in ("run.json", "everything"))
    assert bool(snapshot.around.problem) == (snapshot.state == "damaged")
    assert (snapshot.step == 1) == (missing not in ("events.jsonl", "everything"))
    assert (snapshot.around.config is None) == (missing in ("config.yaml", "everything"))


def test_an_idle_feed_keeps_its_version(record: RunRecord) -> None:
    tape = Tape(record)
    tape.write("finished", step=1, summary={})
    tape.close()
    feed = RunFeed(record)
    feed.poll()
    snapshot = feed.snapshot()
    feed.poll()
    assert feed.version == snapshot.version and feed.snapshot() is snapshot


# Samples


def test_the_newest_groups_come_with_the_snapshot_and_stay_while_their_file_is_replaced(record: RunRecord) -> None:
    tape = Tape(record)
    for step in (1, 2):
        (record.samples_dir / f"step-{step}.jsonl").write_text(sample(0, f"good {step}") + sample(1, f"bad {step}"))
        tape.write("samples", step=step, split="train", file=f"samples/step-{step}.jsonl")
    feed = RunFeed(record)
    feed.poll()
    samples = feed.snapshot().around.samples
    assert samples is not None and samples.step == 2 and feed.snapshot().sample_files.keys() == {1, 2}
    group = samples.groups[0]
    assert (group.best.text, group.worst.text, group.answer, group.best.tokens) == ("good 2", "bad 2", "2", 2)
    tape.write("samples", step=3, split="train", file="samples/not-there-yet.jsonl")
    feed.poll()
    assert feed.snapshot().around.samples is samples
    tape.close()


def test_samples_are_read_within_bounds(tmp_path: Path) -> None:
    """A torn row, rows of the wrong kind, 1 MB of text, a path that leads out of the folder, a name that is none."""
    rows = [sample(0, HOSTILE), sample(1, "x" * 1_000_000), '{"text": 3}\n', "[]\n", '{"text": "torn', ""]
    (tmp_path / "s.jsonl").write_bytes("".join(rows).encode())
    found = read_samples(tmp_path, "s.jsonl", 7)
    assert (found.step, found.skipped, len(found.groups)) == (7, 3, 1)
    short, long = found.groups[0].answers
    assert short.text == HOSTILE and len(long.text) < MOST_CHARACTERS + 50 and "1,000,000 characters" in long.text
    assert "outside" in read_samples(tmp_path, "../../etc/passwd", 7).problem
    assert "cannot be read" in read_samples(tmp_path, "none.jsonl", 7).problem
    assert "cannot be read" in read_samples(tmp_path, "a\0b", 7).problem


def test_rewards_that_are_none_or_not_finite_stay_so(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(
        sample(0, "a", reward=None, advantage=None, parts={"answer": None, "x": "NaN"}) + sample(1, "b", advantage="-Infinity")
    )
    first, second = read_samples(tmp_path, "s.jsonl", 1).groups[0].answers
    assert first.reward is None and first.parts["answer"] is None and str(first.parts["x"]) == "nan"
    assert second.advantage == float("-inf")
