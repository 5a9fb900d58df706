"""The list of runs: real run folders, the real app, keys only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from textual.content import Content

from engine.api import Engine, Run
from engine.runs import record as records
from engine.runs.record import RunRecord
from engine.runs.summary import RunSummary, summarise
from tests.support.live import await_event, kill, small_config
from tests.tui.support import (
    HOSTILE,
    T0,
    Tape,
    assert_nothing_raw,
    check_golden,
    make_run,
    painted_text,
    raw_output,
    settle,
    wait_for,
    wait_for_text,
    worker_lock,
)
from tui import machine_line
from tui.app import DroidTuneApp
from tui.run_rows import RowReader, RunRow, trouble_of
from tui.screens.runs import RunsScreen
from tui.screens.runs_table import columns, table_lines

SIZES = [(80, 24), (120, 40)]


@pytest.fixture(autouse=True)
def _no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chip and the free memory of the machine that tests run on do not belong in a golden."""
    monkeypatch.setattr(machine_line, "machine", lambda facts: "a machine")


@pytest.fixture
def home(_own_home: Path) -> Path:
    return _own_home


@pytest.fixture
def six(home: Path) -> Iterator[list[RunRecord]]:
    """A run in each state of note, the newest first; locks are held for those that have a worker."""
    curve = [0.05, 0.05, 0.1, 0.2, 0.35, 0.5, 0.62, 0.7, 0.78, 0.81]
    with ExitStack() as locks:
        records = [_running(home, "arith-gspo-2", "gspo", curve, T0 + 60)]
        locks.enter_context(worker_lock(records[0]))
        records.append(_running(home, "dose-drgrpo", "dr_grpo", curve[:5], T0 + 50, after=[("paused", {"step": 5})]))
        locks.enter_context(worker_lock(records[1]))
        result = {"step": 10, "summary": {"base": 0.1, "tuned": 0.8}}
        records.append(_running(home, "think-demo", "grpo", curve, T0 + 40, after=[("finished", result)]))
        failure = {
            "step": 7,
            "error": "out of memory while scoring at step 7",
            "remedy": "halve sampling.group_size",
            "kind": "memory",
        }
        records.append(_running(home, "long-ctx-try", "grpo", curve[:7], T0 + 30, after=[("failed", failure)]))
        records.append(_running(home, "old-laptop-run", "grpo", curve[:6], T0 + 20))
        loss = [2.5, 2.1, 1.8, 1.6]
        records.append(_running(home, "copy-style", "sft", loss, T0 + 10, metric="loss", after=[("stopped", {"step": 4})]))
        yield records


def _running(
    home: Path, name: str, method: str, values: list[float], created: float, *, metric: str = "reward", after: list | None = None
) -> RunRecord:
    record = make_run(home, name, method=method)
    tape = Tape(record, created=created)
    tape.write("started", pid=4242, resumed=False, step=0)
    tape.steps(values, name=metric)
    tape.write("checkpoint", step=len(values), update=None, path=f"checkpoints/step-{len(values):06d}", reason="schedule")
    state = "running"
    for type_, fields in after or []:
        tape.write(type_, **fields)
        state = type_
    reward = values[-1] if metric == "reward" else None
    tape.summary(state=state, step=len(values), reward=reward, held_out=values[-1], pid=4242)
    tape.close()
    return record


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_an_empty_home_says_what_the_tool_does_and_how_to_begin(size: tuple[int, int]) -> None:
    async with DroidTuneApp().run_test(size=size) as pilot:
        await wait_for_text(pilot, "watch the demo model learn to think")
        await wait_for_text(pilot, "a machine")
        await wait_for_text(pilot, "self-test")
        check_golden(f"runs_empty_{size[0]}x{size[1]}", painted_text(pilot.app))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_the_table_shows_every_state_and_the_marked_runs_trouble(size: tuple[int, int], six: list[RunRecord]) -> None:
    async with DroidTuneApp().run_test(size=size) as pilot:
        await wait_for_text(pilot, "old-laptop-run")
        await wait_for_text(pilot, "a machine")
        await wait_for_text(pilot, "self-test")
        await pilot.press("j", "j", "j")
        await settle(pilot)
        check_golden(f"runs_{size[0]}x{size[1]}", painted_text(pilot.app))


