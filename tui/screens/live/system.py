"""System: what does it cost? Speed, memory, where the time goes, the machine and the software that the figures stand on."""

from __future__ import annotations

from textual.content import Content

from engine.figures import duration, size
from engine.plot import sparkline
from engine.runs.state import STEPS_MEASURED
from tui.progress import amounts
from tui.screens.live.overview import PHASE_STEPS, phase_seconds, tokens_per_second
from tui.screens.live.state_lines import state_lines
from tui.screens.live.text import MUTED, REWARD, Room, bar, columns, figure, line, one_line, rate
from tui.screens.live.view import Lines
from tui.snapshot import RunSnapshot

SPARK_CELLS = 40
COMMANDS_SHOWN = 5


class System(Lines):
    """The machine's side of the run."""

    TITLE = "system"

    def lines(self, snapshot: RunSnapshot, room: Room) -> list[Content]:
        lines = [*state_lines(snapshot, room)]
        lines = [*lines, Content("")] if lines else []
        for make in (speed, phases, memory, times, machine, commands):
            if section := make(snapshot, room):
                lines += [*section, Content("")]
        return lines[:-1]


def speed(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """Tokens per second, now and over the last steps."""
    now = tokens_per_second(snapshot)
    if now is None:
        return [room.cut(line(("speed     ", MUTED), "no step yet"))]
    pairs = zip(snapshot.series["tokens"].recent(120), snapshot.series["seconds.total"].recent(120), strict=False)
    rates = [tokens / seconds for tokens, seconds in pairs if seconds]
    spark = sparkline(rates, min(SPARK_CELLS, room.width - 34), "ascii" if room.glyphs == "ascii" else "block")
    rows = [
        line(("tokens/s  ", MUTED), f"{rate(now):>8}   ", (spark, REWARD)),
        line(("step      ", MUTED), f"{figure(snapshot.step_seconds):>8} s, the median of the last {STEPS_MEASURED}"),
    ]
    return [room.cut(row) for row in rows]


def phases(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """A bar for each phase of a step."""
    seconds = phase_seconds(snapshot)
    whole = sum(seconds.values())
    lines = [Content.styled(f"seconds of a step, the mean of the last {PHASE_STEPS}", MUTED)] if seconds else []
    for name, value in seconds.items():
        text = f"  {name:<12}{figure(value):>8} s  "
        lines.append(
            room.cut(line(text, (bar(value / whole if whole else 0.0, room.width - len(text) - 1, room.glyphs), REWARD)))
        )
    return lines


def memory(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """MLX's counters: of the last step, else of the last heartbeat."""
    rows = [
        (f"{kind} memory", size(value))
        for kind in ("peak", "active", "cache")
        if (value := snapshot.last(f"bytes.{kind}") or snapshot.memory.get(kind)) is not None
    ]
    return columns(rows, room)


def times(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """How long it has taken, how long it will take, and what is safe on the disk."""
    rows = []
    if snapshot.started_t is not None:
        over = snapshot.state in ("finished", "failed", "stopped", "lost") and snapshot.last_t is not None
        until = snapshot.last_t if over and snapshot.last_t is not None else snapshot.around.now
        rows.append(("elapsed", duration(max(0.0, until - snapshot.started_t))))
    if snapshot.eta_seconds is not None and snapshot.state not in ("finished", "failed", "stopped", "lost"):
        rows.append(("to go", f"{duration(snapshot.eta_seconds)}, evaluations counted"))
    if snapshot.phase is not None:
        place = "" if snapshot.phase.update is None else f", update {snapshot.phase.update + 1}"
        name, progress = one_line(snapshot.phase.name, 20), snapshot.phase.progress
        doing = f"{name} of step {snapshot.phase.step}{place}" if progress is None else f"{name} {', '.join(amounts(progress))}"
        rows.append(("doing", doing))
    if snapshot.checkpoints:
        saved = snapshot.checkpoints[-1]
        rows.append(("checkpoint", f"step {saved.step} ({one_line(saved.reason, 20)}), {len(snapshot.checkpoints)} written"))
    if snapshot.resumes:
        rows.append(("resumed", f"{snapshot.resumes} times"))
    return columns(rows, room)


def machine(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """What the run's figures depend on besides config and data."""
    rows = []
    for key, value in snapshot.machine.items():
        if value is None:
            continue
        text = ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, dict) else str(value)
        rows.append((one_line(key, 16), one_line(text, room.width)))
    if snapshot.pid is not None:
        rows.append(("process", str(snapshot.pid)))
    unusual = [f"{count} {what}" for count, what in ((snapshot.around.torn, "torn"), (snapshot.ignored, "unused")) if count]
    rows.append(("journal", f"{snapshot.seq} events" + (f", {' and '.join(unusual)} lines" if unusual else "")))
    return columns(rows, room)


def commands(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """What was asked of the worker and what became of it, the newest last."""
    lines = [Content.styled("commands", MUTED)] if snapshot.commands else []
    for command in list(snapshot.commands.values())[-COMMANDS_SHOWN:]:
        reason = f": {command.reason}" if command.reason else ""
        lines.append(room.cut(line(f"  {one_line(f'{command.verb} {command.status}{reason}', room.width - 2)}")))
    return lines
