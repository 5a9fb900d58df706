"""The shell of the app: the registry of keys, the footer, help, palette, questions, themes, leaving, what is loaded."""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from textual.app import App, ComposeResult
from textual.content import Content
from textual.widgets import Static

from engine.plot import glyph_set
from engine.runs.summary import RunSummary
from tests.tui.support import COMMAND, check_golden, make_run, painted_text, settle, wait_for_text
from tui import theme
from tui.actions import ACTIONS
from tui.actions.base import SCOPES, Action, key_name, of_scope
from tui.app import DroidTuneApp, refresh_seconds
from tui.leaving import farewell
from tui.screens.base import KEYS_SHOWN, Page, ends, fitting, footer
from tui.screens.confirm import ConfirmScreen
from tui.screens.live import LiveScreen
from tui.screens.new_run import NewRunScreen
from tui.screens.runs import RunsScreen

TUI = Path(__file__).parents[2] / "tui"
# enter, tab, backspace and escape by other names; prefixes of tmux and screen; what terminals and window managers keep
FORBIDDEN = {"ctrl+m", "ctrl+j", "ctrl+i", "ctrl+h", "ctrl+left_square_bracket", "ctrl+b", "ctrl+a", "ctrl+s", "ctrl+enter"}
PAGES: dict[str, type[Page]] = {"runs": RunsScreen, "live": LiveScreen, "new_run": NewRunScreen}


# the registry


def test_every_action_has_an_id_of_its_own_a_label_and_a_sentence() -> None:
    assert len({action.id for action in ACTIONS}) == len(ACTIONS) > 40
    for action in ACTIONS:
        assert action.scope in SCOPES and action.id.startswith(f"{action.scope}."), action.id
        assert 1 <= len(action.label.split()) <= 3 and len(action.label) <= 14, action.id
        assert action.help[-1] in ".?" and len(action.help) >= 10, action.id


@pytest.mark.parametrize("scope", ["runs", "live", "new_run", "page"])
def test_no_key_means_two_things_on_a_screen(scope: str) -> None:
    keys = Counter(key for action in (*of_scope(scope), *of_scope("app")) for key in action.keys)
    assert [key for key, count in keys.items() if count > 1] == []


def test_no_key_that_terminals_eat() -> None:
    keys = {key for action in ACTIONS for key in action.keys}
    assert keys & FORBIDDEN == set()
    assert [
        key for key in keys if key.startswith(("alt+", "super+", "ctrl+shift+")) or (key[0] == "f" and key[1:].isdigit())
    ] == []


def test_every_action_is_one_of_its_screen() -> None:
    for action in ACTIONS:
        owners: list[type] = {"app": [DroidTuneApp], "page": [Page]}.get(action.scope) or [PAGES[action.scope]]
        assert hasattr(owners[0], f"action_{action.method}"), action.id


def test_every_screen_can_be_left_and_offers_help() -> None:
    for scope, page in PAGES.items():
        keys = {key for action in of_scope(scope) for key in action.keys}
        assert {"q", "escape"} <= keys, scope
        assert scope == page.SCOPE and page.HAS_HELP


def test_key_names() -> None:
    names = {"slash": "/", "question_mark": "?", "escape": "esc", "enter": "enter", "ctrl+p": "ctrl+p", "G": "G", "colon": ":"}
    assert {key: key_name(key) for key in names} == names


def test_nothing_listens_to_a_mouse_and_no_markup_is_made() -> None:
    words = ("on_click", "on_mouse", "events.Click", "events.Mouse", "@click", "from_markup")
    for path in TUI.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert [word for word in words if word in text] == [], path


class Bare(App[None]):
    """Textual as it comes."""

    def compose(self) -> ComposeResult:
        yield Static(id="body")


async def test_nothing_private_of_textual_is_used_or_overridden() -> None:
    """Names with one underscore that an App, a Screen or a Static has: our code neither reads nor defines them."""
    app = Bare()
    async with app.run_test():
        alive = (app, app.screen, app.query_one("#body"))
        names = {name for node in alive for name in (*vars(node), *dir(type(node)))}
    private = {name for name in names if name.startswith("_") and not name.startswith("__")}
    assert {"_compositor", "_merge_bindings"} <= private
    for path, text in ((path, path.read_text(encoding="utf-8")) for path in TUI.rglob("*.py")):
        for node in ast.walk(ast.parse(text)) if "from textual" in text else ():
            used = {node.attr} if isinstance(node, ast.Attribute) else {getattr(node, "name", "")}
            assert used & private == set(), path


