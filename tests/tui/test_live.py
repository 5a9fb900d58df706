"""The live screen: every view at two sizes, every state, the commands, and text that means harm."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from engine.api import Engine
from engine.runs.control import ControlInbox
from engine.runs.record import RunRecord
from engine.runs.values import CommandStatus
from tests.tui.live_runs import PROMPTS, metrics, set_times, write_run, write_samples
from tests.tui.support import HOSTILE as RAW
from tests.tui.support import (
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
from tui.app import DroidTuneApp
from tui.samples import Answer
from tui.screens.confirm import ConfirmScreen
from tui.screens.live import LiveScreen
from tui.screens.live.commands import Request
from tui.screens.live.groups import shown_text
from tui.screens.live.overview import trend
from tui.screens.live.text import Room, bar, one_line, words, wrapped

SIZES = ((80, 24), (120, 40))
VIEWS = ("overview", "curves", "groups", "system", "log", "config")
HOSTILE = (
    "a\x1b[31mred\x1b]52;c;AAAA\x07\x9b2J\u202eback\u2066\x00\x7f\r\x08 [/INST] [@click=app.quit]quit[/] [bold "
    "漢字漢字 👩\u200d💻👨\u200d👩\u200d👧 e\u0301\u0301 \ud800 \u2028 \x85"
)


@asynccontextmanager
async def live(home: Path, run: str, size: tuple[int, int] = (80, 24), loaded: bool = True) -> AsyncIterator[Pilot[None]]:
    """The app on that run, once its first snapshot is painted."""
    app = DroidTuneApp(Engine(home), open_run=run)
    app.refresh_seconds = 0.05
    app.glyphs = "braille"
    async with app.run_test(size=size) as pilot:
        if loaded:
            await wait_for(pilot, lambda: (s := screen(pilot).snapshot) is not None and s.around.loaded == 1, "the run")
            await settle(pilot)
        yield pilot


def screen(pilot: Pilot[None]) -> LiveScreen:
    """The live screen, whatever lies over it."""
    return next(each for each in pilot.app.screen_stack if isinstance(each, LiveScreen))


# Views


@pytest.mark.parametrize(("width", "height"), SIZES)
async def test_every_view_of_a_running_run(tmp_path: Path, width: int, height: int) -> None:
    record, tape = write_run(tmp_path)
    tape.write("phase", step=113, name="rollout")
    tape.close()
    set_times(record)
    with worker_lock(record):
        async with live(tmp_path, record.id, (width, height)) as pilot:
            for number, name in enumerate(VIEWS, 1):
                await pilot.press(str(number))
                await settle(pilot)
                painted = painted_text(pilot.app)
                assert all(cell_len(row) <= width for row in painted.splitlines()) and len(painted.splitlines()) == height
                check_golden(f"live-{name}-{width}x{height}", painted)


STATES: dict[str, Callable[[RunRecord, Any], Any]] = {
    "paused": lambda record, tape: (tape.write("paused", step=112), tape.write("heartbeat", step=112, phase="update", bytes={})),
    "failed": lambda record, tape: tape.write(
        "failed", step=112, error="out of memory while scoring", remedy="lower optim.micro_batch_rows to 8", kind="error"
    ),
    "lost": lambda record, tape: record.log_file.write_text("loading\nKilled: 9\n"),
    "stopped": lambda record, tape: tape.write("stopped", step=112, reason="command"),
    "stalled": lambda record, tape: None,
    "finished": lambda record, tape: tape.write(
        "finished", step=112, summary={
            "base": 0.31, "tuned": 0.74, "tuned_step": 100, "last": 0.72, "difference": 0.43, "low": 0.35, "high": 0.51, "n": 64,
            "adapter": "/data/me/.droid-tune/runs/arith-gspo-2/adapters",
            "command": "mlx_lm.generate --model mlx-community/Qwen2.5-0.5B-Instruct-4bit "
            "--adapter-path /data/me/.droid-tune/runs/arith-gspo-2/adapters --prompt 'YOUR PROMPT'",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
async def test_what_a_state_means_and_what_to_do(tmp_path: Path, state: str) -> None:
    record, tape = write_run(tmp_path)
    STATES[state](record, tape)
    tape.close()
    ago, gap = {"stalled": (3700.0, 0.0), "paused": (10.0, 3640.0)}.get(state, (65.0, 0.0))  # stalled: longer than three steps
    set_times(record, ago=ago, gap=gap)
    async with live(tmp_path, record.id) as pilot:
        if state in ("paused", "stalled"):
            with worker_lock(record):
                await wait_for(pilot, lambda: screen(pilot).snapshot.state == state, state)  # type: ignore[union-attr]
                await settle(pilot)
                check_golden(f"live-{state}", painted_text(pilot.app))
        else:
            check_golden(f"live-{state}", painted_text(pilot.app))


async def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    tape.close()
    set_times(record, ago=65.0)
    app = DroidTuneApp(Engine(tmp_path), open_run=record.id)
    app.refresh_seconds, app.glyphs = 0.05, "ascii"
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, lambda: (s := screen(pilot).snapshot) is not None and s.around.loaded == 1, "the run")
        for number in range(1, 7):
            await pilot.press(str(number))
            await settle(pilot)
            assert painted_text(app).isascii(), painted_text(app)
            if number == 1:
                check_golden("live-ascii", painted_text(app))


async def test_a_run_before_its_first_step(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path, steps=0)
    tape.write("phase", step=0, name="eval")
    tape.close()
    with worker_lock(record):
        async with live(tmp_path, record.id) as pilot:
            painted = painted_text(pilot.app)
            assert "no step yet: eval for" in painted and "step 0/200" in painted
            for key, text in (("2", "no step yet"), ("3", "no group yet"), ("4", "no step yet"), ("5", "started")):
                await pilot.press(key)
                assert text in await wait_for_text(pilot, text)


async def test_a_supervised_run_has_a_loss_and_no_groups(tmp_path: Path) -> None:
    record = make_run(tmp_path, "imitate", method="sft")
    tape = Tape(record)
    for step in range(1, 20):
        tape.write("step", step=step, metrics={"loss": 2.0 / step, "tokens": 100, "seconds": {"update": 1.0, "total": 1.0}})
    tape.write("eval", step=19, metrics={"loss": 0.5}, best=True)
    tape.close()
    async with live(tmp_path, record.id) as pilot:
        painted = painted_text(pilot.app)
        assert "loss 0.105" in painted and "held-out 0.5" in painted and "100 tokens/s" in painted
        await pilot.press("3")
        await wait_for_text(pilot, "supervised training samples no answers")
        await pilot.press("2")
        assert "supervised training has none" in painted_text(pilot.app)


async def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    async with live(tmp_path, "nothing-of-the-kind", loaded=False) as pilot:
        await wait_for_text(pilot, "no run 'nothing-of-the-kind'")
        for key in (*"123456", "j", "right_square_bracket", "P", "S", "r"):
            await pilot.press(key)
        assert "no run" in painted_text(pilot.app)


async def test_a_damaged_folder_says_so_and_shows_the_rest(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    tape.close()
    record.summary_file.write_text("{")
    async with live(tmp_path, record.id) as pilot:
        painted = painted_text(pilot.app)
        assert "damaged" in painted and "run.json" in painted and "o held-out" in painted


# Keys


async def test_metrics_are_walked_through(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    tape.close()
    async with live(tmp_path, record.id) as pilot:
        await pilot.press("2")
        found = []
        for _ in range(13):
            await settle(pilot)
            found.append(painted_text(pilot.app).splitlines()[1].split()[0])
            await pilot.press("right_square_bracket")
        pages = "reward held-out loss kl length entropy clip ratio groups gap grad_norm lr tokens"
        assert found == pages.split()
        await pilot.press("left_square_bracket")
        await settle(pilot)
        assert painted_text(pilot.app).splitlines()[1].startswith(" tokens")
        await pilot.resize_terminal(120, 40)
        await settle(pilot)
        await pilot.press("right_square_bracket")
        await settle(pilot)
        assert "four curves" in painted_text(pilot.app)


async def test_answers_prompts_and_steps_are_walked_through(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    tape.close()
    async with live(tmp_path, record.id) as pilot:
        await pilot.press("3")
        painted = await wait_for_text(pilot, "step 112 newest   prompt 1 of 3   4 answers")
        assert "<think>24+17=41⏎" in painted and "41-9=32</think>⏎" in painted
        await pilot.press("v")
        assert "<think>… 31 characters …</think>⏎" in await wait_for_text(pilot, "think folded")
        await pilot.press("v", "j", "j")
        assert "41-9=31" in await wait_for_text(pilot, "answer 3")
        await pilot.press("right_square_bracket")
        await wait_for_text(pilot, PROMPTS[1][0])
        await pilot.press("left")
        await wait_for_text(pilot, "step 111   prompt 2 of 3")
        await pilot.press("left", "left")
        await wait_for_text(pilot, "step 110   prompt 2 of 3")
        await pilot.press("right", "right", "right")
        await wait_for_text(pilot, "step 112 newest")


async def test_a_step_that_was_chosen_stays_while_the_run_goes_on(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    with worker_lock(record):
        async with live(tmp_path, record.id) as pilot:
            await pilot.press("3")
            await wait_for_text(pilot, "step 112 newest")
            await pilot.press("left")
            await wait_for_text(pilot, "step 111   prompt")
            tape.write("samples", step=113, split="train", file=write_samples(record, 113))
            tape.write("step", step=113, metrics=metrics(113))
            await wait_for_text(pilot, "step 113/200")
            assert "step 111   prompt" in painted_text(pilot.app)
            await pilot.press("right", "right", "right")
            await wait_for_text(pilot, "step 113 newest")
    tape.close()


async def test_the_log_follows_until_it_is_moved(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    with worker_lock(record):
        async with live(tmp_path, record.id) as pilot:
            await pilot.press("5")
            await wait_for_text(pilot, "following")
            tape.write("warning", kind="x", message="the newest event", remedy="none", step=112)
            await wait_for_text(pilot, "the newest event")
            await pilot.press("ctrl+u")
            await wait_for(pilot, lambda: "following" not in painted_text(pilot.app), "the end of following")
            tape.write("warning", kind="x", message="one that is not seen", remedy="none", step=112)
            await wait_for(pilot, lambda: screen(pilot).snapshot.warning_count == 3, "the warning")  # type: ignore[union-attr]
            await settle(pilot)
            assert "one that is not seen" not in painted_text(pilot.app)
            await pilot.press("G")
            await wait_for_text(pilot, "one that is not seen")
            await pilot.press("g")
            assert "created" in await wait_for_text(pilot, "1 to ")
    tape.close()


async def test_the_footer_holds_at_most_six_keys_that_work(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    tape.close()
    async with live(tmp_path, record.id) as pilot:
        assert "r resume" in painted_text(pilot.app).splitlines()[-1]  # without its lock the run is lost
        with worker_lock(record):
            await wait_for(pilot, lambda: "P pause" in painted_text(pilot.app), "P")
            foot = painted_text(pilot.app).splitlines()[-1]
            assert foot.split() == ["1-6", "views", "P", "pause", "K", "checkpoint", "S", "stop", "?", "help", "q", "leave", "it"]
            await pilot.press("3")
            await settle(pilot)
            assert "[ ] prompt  j k answer  h l step" in painted_text(pilot.app).splitlines()[-1]
            tape_again = record.journal_file.open("a")
            tape_again.write(json.dumps({"v": 1, "seq": 10_000, "t": 2e9, "type": "paused", "step": 112}) + "\n")
            tape_again.close()
            await pilot.press("1")
            await wait_for(pilot, lambda: "P go on" in painted_text(pilot.app), "P go on")


# Commands


async def test_a_command_is_requested_and_then_what_the_journal_says(tmp_path: Path) -> None:
    """A worker that answers late: first `requested`, then accepted, then done; the state is the journal's all the while."""
    record, tape = write_run(tmp_path)
    inbox = ControlInbox(record.control_dir, 0.0)
    with worker_lock(record):
        async with live(tmp_path, record.id) as pilot:
            await pilot.press("P")
            await wait_for_text(pilot, "pause requested")
            assert "● running" in painted_text(pilot.app)
            command = (await wait_for(pilot, inbox.poll, "the command"))[0]
            assert command.verb == "pause"
            tape.write("command", id=command.id, verb="pause", status="accepted", reason="")
            inbox.done(command)
            await wait_for_text(pilot, "pause accepted")
            tape.write("paused", step=112)
            tape.write("command", id=command.id, verb="pause", status="done", reason="")
            await wait_for_text(pilot, "pause done")
            await wait_for_text(pilot, "P go on")
            await pilot.press("P")
            command = (await wait_for(pilot, inbox.poll, "the command"))[0]
            assert command.verb == "resume"
            tape.write("command", id=command.id, verb="resume", status="refused", reason="there is nothing to do")
            inbox.done(command)
            await wait_for_text(pilot, "resume refused: there is nothing to do")
    tape.close()