async def test_the_last_self_test_is_told_beside_the_runs(home: Path, six: list[RunRecord]) -> None:
    """Not run yet, then passed, then failed by another version: a calm line, and a warning with its sign."""
    from engine import hardware, selftest
    from engine.selftest_checks import CHECKS, Report, Subject, result

    subject = Subject(device="cpu", device_name=None, dtype="float32")
    facts = hardware.facts()
    report = Report(
        date="2026-11-22T16:30:00+01:00",
        host="",
        chip=facts.chip,
        backend=facts.backend,
        versions=dict(facts.versions),
        model="demo",
        subject=subject,
        seconds=4.0,
        results=tuple(result(check) for check in CHECKS),
    )
    path = selftest.report_file(home)
    path.parent.mkdir()
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        screen = await _loaded(pilot)
        await wait_for_text(pilot, "self-test not run yet: droid-tune doctor --selftest")
        path.write_text(report.model_dump_json())
        screen.load()
        await wait_for_text(pilot, f"self-test passed 2026-11-22 · mlx {facts.versions['mlx']}")
        path.write_text(report.model_copy(update={"chip": "another"}).model_dump_json())
        screen.load()
        await wait_for_text(pilot, "⚠ self-test passed 2026-11-22, but chip was another")


async def test_a_terminal_without_unicode_gets_ascii_alone(six: list[RunRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROID_TUNE_GLYPHS", "ascii")
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        shown = await wait_for_text(pilot, "old-laptop-run")
        assert shown.isascii(), [character for character in shown if not character.isascii()]
        assert "> * running" in shown, shown


async def test_keys_move_the_mark_and_it_stays_on_its_run(six: list[RunRecord], home: Path) -> None:
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        screen = await _loaded(pilot)
        assert _marked(screen) == "arith-gspo-2"
        await pilot.press("j", "down", "k")
        assert _marked(screen) == "dose-drgrpo"
        await pilot.press("G")
        assert _marked(screen) == "copy-style"
        await pilot.press("j")
        assert _marked(screen) == "copy-style"
        await pilot.press("g")
        assert _marked(screen) == "arith-gspo-2"
        await pilot.press("j", "j")
        make_run(home, "newest")  # made now, so it comes before all others
        screen.load()
        await wait_for(pilot, lambda: screen.table.rows[0].id == "newest", "the new row")
        assert _marked(screen) == "think-demo"
        pilot.app.open_run("newest")
        await wait_for_text(pilot, "newest › overview")
        await pilot.press("q")
        assert _marked(screen) == "newest", "the run that was opened, however it came to be"


async def test_r_is_offered_only_where_a_run_can_be_resumed(six: list[RunRecord]) -> None:
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        screen = await _loaded(pilot)
        offered = {}
        for row in screen.table.rows:
            offered[row.state] = "r resume" in painted_text(pilot.app).splitlines()[-1]
            await pilot.press("j")
        expected = dict.fromkeys(("running", "paused", "finished"), False) | dict.fromkeys(("failed", "lost", "stopped"), True)
        assert offered == expected


async def test_the_filter_narrows_the_list_and_escape_takes_it_away(six: list[RunRecord]) -> None:
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        screen = await _loaded(pilot)
        await pilot.press("slash", *"gspo")
        await settle(pilot)
        assert [row.id for row in screen.table.rows] == ["arith-gspo-2"]
        assert "runs › gspo (1 of 6)" in painted_text(pilot.app)
        await pilot.press("enter")
        assert screen.table.has_focus and _marked(screen) == "arith-gspo-2"
        assert pilot.app.screen is screen, "enter keeps the filter; it opens no run"
        await pilot.press("escape")
        assert len(screen.table.rows) == 6
        await pilot.press("slash", "q", "j")
        assert [row.id for row in screen.table.rows] == []
        await pilot.press("escape")
        assert len(screen.table.rows) == 6 and screen.is_current


async def test_a_list_that_cannot_be_read_keeps_the_old_one_and_says_so(six: list[RunRecord]) -> None:
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        screen = await _loaded(pilot)
        journal, aside = six[0].journal_file, six[0].folder / "aside"
        journal.rename(aside)
        journal.mkdir()
        screen.load()
        shown = await wait_for_text(pilot, "the runs cannot be read")
        assert "Is a directory" in shown and " s old" in shown
        assert len(screen.table.rows) == 6 and "old-laptop-run" in shown
        journal.rmdir()
        aside.rename(journal)
        screen.load()
        await wait_for(pilot, lambda: "cannot be read" not in painted_text(pilot.app), "the end of the warning")


async def test_reads_that_are_asked_for_at_once_are_done_one_after_another(six: list[RunRecord]) -> None:
    """One thread at a time may read: ten wishes while a read is under way make one more read."""
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        screen = await _loaded(pilot)
        for _ in range(10):
            screen.load()
        assert sum(not worker.is_finished for worker in pilot.app.workers) == 1
        await settle(pilot)
        assert len(screen.table.rows) == 6


@pytest.mark.usefixtures("warm_workers")
async def test_d_pressed_twice_starts_one_demo(home: Path) -> None:
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        await wait_for_text(pilot, "start your own")
        await pilot.press("d", "d", "d")
        await wait_for_text(pilot, "demo › overview")
        runs = [Run(record) for record in records.list_runs(home)]
        for run in runs:
            await asyncio.to_thread(kill, run)
        assert len(runs) == 1


@pytest.mark.usefixtures("warm_workers")
async def test_r_starts_a_lost_run_again(home: Path) -> None:
    """A real run whose worker is killed: the row says lost, and r brings it back from its checkpoint."""
    run = await Engine(home).start(small_config("grpo", run__steps=500, run__name="left-behind"))
    await asyncio.to_thread(await_event, run, 0, lambda event: event.type == "checkpoint")
    await asyncio.to_thread(kill, run)
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        screen = await _loaded(pilot)
        assert screen.table.rows[0].state == "lost"
        assert "its worker is gone: press r to go on from its checkpoint of step" in painted_text(pilot.app)
        await pilot.press("r")
        try:
            await wait_for_text(pilot, "left-behind: resume started")
            await wait_for(pilot, lambda: summarise(run.record).state == "running", "a running worker")
        finally:
            await asyncio.to_thread(kill, run)


async def test_what_cannot_be_started_is_said_and_nothing_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "many")
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        await wait_for_text(pilot, "start your own")
        await pilot.press("d")
        shown = await wait_for_text(pilot, "not a number of threads")
        assert "OPENBLAS_NUM_THREADS" in shown
        assert await Engine(home).runs() == []


@pytest.mark.parametrize("kind", HOSTILE)
async def test_text_from_outside_is_shown_and_never_obeyed(kind: str, home: Path) -> None:
    record = _hostile(home, HOSTILE[kind])
    async with DroidTuneApp(Engine(home)).run_test(size=(80, 24)) as pilot:
        shown = await wait_for_text(pilot, "failed")
        assert not any(ord(character) < 32 and character != "\n" for character in shown)
        assert all(_cells(line) <= 80 for line in shown.splitlines())
        assert HOSTILE[kind] in shown or kind not in ("markup", "link", "cjk", "zwj")
        assert pilot.app.screen.query_one("#table").rows[0].id == record.id  # type: ignore[attr-defined]


def test_no_control_byte_of_a_run_reaches_the_terminal(home: Path) -> None:
    """Everything that the app writes to a real terminal, searched for what the run's files hold."""
    _hostile(home, " ".join(HOSTILE.values()))
    raw = raw_output(home, [], [(b"halve it", "")])
    assert_nothing_raw(raw, HOSTILE)
    assert b"?1000h" not in raw and b"?1003h" not in raw, "no mouse is asked for"


def _hostile(home: Path, text: str) -> RunRecord:
    """A failed run whose name, model and error hold `text`."""
    record = make_run(home, "hostile", model=f"{text}/{text}")
    tape = Tape(record)
    tape.write("started", pid=1, resumed=False, step=0)
    tape.write("failed", step=0, error=text, remedy="halve it", kind="memory")
    tape.summary(state="failed", name=text)
    tape.close()
    return record


def test_lines_never_exceed_the_screen_whatever_the_names_are() -> None:
    for width in (40, 79, 80, 100, 160):
        for text in HOSTILE.values():
            summary = RunSummary(text * 9, text, text, text * 9, "failed", "failed", 1, 10**9, 10**9, 1e-9, -1e300, 0.0, 0.0)
            rows = [RunRow(summary, (1.0, float("nan")), -1e300, 1e9, text * 50, text)] * 3
            lines = table_lines(rows, 1, width, 10, "braille")
            assert len(lines) <= 10
            assert width < 60 or max(line.cell_length for line in lines) <= width


def test_columns_fill_the_line_exactly() -> None:
    """Mark 2 + state 10 + run + method 7 + model + step 9 + curve and value + eta, two blanks between: all of the width."""
    for width in (80, 99, 100, 120, 200):
        layout = columns(width)
        cells = [10, layout.run, layout.method, layout.model, layout.step, layout.curve + 1 + layout.value, layout.eta]
        cells += [layout.held_out] if layout.held_out else []
        assert 2 + sum(cells) + 2 * (len(cells) - 1) == width


def test_a_thousand_runs_are_drawn_as_the_few_that_fit() -> None:
    rows = [RunRow(_summary(f"run-{index}")) for index in range(1000)]
    lines = [line.plain for line in table_lines(rows, 500, 80, 20, "braille")]
    assert len(lines) == 20 and any("run-500 " in line for line in lines)
    assert "run-999 " in table_lines(rows, 999, 80, 20, "braille")[-1].plain
    assert "run-0 " in table_lines(rows, 0, 80, 20, "braille")[1].plain


def test_rows_follow_a_journal_that_grows_and_one_that_is_replaced(home: Path) -> None:
    """Steps 1 and 2, then step 3: the curve grows; a new journal in its place starts it again."""
    record = _running(home, "grows", "grpo", [0.1, 0.2], T0)
    reader = RowReader(home)
    assert reader.rows([summarise(record)])[0].curve == (0.1, 0.2)
    tape = Tape(record)
    tape.steps([0.3], first=3)
    tape.close()
    assert reader.rows([summarise(record)])[0].curve == (0.1, 0.2, 0.3)
    record.journal_file.unlink()
    tape = Tape(record)
    tape.steps([0.9])
    tape.close()
    assert reader.rows([summarise(record)])[0].curve == (0.9,)
    assert reader.rows([]) == []


def test_every_trouble_has_a_remedy() -> None:
    from engine.runs.state import RunState

    for state in ("failed", "lost", "stalled", "damaged"):
        summary = _summary("x", state=state, damaged="damaged: steps: missing" if state == "damaged" else "")
        trouble, remedy = trouble_of(summary, RunState())
        assert trouble and remedy, state
    assert trouble_of(_summary("x"), RunState()) == ("", "")


def test_the_demo_that_d_starts_is_the_packaged_one() -> None:
    config = machine_line.demo_config()
    assert Path(config.model).name == "demo" and (config.method, config.run.name) == ("grpo", "demo")


def _summary(run_id: str, state: str = "running", damaged: str = "") -> RunSummary:
    return RunSummary(run_id, run_id, "grpo", "demo", state, state, 1, 1, 10, 0.5, None, T0, T0, damaged)


def _marked(screen: RunsScreen) -> str:
    assert screen.table.marked is not None
    return screen.table.marked.id


async def _loaded(pilot: object) -> RunsScreen:
    screen = pilot.app.screen  # type: ignore[attr-defined]
    assert isinstance(screen, RunsScreen)
    await wait_for(pilot, lambda: screen.table.rows, "the list")  # type: ignore[arg-type]
    await settle(pilot)  # type: ignore[arg-type]
    return screen


def _cells(line: str) -> int:
    return Content(line).cell_length