# footer and first line


def _action(label: str, rank: int, shown: bool = True) -> Action:
    return Action(f"runs.{label}", label[0], label, "Help.", label, "runs", shown, rank)


def test_the_footer_holds_six_keys_help_and_the_way_out_among_them() -> None:
    """Seven may be shown: five of rank < 80, help, leave. Six fit: the fifth of low rank goes."""
    many = [_action(name, 10 * index) for index, name in enumerate("abcde", 1)] + [_action("help", 80), _action("quit", 99)]
    leave, rest = footer(many)
    assert leave is not None and leave.label == "quit"
    assert [action.label for action in rest] == ["a", "b", "c", "d", "help"] and len(rest) + 1 == KEYS_SHOWN
    assert footer([_action("hidden", 1, shown=False)]) == (None, [])


def test_keys_that_do_not_fit_go_from_the_last_on_but_help_stays() -> None:
    """`aaaa  bbbb  help` takes 4 + 2 + 4 + 2 + 4 = 16 cells; in 15 `bbbb` goes, in 9 `aaaa` too."""
    keys = [(Content("aaaa"), False), (Content("bbbb"), False), (Content("help"), True)]
    shown = {width: fitting(keys, width).plain for width in (16, 15, 9, 3)}
    assert shown == {16: "aaaa  bbbb  help", 15: "aaaa  help", 9: "help", 3: ""}


@pytest.mark.parametrize("width", [1, 5, 12, 40])
def test_a_line_of_two_ends_is_as_wide_as_the_screen(width: int) -> None:
    line = ends(Content("訓練 a long left end"), Content("right"), width)
    assert line.cell_length == width
    assert width < 5 or line.plain.endswith("right")


# the app


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_help_lists_the_screens_keys_and_goes_back_to_it(size: tuple[int, int]) -> None:
    async with DroidTuneApp().run_test(size=size) as pilot:
        home = pilot.app.screen
        await wait_for_text(pilot, "start your own")
        await pilot.press("question_mark")
        await settle(pilot)
        check_golden(f"help_runs_{size[0]}x{size[1]}", painted_text(pilot.app))
        before = painted_text(pilot.app)
        await pilot.press("question_mark", "colon")
        assert painted_text(pilot.app) == before, "help of help is help"
        await pilot.press("G")
        await settle(pilot)
        assert "lost: its worker is gone" in painted_text(pilot.app)
        await pilot.press("escape")
        assert pilot.app.screen is home


async def test_the_palette_runs_an_action_by_its_name() -> None:
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        await wait_for_text(pilot, "start your own")
        before = pilot.app.theme
        await pilot.press("colon")
        await wait_for_text(pilot, "What do you want to do?")
        await pilot.press(*"dark")
        await wait_for_text(pilot, "theme  (t)")
        await pilot.press("enter")
        await wait_for_text(pilot, "start your own")
        await settle(pilot)
        assert pilot.app.theme != before


async def test_themes_follow_each_other_and_every_one_paints_the_same_text() -> None:
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        shown = await wait_for_text(pilot, " GB free")
        seen = []
        for _ in theme.THEMES:
            await pilot.press("t")
            await settle(pilot)
            seen.append(pilot.app.theme)
            assert painted_text(pilot.app).splitlines()[2:] == shown.splitlines()[2:]
        assert sorted(seen) == sorted(theme.THEMES)


async def test_a_screen_of_40_by_12_still_shows_where_you_are_and_the_way_out() -> None:
    async with DroidTuneApp().run_test(size=(40, 12)) as pilot:
        shown = (await wait_for_text(pilot, "start your own")).splitlines()
        assert shown[0].startswith(" runs") and shown[11].endswith("q quit") and len(shown) == 12
        await pilot.resize_terminal(160, 50)
        assert len(painted_text(pilot.app).splitlines()) == 50


class Asks(App[None]):
    """Asks one question and keeps the answer."""

    def __init__(self, word: str | None) -> None:
        super().__init__()
        self.word = word
        self.answers: list[bool | None] = []

    def on_mount(self) -> None:
        self.push_screen(ConfirmScreen("Stop [/INST] the run?", self.word), self.answers.append)


