"""What the app does not do: it paints nothing that has not changed, and reads nothing again that is as it was."""

from __future__ import annotations

from pathlib import Path

from textual.content import Content
from textual.pilot import Pilot

from engine.api import Engine
from engine.runs.record import list_runs
from tests.tui.live_runs import metrics, write_run
from tests.tui.support import Tape, make_run, painted_text, settle, wait_for, wait_for_text, worker_lock
from tui.app import DroidTuneApp
from tui.run_rows import RowReader
from tui.screens.base import Line
from tui.screens.live import LiveScreen
from tui.screens.live.commands import Request
from tui.screens.live.view import Block
from tui.widgets.chart import Chart


class Watched:
    """The painted lines of an app's live screen, by widget, since the last look."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        screen = pilot.app.screen
        assert isinstance(screen, LiveScreen) and screen.feed is not None
        self.screen, self.feed = screen, screen.feed
        self._before = self._counts()

    def _counts(self) -> dict[str, int]:
        blocks = {str(block.id): block.painted for block in self.screen.query(Block) if block.id}
        return blocks | {"curve": self.screen.query_one("#curve", Chart).drawings}

    async def painted(self) -> dict[str, int]:
        """After the feed's next looks at the run's folder and all that follows from them."""
        looked = self.feed.looks + 2  # one may be under way
        await wait_for(self.pilot, lambda: self.feed.looks >= looked, "the feed's next look")
        await wait_for(self.pilot, lambda: self.screen.snapshot.version == self.feed.version, "the newest snapshot")  # type: ignore[union-attr]
        await settle(self.pilot)
        before, self._before = self._before, self._counts()
        return {name: count - before[name] for name, count in self._before.items() if count != before[name]}


async def test_nothing_is_painted_while_nothing_changes_and_little_when_little_does(tmp_path: Path) -> None:
    """A step changes the curve, the line of figures and what its metrics say; where a step goes and memory stay as they are."""
    record, tape = write_run(tmp_path)
    app = DroidTuneApp(Engine(tmp_path), open_run=record.id)
    app.refresh_seconds, app.glyphs = 0.05, "braille"
    with worker_lock(record):
        async with app.run_test(size=(80, 24)) as pilot:
            await wait_for_text(pilot, "eta")
            await wait_for_text(pilot, "first group")
            watched = Watched(pilot)
            await watched.painted()
            where = watched.screen.query_one("#where", Line).right
            assert await watched.painted() == {}
            tape.write("heartbeat", step=112, phase="rollout", bytes={"peak": 5})  # the steps' own figures stand
            tape.write("phase", step=113, name="rollout")
            assert await watched.painted() == {}
            assert watched.screen.query_one("#where", Line).right is where
            tape.write("step", step=113, metrics=metrics(113))
            painted = await watched.painted()
            assert painted.pop("figures") == 1 and painted.pop("curve") == 1
            assert 0 < painted.pop("side") < 8 and painted == {}, "nothing below the curve has changed"
    tape.close()


async def test_of_a_heartbeat_the_line_of_memory_is_painted(tmp_path: Path) -> None:
    """The clock beside `no step yet` may have gone on meanwhile: that is one more line, and nothing else is."""
    record, tape = write_run(tmp_path, steps=0)
    tape.write("phase", step=0, name="eval")
    tape.write("heartbeat", step=0, phase="eval", bytes={"peak": 5_000_000_000})
    app = DroidTuneApp(Engine(tmp_path), open_run=record.id)
    app.refresh_seconds = 0.05
    with worker_lock(record):
        async with app.run_test(size=(80, 24)) as pilot:
            await wait_for_text(pilot, "5.00 GB peak")
            watched = Watched(pilot)
            await watched.painted()
            tape.write("heartbeat", step=0, phase="eval", bytes={"peak": 6_000_000_000})
            painted = await watched.painted()
            assert painted.pop("below") == 1 and painted.pop("figures", 0) <= 1 and painted == {}
            assert "6.00 GB peak" in painted_text(app)
            block = watched.screen.query_one("#figures", Block)
            block.put([Content("same text")])
            await watched.painted()
            block.put([Content.styled("same text", "bold")])
            assert (await watched.painted())["figures"] == 1, "another style is another look"
    tape.close()


async def test_news_waits_for_the_pace_unless_somebody_waits_for_it(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    app = DroidTuneApp(Engine(tmp_path), open_run=record.id)
    app.refresh_seconds = 60.0
    with worker_lock(record):
        async with app.run_test(size=(80, 24)) as pilot:
            await wait_for_text(pilot, "eta")  # the journal's end is not waited for so long
            watched = Watched(pilot)
            tape.write("step", step=113, metrics=metrics(113))
            await wait_for(pilot, lambda: watched.feed.snapshot().step == 113, "the step")
            await settle(pilot)
            snapshot = watched.screen.snapshot
            assert snapshot is not None and snapshot.step == 112 and watched.screen.pace_seconds == 60
            watched.screen.request = Request("pause", frozenset(snapshot.commands), snapshot.seq)
            await wait_for_text(pilot, "step 113/200")
    tape.close()


async def test_a_run_that_is_over_is_read_once(tmp_path: Path) -> None:
    ended, live = make_run(tmp_path, "ended"), make_run(tmp_path, "live")
    for created, record in ((1.0, ended), (2.0, live)):
        with_tape = Tape(record, created=created)
        with_tape.steps([0.1, 0.2])
        if record is ended:
            with_tape.write("stopped", step=2, reason="command")
            with_tape.summary(state="stopped")
        with_tape.close()
    reader = RowReader(tmp_path)
    with worker_lock(live):
        first = reader.summaries()
        rows = reader.rows(first)
        again = reader.summaries()
        assert again == await Engine(tmp_path).runs() and [row.id for row in rows] == [live.id, ended.id]
        assert again[1] is first[1] and again[0] is not first[0], "the other one may be lost at any moment"
        assert reader.rows(again)[1] is rows[1]
        tape = Tape(ended, created=3.0)
        tape.close()
        assert [row.id for row in reader.rows(reader.summaries())] == [ended.id, live.id]
    assert len(list_runs(tmp_path)) == 2
