"""The app in a real terminal, with real workers: what a person sees and presses, from the empty home screen on."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.api import Engine, Run
from engine.runs import record as records
from engine.runs.record import lock_is_held
from tests.support import warm
from tests.support.live import await_condition, await_event, kill, small_config
from tests.tui.support import COMMAND, Tmux

APP = shlex.join(COMMAND)
LEFT = "LEFT WITH"
THEN_SHELL = f"; echo {LEFT} $?; exec cat"  # what the shell shows once the app is gone stays on the screen


# Most of a step is a wait, so that a run that is only looked at leaves the processor to the app.
SLOW = """
import time

def patient(prompts, completions):
    time.sleep(0.3)
    return [float(len(completion)) for completion in completions]
"""


@pytest.fixture
def home(_own_home: Path) -> Iterator[Path]:
    """An empty home; workers that are alive at the end of the test are killed."""
    yield _own_home
    _end_runs(_own_home)


def _end_runs(home: Path) -> None:
    for record in records.list_runs(home):
        if lock_is_held(record):
            kill(Run(record))


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A real run for tests that only look, in a home of its own."""
    home = tmp_path_factory.mktemp("viewed")
    yield _start(home)
    _end_runs(home)


def _start(home: Path) -> Run:
    """A real run of many steps, past its first."""
    (home / "slow.py").write_text(SLOW)
    rewards = [{"name": "patient", "file": str(home / "slow.py")}]
    config = small_config("grpo", rewards=rewards, run__steps=5000, run__name="long", run__eval_every=5000)
    with warm.workers():
        run = asyncio.run(Engine(home).start(config))
    await_event(run, 0, lambda event: event.type == "step")
    return run


def _only_run(home: Path) -> Run:
    return Run(await_condition(lambda: records.list_runs(home), "a run folder")[0])


def _steps_move(terminal: Tmux, run: Run) -> None:
    """The step on the screen becomes one that the journal reaches after this was called."""
    now = asyncio.run(run.state()).step
    terminal.wait_for(lambda shown: (found := re.search(r"step (\d+)/", shown)) is not None and int(found[1]) > now)


def test_d_on_the_empty_home_screen_shows_a_curve_that_moves_and_q_says_what_goes_on(home: Path) -> None:
    with Tmux(80, 24, APP + THEN_SHELL, home=home) as terminal:
        terminal.wait_for("watch the demo model learn to think")
        terminal.send("d")
        run = _only_run(home)
        terminal.wait_for("● running")
        terminal.wait_for(lambda shown: any(0x2800 < ord(character) < 0x2900 for character in shown))
        _steps_move(terminal, run)
        terminal.send("q")
        shown = terminal.wait_for("method   model")
        assert f"● running   {run.id}" in shown
        terminal.send("q")
        shown = terminal.wait_for(f"{LEFT} 0")
        assert f"{run.id} goes on training" in shown and f"droid-tune attach {run.id}" in shown
        seen = run.record.journal_file.stat().st_size
        await_condition(lambda: run.record.journal_file.stat().st_size > seen, "further events")


def test_pause_and_stop_by_keys_are_answered_by_the_worker(home: Path) -> None:
    run = _start(home)
    with Tmux(100, 30, f"{APP} attach {run.id}{THEN_SHELL}", home=home) as terminal:
        terminal.wait_for("● running")
        terminal.send("P")
        await_event(run, 0, lambda event: event.type == "paused")
        terminal.wait_for("⏸ paused")
        terminal.send("P")
        terminal.wait_for("● running")
        terminal.send("S")
        terminal.wait_for(f"type {run.id}")
        terminal.type(run.id)
        terminal.send("Enter")
        await_event(run, 0, lambda event: event.type == "stopped")
        terminal.wait_for("■ stopped")
        terminal.send("q")
        terminal.wait_for(LEFT)


def test_the_screen_follows_its_size(viewed: Run) -> None:
    """Also where the shell exports COLUMNS and LINES, as some do."""
    run, home = viewed, viewed.record.folder.parents[1]
    exported = {"COLUMNS": "80", "LINES": "24"}
    with Tmux(80, 24, f"{APP} attach {run.id}", home=home, environment=exported) as terminal:
        terminal.wait_for("q leave it")
        _steps_move(terminal, run)  # settled: a resize in the middle of starting is answered by the next one only
        for width, height in ((160, 50), (60, 20), (80, 24)):
            terminal.resize(width, height)
            shown = terminal.wait_for(
                lambda text, height=height, width=width: (
                    (lines := text.split("\n")[:height])[-1].rstrip().endswith("q leave it")
                    and len(lines[-1].rstrip()) == width - 1
                )
            )
            assert shown.startswith(" long")
        _steps_move(terminal, run)


def test_two_viewers_watch_one_run_and_a_killed_terminal_does_not_stop_it(viewed: Run) -> None:
    run, home = viewed, viewed.record.folder.parents[1]
    pid = run.record.summary().pid
    with Tmux(80, 24, f"{APP} attach {run.id}", home=home) as first, Tmux(120, 40, APP, home=home) as second:
        second.wait_for("▸ ● running")
        second.send("Enter")
        for viewer in (first, second):
            viewer.wait_for("● running")
            _steps_move(viewer, run)
        first.kill()
        reached = asyncio.run(run.state()).step
        await_event(run, 0, lambda event: event.type == "step" and event.fields["step"] > reached + 2)
        _steps_move(second, run)
    assert lock_is_held(run.record) and run.record.summary().pid == pid
    state = asyncio.run(run.state())
    assert (state.state, state.resumes, state.torn) == ("running", 0, 0)
    with Tmux(80, 24, f"{APP} attach {run.id}", home=home) as third:
        third.wait_for("● running")
        _steps_move(third, run)


def test_without_colour_nothing_is_coloured(viewed: Run) -> None:
    run, home = viewed, viewed.record.folder.parents[1]
    with Tmux(80, 24, APP, home=home, environment={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for(run.id)
        terminal.send("t")
        for wanted in ("n new run", "on every screen"):
            terminal.wait_for(wanted)
            painted = terminal.capture(escapes=True)
            codes = {code for part in painted.split("\x1b[")[1:] for code in part.split("m")[0].split(";")}
            assert codes <= {"", "0", "1", "2", "7", "39", "49"}, codes
            terminal.send("?")


def test_a_run_of_ones_own_by_keys_alone(home: Path) -> None:
    """From the empty home screen through the five steps of a new run to a curve that moves, and back to the list."""
    with Tmux(80, 24, APP, home=home) as terminal:
        terminal.wait_for("start your own")
        terminal.send("n")
        for step, answer in enumerate(("grpo", "✓ ready", "begun from", "✓ fits", "enter starts"), 1):
            terminal.wait_for(lambda shown, step=step, answer=answer: f"{step} of 5" in shown and answer in shown)
            terminal.send("Enter")
        run = _only_run(home)
        terminal.wait_for("● running")
        terminal.wait_for(lambda shown: any(0x2800 < ord(character) < 0x2900 for character in shown))
        _steps_move(terminal, run)
        terminal.send("q")
        shown = terminal.wait_for("▸ ● running")
        assert shown.startswith(" runs") and run.id in shown