@pytest.mark.parametrize(
    ("word", "keys", "answer"),
    [
        (None, ["y"], True),
        (None, ["n"], False),
        (None, ["escape"], False),
        ("my-run", [*"my-run", "enter"], True),
        ("my-run", ["escape"], False),
        ("yny", [*"yny", "enter"], True),
    ],
)
async def test_a_question_is_answered_by_keys(word: str | None, keys: list[str], answer: bool) -> None:
    app = Asks(word)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert "Stop [/INST] the run?" in painted_text(app)
        await pilot.press(*keys)
        await pilot.pause()
        assert app.answers == [answer]


async def test_a_wrong_word_is_no_answer() -> None:
    app = Asks("my-run")
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        await pilot.press(*"my-ru", "enter")
        await pilot.pause()
        assert app.answers == [] and "that is not the name" in painted_text(app)
        await pilot.press("n", "enter")
        await pilot.pause()
        assert app.answers == [True]


async def test_q_leaves_with_what_goes_on(_own_home: Path) -> None:
    app = DroidTuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for_text(pilot, "start your own")
        await pilot.press("q")
        await pilot.pause(0.2)
    assert app.return_code == 0


def test_farewell_names_the_runs_that_have_a_worker() -> None:
    def row(run_id: str, state: str) -> RunSummary:
        return RunSummary(run_id, run_id, "grpo", "demo", state, state, 1, 3, 9, None, None, 0.0, 0.0)

    rows = [row("a", "running"), row("b", "finished"), row("c\x1b[2J", "paused"), row("d", "lost")]
    lines = farewell(rows)
    assert lines[0] == "a goes on training (step 3/9)" and lines[1].endswith("droid-tune attach a")
    assert lines[2].startswith("c␛[2J stays paused") and len(lines) == 4
    assert farewell(rows[1:2]) == []


# the terminal


def test_refresh_glyphs_and_theme_follow_the_environment() -> None:
    assert refresh_seconds({}) == 1.0
    assert refresh_seconds({"DROID_TUNE_REFRESH": "2", "SSH_CONNECTION": "1"}) == 2.0
    for bad in ("0", "soon", "nan", "1e9"):
        with pytest.raises(ValueError):
            refresh_seconds({"DROID_TUNE_REFRESH": bad})
    assert glyph_set("UTF-8", {}) == "braille" and glyph_set("ANSI_X3.4-1968", {}) == "ascii"
    assert glyph_set("UTF-8", {"DROID_TUNE_GLYPHS": "block"}) == "block"
    assert theme.first_theme({"NO_COLOR": "1", "TEXTUAL_THEME": "nord"}) == "ansi-dark"
    assert theme.first_theme({}) == "droid-dark"


def test_without_a_terminal_it_says_how_to_go_on_and_exits_with_2(tmp_path: Path) -> None:
    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "droid-tune demo --headless" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("TERM", "dumb", b"no terminal"), ("DROID_TUNE_REFRESH", "0", b"REFRESH")]
)
def test_a_terminal_that_cannot_draw_is_refused(tmp_path: Path, name: str, value: str, expected: bytes) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", name: value}
    done = subprocess.run(COMMAND, cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=slave, check=False)
    os.close(slave)
    shown = os.read(master, 1 << 16)
    os.close(master)
    assert done.returncode == 2 and expected in shown and b"\x1b" not in shown


def test_what_the_app_loads(_own_home: Path) -> None:
    """Before the first paint no command line, no config reader; once runs are listed still no array library."""
    make_run(_own_home, "one")
    code = """
import asyncio, json, sys
from tui.app import DroidTuneApp
import tui.screens.runs
def loaded():
    return {name.split(".")[0] for name in sys.modules} | {name for name in sys.modules if name.startswith("engine.")}
start = loaded()
async def main():
    async with DroidTuneApp().run_test(size=(80, 24)) as pilot:
        while not pilot.app.screen.table.rows:
            await asyncio.sleep(0.02)
        await pilot.press("enter")
        await asyncio.sleep(0.5)
        assert type(pilot.app.screen).__name__ == "LiveScreen"
asyncio.run(main())
print(json.dumps([sorted(start), sorted(loaded())]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=TUI.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    start, later = map(set, json.loads(done.stdout.splitlines()[-1]))
    heavy = {"mlx", "mlx_lm", "transformers", "torch"}
    assert later & heavy == set()
    late = {"typer", "click", "pydantic", "yaml", "numpy", "jinja2", "tokenizers", "huggingface_hub", "engine.api", "engine.cli"}
    assert start & (heavy | late) == set()