async def test_stopping_wants_the_run_s_name(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path, name="a1")
    inbox = ControlInbox(record.control_dir, 0.0)
    with worker_lock(record):
        async with live(tmp_path, record.id) as pilot:
            await wait_for(pilot, lambda: "S stop" in painted_text(pilot.app), "S")
            await pilot.press("S")
            await wait_for(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
            await pilot.press("escape")
            await wait_for(pilot, lambda: isinstance(pilot.app.screen, LiveScreen), "the run")
            assert inbox.poll() == []
            await pilot.press("S")
            await wait_for(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
            await pilot.press("a", "1", "enter")
            command = (await wait_for(pilot, inbox.poll, "the command"))[0]
            assert command.verb == "stop"
            await wait_for_text(pilot, "stop requested")
            tape.write("command", id=command.id, verb="stop", status="accepted", reason="")
            await wait_for_text(pilot, "■ stopping")
    tape.close()


def test_what_became_of_a_request() -> None:
    done = CommandStatus("pause", "done", "")
    request = Request("pause", frozenset({"1"}), 5)
    assert request.line({}) == "pause requested" and not request.is_settled({})
    assert request.line({"1": done}) == "pause requested"  # an older one's answer is not this one's
    assert request.line({"1": done, "2": done}) == "pause done" and request.is_settled({"2": done})
    accepted = {"2": CommandStatus("pause", "accepted", "")}
    assert request.line(accepted).startswith("pause accepted") and not request.is_settled(accepted)
    assert Request("stop", frozenset(), 5, outcome="stop: gone").line({}) == "stop: gone"


# What harm text can do


@pytest.mark.parametrize(("width", "height"), SIZES)
async def test_hostile_text_is_painted_as_text_in_every_view(tmp_path: Path, width: int, height: int) -> None:
    """As prompt, completion, reward name, warning, error, phase, machine, command, config, log; and a line of 1 MB."""
    record, tape = write_run(tmp_path, steps=3)
    long = HOSTILE * 8000
    tape.write("started", pid=1, resumed=True, host=HOSTILE, versions={HOSTILE: HOSTILE}, blas=long)
    tape.write(
        "samples",
        step=3,
        split="train",
        file=write_samples(record, 3, (HOSTILE, long, "[/INST]", ""), ((HOSTILE, HOSTILE), (long, long))),
    )
    tape.write("phase", step=4, name=HOSTILE)
    parts = {HOSTILE: 0.5, "[/b]": 1.0}
    tape.write("step", step=4, metrics={**metrics(4), "parts": parts, "seconds": {HOSTILE: 1.0, "total": 2.0}})
    tape.write("warning", kind=HOSTILE, message=long, remedy=HOSTILE, step=4)
    tape.write("command", id="1", verb=HOSTILE, status=HOSTILE, reason=long)
    tape.write("checkpoint", step=4, update=0, path=HOSTILE, reason=HOSTILE)
    tape.write("failed", step=4, error=long, remedy=HOSTILE, kind="error")
    tape.summary(name=HOSTILE.replace("\ud800", ""), model=HOSTILE.replace("\ud800", ""))
    tape.close()
    record.config_file.write_bytes(HOSTILE.encode("utf-8", "surrogatepass") + b"\n" + b"\xff\xfe" + b"x" * 1_000_000)
    record.log_file.write_bytes(b"\x1b]0;title\x07" + HOSTILE.encode("utf-8", "surrogatepass") * 50)
    async with live(tmp_path, record.id, (width, height)) as pilot:
        for key in ("1", "2", "3", "j", "v", "down", "right_square_bracket", "j", "ctrl+d", "4", "G", "5", "g", "6", "G", "1"):
            await pilot.press(key)
            await settle(pilot)
            painted = painted_text(pilot.app)
            assert len(painted) > 100
            harmful = [c for c in painted if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028")]
            assert not harmful, (key, harmful)
        assert pilot.app.is_running


def test_no_control_byte_of_a_completion_reaches_the_terminal(tmp_path: Path) -> None:
    """Prompt, answer and completions, a warning and the log, in the views that show them, on a real terminal."""
    record, tape = write_run(tmp_path, steps=3)
    for text in RAW.values():
        tape.write("warning", kind="k", message=text, remedy=text, step=3)
    everything = " ".join(RAW.values())
    rows = ((everything, everything), (everything, everything))
    file = write_samples(record, 3, (everything, everything, everything, everything), rows)
    tape.write("samples", step=3, split="train", file=file)
    tape.write("finished", step=3, summary={"base": 0.1, "tuned": 0.2, "command": everything})
    tape.close()
    steps = [(b"q1\xe2\x90\x9b", "3"), (b"q1\xe2\x90\x9b", "5"), (b"q1\xe2\x90\x9b", "")]
    assert_nothing_raw(raw_output(tmp_path, ["attach", record.id], steps), RAW)


# Pieces


def test_lines_stay_within_their_width() -> None:
    for text in (HOSTILE, "漢" * 50, "", "plain", "\n\n", "x" * 300):
        for width in (1, 2, 7, 30):
            assert cell_len(one_line(text, width)) <= max(width, 2)
            assert all(cell_len(each) <= max(width, 2) for each in (*wrapped(text, width), *words(text, width, 5)))
    assert wrapped("a\nb", 10) == ["a⏎", "b"] and one_line("a\nb", 10) == "a⏎b"


def test_a_bar_is_as_long_as_its_share() -> None:
    """3/8 of 10 cells: 3 cells and 6 eighths; in ASCII whole cells."""
    assert bar(0.375, 10, "braille") == "███▊" and bar(0.375, 10, "ascii") == "####"
    assert bar(2.0, 3, "block") == "███" and bar(-1.0, 3, "block") == "" and bar(math.nan, 3, "block") == ""


def test_the_trend_compares_the_last_steps_with_those_before() -> None:
    """Means of 3 and 4 after 1 and 2: 3.5 - 1.5; a NaN has no say."""
    assert trend([1.0, 2.0, 3.0, 4.0]) == 2.0 and trend([1.0]) is None and trend([]) is None
    assert trend([9.0, 1.0, math.nan, 4.0, 4.0]) == 3.0


def test_a_think_part_that_never_ends_folds_too() -> None:
    def answer(text: str) -> Answer:
        return Answer(text, None, {}, None, None, "length")

    assert shown_text(answer("a<think>bc"), folded=True) == "a<think>… 9 characters …</think>"
    assert shown_text(answer("<think>x</think>y<think>z</think>"), folded=True).count("16 characters") == 2
    assert shown_text(answer("<think>x</think>"), folded=False) == "<think>x</think>"


async def test_the_screen_does_nothing_while_another_lies_over_it(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    with worker_lock(record):
        async with live(tmp_path, record.id) as pilot:
            await wait_for(pilot, lambda: "S stop" in painted_text(pilot.app), "S")
            await pilot.press("S")
            await wait_for(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
            below = screen(pilot)
            feed, before = below.feed, below.snapshot
            assert feed is not None and before is not None
            tape.write("step", step=113, metrics=metrics(113))
            await wait_for(pilot, lambda: feed.snapshot().step == 113, "the step")
            await asyncio.sleep(0.2)  # four times the least time between two snapshots
            assert below.snapshot is before
            await pilot.press("escape")
            await wait_for_text(pilot, "step 113/200")
    tape.close()


async def test_leaving_closes_the_feed(tmp_path: Path) -> None:
    record, tape = write_run(tmp_path)
    tape.close()
    async with live(tmp_path, record.id) as pilot:
        feed = screen(pilot).feed
        assert feed is not None
        await pilot.press("q")
        await wait_for(pilot, lambda: not pilot.app.is_running, "the end of the app")
    assert feed.is_closed


def test_room_gives_ascii_signs() -> None:
    room = Room(4, 1, "ascii")
    assert (room.sign("▲"), room.rule.plain, Room(2, 1, "braille").rule.plain) == ("^", "----", "──")
