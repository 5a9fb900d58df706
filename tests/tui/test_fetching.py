"""A run whose model is on its way: the bar in the curve's place, the line where curves are, and the list of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.api import Engine
from engine.plot import Glyphs
from engine.runs.journal import JournalReader
from engine.runs.record import RunRecord
from engine.runs.values import Phase, Progress
from tests.tui.live_runs import metrics, set_times, write_run
from tests.tui.support import Tape, check_golden, painted_text, settle, wait_for_text, worker_lock
from tui.app import DroidTuneApp
from tui.progress import amounts, percent, share
from tui.screens.live.fetching import bar_lines, told
from tui.screens.live.text import Room
from tui.snapshot import Ledger

TOTAL = 5_000_000_000


def write_download(home: Path) -> tuple[RunRecord, Tape]:
    """A run that has fetched 2.15 GB of 5 GB: two heartbeats at even distances of 1,828 s, so 588 kB/s, and 1h 20m to go."""
    record, tape = write_run(home, steps=0)
    tape.write("phase", step=0, name="load")
    tape.write("phase", step=0, name="downloading", bytes=TOTAL)
    for done in (1_000_000_000, 2_150_000_000):
        tape.write("heartbeat", step=0, phase="downloading", bytes={"downloaded": done, "to_download": TOTAL})
    tape.summary(state="starting", pid=4242)
    set_times(record, seconds=7310.0)
    return record, tape


@pytest.mark.parametrize("glyphs", ["braille", "ascii"])
async def test_a_download_is_a_bar_in_the_empty_curves_place_until_there_is_a_step(tmp_path: Path, glyphs: Glyphs) -> None:
    record, tape = write_download(tmp_path)
    app = DroidTuneApp(Engine(tmp_path), open_run=record.id)
    app.refresh_seconds, app.glyphs = 0.05, glyphs
    with worker_lock(record):
        async with app.run_test(size=(80, 24)) as pilot:
            await wait_for_text(pilot, "2.15 GB of 5.00 GB   588.24 kB/s   1h 20m to go")
            await settle(pilot)
            check_golden(f"live-downloading-{glyphs}", painted_text(app))
            await pilot.press("4")
            await wait_for_text(pilot, "downloading 2.15 GB of 5.00 GB, 588.24 kB/s, 1h 20m to go")
            await pilot.press("1")
            tape.write("phase", step=0, name="load")
            await wait_for_text(pilot, "the worker loads the model")
            assert "2.15 GB" not in painted_text(app)
            tape.write("step", step=1, metrics=metrics(1))
            painted = await wait_for_text(pilot, "step 1/200")
            assert "answer " in painted and "reward 0." in painted
    tape.close()


async def test_the_list_of_runs_says_how_far_it_is(tmp_path: Path) -> None:
    record, tape = write_download(tmp_path)
    for width, text in ((80, "download 43%"), (120, "download 43%"), (60, "arith-g")):  # the last has no room for it
        with worker_lock(record):
            app = DroidTuneApp(Engine(tmp_path))
            async with app.run_test(size=(width, 24)) as pilot:
                painted = await wait_for_text(pilot, text)
                row = next(line for line in painted.splitlines() if "arith" in line)
                assert text in row and "0/200" in row and "43%" not in painted.replace(row, "")
    async with DroidTuneApp(Engine(tmp_path)).run_test(size=(80, 24)) as pilot:
        painted = await wait_for_text(pilot, "its worker is gone")
        assert "download" not in painted
    tape.close()


def test_where_curves_are_a_line_says_it(tmp_path: Path) -> None:
    """A run that is resumed where the model is no longer: 3 of 4 bytes."""
    record, tape = write_run(tmp_path, steps=2)
    tape.write("phase", step=2, name="converting", bytes=4, done=3)
    tape.close()
    ledger = Ledger()
    ledger.take(JournalReader(record.journal_file).read())
    assert told(ledger.snapshot()) == "converting 75%: 3 B of 4 B"


def test_figures_and_lines_keep_within_their_bounds() -> None:
    """Of nothing there is no share; a file that grew is no more than all; 999 of 1000 is not yet all."""
    for done, total, wanted in ((0, 0, 0.0), (3, 2, 1.0), (-1, 2, 0.0), (1, 4, 0.25)):
        assert share(Progress(total, ((0.0, done),))) == wanted
    assert percent(Progress(1000, ((0.0, 999),))) == "99%" and percent(Progress(2, ((0.0, 2),))) == "100%"
    assert amounts(Progress(10, ((0.0, 1), (2.0, 5)))) == ["5 B of 10 B", "2 B/s", "2s to go"]
    for glyphs in ("braille", "ascii"):
        for width in (1, 7, 30, 200):
            for height in (1, 3, 5, 20):
                found = Phase("downloading", 0, None, 0.0, Progress(10**10, ((0.0, 3 * 10**9),)))
                assert found.progress is not None
                lines = bar_lines(found, found.progress, "an-owner/a\x1b[2Jmodel", Room(width, height, glyphs))  # type: ignore[arg-type]
                assert len(lines) <= height and all(line.cell_length <= width for line in lines)
                assert "\x1b" not in "".join(line.plain for line in lines)
