"""What the command line paints: pure lines, inside their size, with nothing in them that a terminal would obey."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from engine.cli.screens import table
from engine.cli.watch import fit, frame, plain_line
from engine.figures import duration, number, size
from engine.runs.journal import Event
from engine.runs.state import RunState
from engine.safe_text import safe_text

HOSTILE = "a\x1b[31mred\x1b]52;c;AAAA\x07\x9b2J\u202eback\x00\u2066 [/INST] [@click=app.quit] 漢字 👩\u200d💻 \ud800"


def a_run(steps: int) -> RunState:
    state = RunState()
    state.apply(Event(1, 1.0, "created", {"id": "demo", "name": "demo", "method": "grpo", "model": "demo", "steps": 50}))
    state.apply(Event(2, 2.0, "eval", {"step": 0, "metrics": {"reward": 0.1}, "best": True}))
    for step in range(1, steps + 1):
        metrics = {"reward": step / 50, "length": 20.0, "tokens": 100, "loss": 0.0, "seconds": {"total": 0.5}}
        state.apply(Event(2 + step, 2.0 + step, "step", {"step": step, "metrics": metrics}))
    return state


SAMPLES: list[dict[str, object]] = [
    {"prompt_id": 1, "prompt": HOSTILE, "answer": "3", "text": HOSTILE, "reward": 1.0, "advantage": 0.9},
    {"prompt_id": 1, "prompt": HOSTILE, "answer": "3", "text": "no", "reward": 0.0, "advantage": -0.9},
]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 12), (20, 8)])
def test_a_frame_stays_inside_its_size(width: int, height: int) -> None:
    for state in (RunState(), a_run(0), a_run(12)):
        lines = frame(state, SAMPLES, width, height, "braille")
        assert len(lines) <= height
        assert all(cell_len(line) <= width for line in lines)


def test_a_frame_shows_the_figures_the_curve_and_the_group() -> None:
    """12 steps of 0.5 s, 38 to go: 19 s; 100 tokens in 0.5 s: 200 a second."""
    text = "\n".join(frame(a_run(12), SAMPLES, 100, 30, "ascii"))
    for part in (
        "step 12/50",
        "reward 0.24",
        "held-out 0.1 (base 0.1)",
        "200 tokens/s",
        "eta 19s",
        "newest group",
        "▲",
        "▼",
        "attach demo",
    ):
        assert part in text


def test_nothing_painted_is_a_control_character() -> None:
    text = "".join(frame(a_run(3), SAMPLES, 300, 40, "braille"))
    assert not [c for c in text if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066" or "\ud800" <= c <= "\udfff"]
    assert "[/INST]" in text and "漢字" in text


def test_safe_text_keeps_what_is_harmless() -> None:
    assert safe_text("a\nb") == "a␊b"
    assert safe_text("a\nb\tc", lines=True) == "a\nb␉c"
    assert safe_text("\x1b\x7f\x9b") == "␛␡\\x9b"
    assert safe_text("naïve 漢字 👩‍💻") == "naïve 漢字 👩‍💻"


def test_a_plain_line_for_what_matters() -> None:
    state = a_run(3)
    event = Event(9, 9.0, "step", {"step": 3, "metrics": {}})
    assert plain_line(event, state).startswith("step     3/50  reward 0.06")
    assert plain_line(Event(9, 9.0, "warning", {"message": "m\x1b", "remedy": "r"}), state) == "⚠ m␛ (r)"
    assert plain_line(Event(9, 9.0, "heartbeat", {}), state) == ""


def test_figures_have_units() -> None:
    assert [size(n) for n in (None, 12, 1_500, 2_000_000, 3.2e9)] == ["–", "12 B", "1.50 kB", "2.00 MB", "3.20 GB"]
    assert [duration(s) for s in (None, 0.4, 61, 7_260)] == ["–", "0s", "1m 01s", "2h 01m"]
    assert number(None) == "–" and number(0.98765) == "0.988"
    assert table([["a", "1"], ["bcd", "22"]], right=(1,)) == ["a     1", "bcd  22"]
    assert fit("漢字漢字", 5) == "漢字…"
