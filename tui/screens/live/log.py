"""Log: the journal in lines, the newest last, and the last words of a worker that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from textual.content import Content

from engine.figures import duration, number
from engine.runs.journal import Event
from engine.runs.journal import number as journal_number
from engine.telling import readable
from tui.screens.live.state_lines import state_lines, worker_log_lines
from tui.screens.live.text import AMBER, MUTED, RED, Room, line, one_line, words
from tui.screens.live.view import Lines
from tui.snapshot import LOG_KEPT, RunSnapshot

_STEP_METRICS = ("reward", "loss", "kl", "length", "entropy", "grad_norm")
_STYLES = {"warning": AMBER, "failed": RED, "step": "", "finished": "bold", "eval": ""}
_IN_FULL = frozenset({"warning", "failed", "command"})
WORKER_LINES = 12
LINES_IN_FULL = 6


class Log(Lines):
    """It follows the journal's end until it is moved up."""

    TITLE = "log"
    FOLLOWS = True

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[Event, list[Content]]] = {}
        self._made_for: tuple[int, float] | None = None

    def lines(self, snapshot: RunSnapshot, room: Room) -> list[Content | Callable[[], Content]]:
        begin = snapshot.created_t or (snapshot.log[0].t if snapshot.log else 0.0)
        lines: list[Content | Callable[[], Content]] = []
        if len(snapshot.log) == LOG_KEPT:
            lines.append(Content.styled(f"the newest {LOG_KEPT} of {snapshot.seq} events", MUTED))
        for event in snapshot.log:
            if event.type in _IN_FULL:
                lines += self._in_full(event, begin, room)
            else:
                lines.append(partial(event_line, event, begin, room))
        last_words = worker_log_lines(snapshot, room, WORKER_LINES)
        if last_words:
            lines += [Content.styled("the end of worker.log", MUTED), *last_words]
        if snapshot.state not in ("running", "finished"):
            lines += state_lines(snapshot, room)
        return lines or [Content.styled("no event yet", MUTED)]

    def _in_full(self, event: Event, begin: float, room: Room) -> list[Content]:
        """An event whose words must not be cut, in a few lines; made once for a width."""
        if self._made_for != (room.width, begin):
            self._made, self._made_for = {}, (room.width, begin)
        found = self._made.get(event.seq)
        if found is None or found[0] is not event:
            head = len(_head(event, begin))
            first, *rest = words(said(event), room.width - head, LINES_IN_FULL) or [""]
            style = _STYLES.get(event.type, MUTED)
            lines = [line((_head(event, begin), style), (first, style)), *(line((" " * head + each, style)) for each in rest)]
            self._made[event.seq] = found = event, lines
        return found[1]


def event_line(event: Event, begin: float, room: Room) -> Content:
    """Time since the run was made, type, and what the event says."""
    head, style = _head(event, begin), _STYLES.get(event.type, MUTED)
    return room.cut(line((head, style), (one_line(said(event), max(room.width - len(head), 1)), style)))


def _head(event: Event, begin: float) -> str:
    return f"{duration(max(0.0, event.t - begin)):>8}  {one_line(event.type, 10):<11}"


def said(event: Event) -> str:
    """The event in words; of long fields only their beginning is worth a line."""
    fields = event.fields
    match event.type:
        case "step" | "eval":
            metrics = fields.get("metrics")
            values = metrics if isinstance(metrics, Mapping) else {}
            shown = [
                f"{name} {number(value)}" for name in _STEP_METRICS if (value := journal_number(values.get(name))) is not None
            ]
            best = ["best so far"] if fields.get("best") is True else []
            return "  ".join([f"step {fields.get('step')}", *shown, *best])
        case "warning":
            return f"step {fields.get('step')}: {_short(fields.get('message'))}; {_short(fields.get('remedy'))}"
        case "failed":
            return f"{_short(fields.get('error'))}; {_short(fields.get('remedy'))}"
        case "command":
            reason = f": {_short(fields.get('reason'))}" if fields.get("reason") else ""
            return f"{_short(fields.get('verb'))} {_short(fields.get('status'))}{reason}"
    return "  ".join(f"{key} {_short(value)}" for key, value in readable(fields).items() if not isinstance(value, dict | list))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text[:1000]
