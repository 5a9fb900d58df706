"""The journal: whole lines, torn lines, and readers that follow."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.runs.journal import TYPES, Event, JournalReader, JournalWriter, follow, number, parse_line


def read_all(path: Path, max_bytes: int = 1 << 18) -> tuple[list[Event], JournalReader]:
    reader = JournalReader(path)
    events: list[Event] = []
    while new := reader.read(max_bytes):
        events += new
    return events, reader


def write_steps(path: Path, count: int) -> list[Event]:
    with JournalWriter(path) as writer:
        return [writer.write("step", step=n, metrics={"reward": n / 2}) for n in range(1, count + 1)]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(st.text(max_size=8).filter(lambda key: key not in ("v", "seq", "t", "type")), values, max_size=4)


def test_line_has_the_envelope_in_front_and_readers_get_it_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JournalWriter(path) as writer:
        first = writer.write("created", id="a")
        second = writer.write("step", step=1, metrics={"reward": 0.5})
    lines = path.read_text().splitlines()
    assert lines[0] == f'{{"v":1,"seq":1,"t":{first.t!r},"type":"created","id":"a"}}'
    assert read_all(path)[0] == [first, second]


@settings(max_examples=80, deadline=None)
@given(events=st.lists(st.tuples(st.sampled_from(sorted(TYPES)), fields), min_size=1, max_size=6), place=st.integers(0, 10**6))
def test_cut_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, dict[str, object]]], place: int
) -> None:
    """However a crash cuts the file, every complete line is read, and the next writer goes on after the last of them.

    A line that lost only its newline is complete once the writer has ended it; anything shorter is counted as torn.
    """
    path = tmp_path_factory.mktemp("cut") / "events.jsonl"
    with JournalWriter(path) as writer:
        written = [writer.write(kind, **extra) for kind, extra in events]
    whole = path.read_bytes()
    cut = place % (len(whole) + 1)
    path.write_bytes(whole[:cut])

    complete = whole[:cut].count(b"\n")
    assert read_all(path)[0] == written[:complete]

    last_piece = whole[:cut].rpartition(b"\n")[2]
    kept = complete + (last_piece + b"\n" == whole.splitlines(keepends=True)[complete] if last_piece else 0)
    with JournalWriter(path) as writer:
        after = writer.write("heartbeat", step=7)
    assert after.seq == kept + 1
    events_after, reader = read_all(path)
    assert events_after == [*written[:kept], after]
    assert reader.torn == (1 if last_piece and kept == complete else 0)


@settings(max_examples=40, deadline=None)
@given(
    extras=st.lists(fields, min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    tail=st.integers(0, 400),
)
def test_chunk_sizes_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, extras: list[dict[str, object]], sizes: list[int], tail: int
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "events.jsonl"
    with JournalWriter(path) as writer:
        written = [writer.write("warning", **extra) for extra in extras]
    reader, events, turn = JournalReader(path), list[Event](), 0
    while new := reader.read(sizes[turn % len(sizes)]):
        events += new
        turn += 1
    assert events == written

    starts, at = [], 0  # the lines that start within the last `tail` bytes, the one that the window may cut left out
    for line in path.read_bytes().splitlines(keepends=True):
        starts.append(at)
        at += len(line)
    offset = max(0, at - tail)
    expected = [event for event, start in zip(written, starts, strict=True) if start > offset or offset == 0]
    assert JournalReader(path, tail_bytes=tail).read() == expected


def test_non_finite_numbers_stay_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JournalWriter(path) as writer:
        writer.write("step", step=1, metrics={"loss": math.nan, "kl": [math.inf, -math.inf], "reward": None})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    metrics = read_all(path)[0][0].fields["metrics"]
    assert metrics == {"loss": "NaN", "kl": ["Infinity", "-Infinity"], "reward": None}
    assert math.isnan(number(metrics["loss"]) or 0.0)
    assert [number(item) for item in metrics["kl"]] == [math.inf, -math.inf]
    assert number(3) == 3.0
    assert number(True) is None and number("12") is None and number(None) is None and number(10**400) is None


def test_unknown_types_and_reserved_fields_are_refused(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "events.jsonl") as writer:
        with pytest.raises(ValueError, match="unknown event type 'stepp'"):
            writer.write("stepp", step=1)
        with pytest.raises(ValueError, match="seq"):
            writer.write("step", seq=1)
        assert writer.write("step", step=1).seq == 1


def test_lines_that_are_no_events_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = b'{"v":1,"seq":3,"t":1.5,"type":"step","step":1}\n'
    bad = [
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"v":1,"t":1,"type":"step"}\n',
        b'{"seq":true,"t":1,"type":"x"}\n',
        b'{"seq":1,"t":NaN,"type":"x"}\n',
    ]
    path.write_bytes(good + b"".join(bad) + b"[" * 100_000 + b"\n" + good)
    events, reader = read_all(path)
    assert [event.seq for event in events] == [3, 3]
    assert reader.torn == len(bad) + 1


def test_threads_share_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JournalWriter(path) as writer:
        threads = [
            threading.Thread(target=lambda: [writer.write("heartbeat", text="x" * 500) for _ in range(100)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events, reader = read_all(path)
    assert [event.seq for event in events] == list(range(1, 401))
    assert reader.torn == 0


def test_seq_is_found_before_a_very_long_torn_line(tmp_path: Path) -> None:
    """The last valid line lies 300 kB before the end: further than the first window."""
    path = tmp_path / "events.jsonl"
    write_steps(path, 3)
    with path.open("ab") as file:
        file.write(b'{"v":1,"seq":4,"text":"' + b"x" * 300_000)
    with JournalWriter(path) as writer:
        assert writer.write("step", step=4).seq == 4


def test_a_write_cut_by_a_full_disk_is_ended_by_the_next(tmp_path: Path) -> None:
    """A file size limit cuts the second line in the middle; after it is lifted the same writer goes on with a whole line."""
    path = tmp_path / "events.jsonl"
    code = f"""
