"""What a run's state means for the person who looks at it, in a line or a few; nothing while it simply trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from textual.content import Content

from engine.figures import duration, number
from engine.plot import Glyphs
from tui.screens.live.fetching import told
from tui.screens.live.text import AMBER, MUTED, RED, REWARD, Room, line, one_line, words
from tui.snapshot import RunSnapshot
from tui.theme import drawn, state_glyph

_LOG_LINES = 3


def where(run_id: str, view: str, snapshot: RunSnapshot, width: int, glyphs: Glyphs) -> tuple[str, str]:
    """Both ends of the first line: run and view; method, state and step, and the model where there is room for it."""
    state = f"{state_glyph(snapshot.state, glyphs)} {snapshot.state}"
    steps = f"{snapshot.step}/{snapshot.steps}" if snapshot.steps else str(snapshot.step)
    left = drawn(f"{one_line(run_id, max((width + 2) // 2, 12))} › {view}", glyphs)
    right = f"{state}  step {steps}"
    method = one_line(snapshot.method, 12)
    spare = width - cell_len(left) - cell_len(right) - cell_len(method) - 6
    model = one_line(Path(snapshot.model).name, spare) if spare >= 6 else ""
    return left, drawn("  ".join(part for part in (method, model, right) if part), glyphs)


def state_lines(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """The lines, each within the width."""
    state, around = snapshot.state, snapshot.around
    lines: list[Content] = []
    if around.problem:
        lines += [line(("! ", RED), text) for text in words(around.problem, room.width - 2, 3)]
    if around.loaded < 1:
        return lines
    match state:
        case "finished":
            lines += finished_lines(snapshot.result or {}, snapshot.score, room, around.id)
        case "failed":
            lines += failed_lines(snapshot, room)
        case "lost":
            lines += _headed(state, f"its worker is gone; press r to resume {_from(snapshot)}, nothing is lost", AMBER, room)
            lines += worker_log_lines(snapshot, room, _LOG_LINES)
        case "stalled":
            silent = duration(max(0.0, around.now - (snapshot.last_t or around.now)))
            lines += _headed(state, f"no sign of life for {silent}, though its worker lives; S stops it", AMBER, room)
        case "paused":
            lines += _headed(state, f"since {_ago(snapshot)}; it holds its memory; press P to go on", "", room)
        case "pausing" | "stopping":
            lines += _headed(state, "it does so between two tokens or two updates", "", room)
        case "stopped":
            lines += _headed(state, f"press r to resume {_from(snapshot)}", "", room)
        case "queued" | "starting":
            lines += _headed(state, told(snapshot), "", room)
    return lines


def finished_lines(result: Mapping[str, Any], score: str, room: Room, run_id: str = "") -> list[Content]:
    """Base against tuned, and how to use the result: the words of `droid-tune status`."""

    def value(key: str) -> str:
        found = result.get(key)
        return number(float(found)) if isinstance(found, int | float) and not isinstance(found, bool) else "–"

    interval = f"95% interval {value('low')} to {value('high')}, " if result.get("low") is not None else ""
    rest = f"difference {value('difference')}, {interval}{value('n')} prompts"
    head = f"{state_glyph('finished', room.glyphs)} finished  "
    lines = [
        room.cut(
            line(
                (head, "bold"),
                f"held-out {score}: base {value('base')}, tuned ",
                (value("tuned"), f"bold {REWARD}"),
                f", best at step {value('tuned_step')}",
            )
        ),
        room.cut(line(" " * len(head), (rest, MUTED))),
    ]
    for name, key in (("adapter  ", "adapter"), ("use it   ", "command")):
        text = result.get(key)
        if isinstance(text, str):
            pieces = words(text, room.width - len(name), 4)
            lines += [line((name if not index else " " * len(name), MUTED), piece) for index, piece in enumerate(pieces)]
    if isinstance(result.get("adapter"), str) and run_id:
        lines.append(room.cut(line(("take it  ", MUTED), f"droid-tune export {one_line(run_id, room.width)}")))
    return lines


def failed_lines(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """The error, its remedy, and where resuming starts."""
    failure = snapshot.failure or {}
    error, remedy = (str(failure.get(key) or "") for key in ("error", "remedy"))
    head = f"{state_glyph('failed', room.glyphs)} failed  "
    text = words(error or "the worker did not say why: 5 log shows its last words", room.width - len(head), 4)
    lines = [line((head if not index else " " * len(head), f"bold {RED}"), piece) for index, piece in enumerate(text)]
    if remedy:
        lines += [line(" " * len(head), piece) for piece in words(remedy, room.width - len(head), 3)]
    lines.append(line(" " * len(head), (f"press r to resume {_from(snapshot)}", MUTED)))
    return lines


def worker_log_lines(snapshot: RunSnapshot, room: Room, most: int) -> list[Content]:
    """The last lines of worker.log."""
    said = [text for text in snapshot.around.worker_log if text.strip()][-most:] if most else []
    return [line(("  | ", MUTED), one_line(text, room.width - 4)) for text in said]


def _headed(state: str, text: str, style: str, room: Room) -> list[Content]:
    head = f"{state_glyph(state, room.glyphs)} {state}  "
    pieces = words(text, room.width - len(head), 3)
    return [line((head if not index else " " * len(head), f"bold {style}".strip()), piece) for index, piece in enumerate(pieces)]


def _from(snapshot: RunSnapshot) -> str:
    saved = snapshot.checkpoints[-1].step if snapshot.checkpoints else None
    return "from its start" if saved is None else f"from its checkpoint of step {saved}"


def _ago(snapshot: RunSnapshot) -> str:
    return duration(max(0.0, snapshot.around.now - (snapshot.state_t or snapshot.around.now)))