import resource
from pathlib import Path
from engine.runs.journal import JournalWriter
writer = JournalWriter(Path({str(path)!r}))
writer.write("step", step=1)
size = Path({str(path)!r}).stat().st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
try:
    writer.write("step", step=2)
    raise SystemExit("the limit did not bite")
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.write("step", step=3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    events, reader = read_all(path)
    assert [(event.seq, event.fields["step"]) for event in events] == [(1, 1), (2, 3)]
    assert reader.torn == 1


def test_reader_waits_for_the_file_and_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = JournalReader(path)
    assert reader.read() == []
    write_steps(path, 1)
    line = path.read_bytes()
    assert [event.seq for event in reader.read()] == [1]
    second = line.replace(b'"seq":1', b'"seq":2')
    with path.open("ab", buffering=0) as file:
        file.write(second[:20])
        assert reader.read() == []
        file.write(second[20:])
    assert [event.seq for event in reader.read()] == [2]
    assert not reader.restarted and reader.torn == 0


def test_reader_begins_anew_when_the_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_steps(path, 3)
    reader = JournalReader(path)

    def look() -> tuple[int, bool]:
        return len(reader.read()), reader.restarted

    assert look() == (3, False)
    path.write_bytes(b"")  # cut
    assert look() == (0, True)
    write_steps(path, 2)
    assert look() == (2, False)
    path.unlink()  # replaced by a longer one, likely with the same inode number
    write_steps(path, 9)
    assert look() == (9, True)
    path.unlink()
    assert look() == (0, True)


async def test_follow_gives_old_and_new_events_and_ends_when_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_steps(path, 3)
    done = asyncio.Event()
    seen: list[int] = []
    async with aclosing(follow(path, since=1, poll_seconds=0.01, until=done.is_set)) as events:
        async for event in events:
            seen.append(event.seq)
            if event.seq == 3:
                with JournalWriter(path) as writer:
                    writer.write("step", step=4)
            if event.seq == 4:
                done.set()
    assert seen == [2, 3, 4]


async def test_follow_reads_what_was_written_before_its_end_was_known(tmp_path: Path) -> None:
    """The worker writes its last line and goes between two looks: the line is still given."""
    path = tmp_path / "events.jsonl"
    write_steps(path, 1)

    def gone() -> bool:
        if path.read_bytes().count(b"\n") == 1:
            with JournalWriter(path) as writer:
                writer.write("finished", summary={})
        return True

    assert [event.type async for event in follow(path, until=gone)] == ["step", "finished"]


async def test_follow_refuses_a_replaced_journal(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_steps(path, 3)
    with pytest.raises(InputError, match="replaced or cut"):
        async with asyncio.timeout(10):
            async for event in follow(path, poll_seconds=0.01):
                if event.seq == 3:
                    path.write_bytes(b"")


def test_parse_line_keeps_unknown_fields_and_types() -> None:
    event = parse_line(b'{"v":2,"seq":1,"t":5,"type":"novel","extra":[1]}')
    assert event == Event(1, 5, "novel", {"extra": [1]})
