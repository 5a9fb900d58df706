"""Overview: is it learning? Figures, the curve beside its side figures, where a step goes, what is amiss, the newest group."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content

from engine.figures import duration, size
from tui.samples import Answer, PromptGroup
from tui.screens.live.fetching import bar_lines, fetching
from tui.screens.live.state_lines import state_lines
from tui.screens.live.text import AMBER, MUTED, REWARD, Room, bar, columns, figure, line, mean, one_line, rate, share, words
from tui.screens.live.view import Block, View
from tui.snapshot import RunSnapshot
from tui.widgets.chart import Chart
from tui.widgets.painted import Row

SIDE_CELLS = 27
SIDE_FROM = 76  # width from which the side column opens
CHART_ROWS = 9  # at least
RECENT = 10  # steps whose mean is compared with that of as many before
PHASE_STEPS = 20  # steps whose mean says where a step goes

_SIDE = (  # metric, name
    ("kl", "kl"),
    ("entropy", "entropy"),
    ("clip_low", "clipped low"),
    ("clip_high", "clipped high"),
    ("truncated", "cut at limit"),
    ("grad_norm", "gradient"),
    ("lr", "lr"),
)
_SHARES = frozenset({"clip_low", "clip_high", "truncated"})


class Overview(View):
    """The first view of a run."""

    TITLE = "overview"
    DEFAULT_CSS = f"""
    Overview #figures {{ height: 1; }}
    Overview #middle {{ height: 1fr; }}
    Overview #side {{ width: {SIDE_CELLS - 2}; margin: 0 0 0 2; }}
    """

    def compose(self) -> ComposeResult:
        yield Block(id="figures")
        with Row(id="middle"):
            yield Chart(self.app.glyphs, id="curve")
            yield Block(id="fetched")
            yield Block(id="side")
        yield Block(id="below")

    def draw(self, snapshot: RunSnapshot, room: Room) -> None:
        self.query_one("#figures", Block).put([figures(snapshot, room)])
        found = fetching(snapshot) if not snapshot.series and not snapshot.held_out else None  # a bar in the empty curve's place
        chart, fetched, side = self.query_one("#curve", Chart), self.query_one("#fetched", Block), self.query_one("#side", Block)
        chart.display, fetched.display = found is None, found is not None
        side.display = found is None and room.width >= SIDE_FROM
        side.put(side_lines(snapshot, Room(SIDE_CELLS - 2, room.height, room.glyphs)))
        below = below_lines(snapshot, Room(room.width, max(room.height - 1 - CHART_ROWS, 3), room.glyphs))
        block = self.query_one("#below", Block)
        block.styles.height = len(below)
        block.put(below)
        if found is not None:
            fetched.put(bar_lines(*found, snapshot.model, Room(room.width, room.height - 1 - len(below), room.glyphs)))
            return
        score, series = snapshot.score, []
        if (metric := snapshot.series.get(score)) is not None:
            series.append((metric.steps, metric.values, score))
        else:
            series.append(((), (), score))
        if (held := snapshot.held_out.get(score)) is not None:
            series.append((held.steps, held.values, "held-out"))
        chart.show(series, y_min=None if score == "loss" else _floor(snapshot), empty="no step yet")


def _floor(snapshot: RunSnapshot) -> float | None:
    """0 as the lower bound of rewards that never were below it."""
    metrics = [found for source in (snapshot.series, snapshot.held_out) if (found := source.get("reward")) is not None]
    return 0.0 if all(metric.lowest >= 0 for metric in metrics) else None


def figures(snapshot: RunSnapshot, room: Room) -> Content:
    """The first line: score and its trend, held-out against base, length, speed, time to go."""
    if snapshot.around.loaded < 1:
        return room.cut(line(f"reading the journal: {100 * snapshot.around.loaded:.0f}%"))
    score = snapshot.score
    metric, held = snapshot.series.get(score), snapshot.held_out.get(score)
    if metric is None and held is None:
        return room.cut(line("no step yet: ", (waiting(snapshot), MUTED)))
    change = trend(metric.recent(2 * RECENT)) if metric is not None else None
    moved = "" if change is None else f" {room.sign('▲' if change >= 0 else '▼')} {abs(change):.2g}"
    parts = [line(f"{score} ", (figure(metric.last if metric else None), f"bold {REWARD}"), (moved, MUTED))]
    if held is not None:
        base = f" (base {figure(held.first)})"
        parts.append(line("held-out ", (figure(held.last), f"bold {REWARD}"), (base, MUTED)))
    if snapshot.state in ("running", "pausing", "starting", "stalled"):
        parts.append(Content(f"eta {duration(snapshot.eta_seconds)}"))
    if (length := snapshot.last("length")) is not None:
        parts.append(Content(f"length {figure(length)}"))
    if (speed := tokens_per_second(snapshot)) is not None:
        parts.append(Content(f"{rate(speed)} tokens/s"))
    while len(parts) > 1 and sum(part.cell_length + 3 for part in parts) - 3 > room.width:
        del parts[-1]
    return room.cut(Content("   ").join(parts))


def waiting(snapshot: RunSnapshot) -> str:
    """What a run without a step is doing."""
    phase = snapshot.phase
    if phase is None:
        return f"the run is {snapshot.state}"
    return f"{one_line(phase.name, 20)} for {duration(max(0.0, snapshot.around.now - phase.t))}"


def trend(values: list[float]) -> float | None:
    """The mean of the last values less that of as many before; None of fewer than two."""
    half = len(values) // 2
    before, after = mean(values[-2 * half : -half]) if half else None, mean(values[-half:]) if half else None
    return None if before is None or after is None else after - before


def tokens_per_second(snapshot: RunSnapshot) -> float | None:
    """Completion tokens of the last step over its seconds, all phases counted."""
    tokens, seconds = snapshot.last("tokens"), snapshot.last("seconds.total")
    return tokens / seconds if tokens is not None and seconds else None


def side_lines(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """The column beside the curve: what rewards, divergence, entropy, clipping and groups say."""
    rows = [
        (one_line(name.removeprefix("parts."), 14), figure(metric.last))
        for name, metric in snapshot.series.items()
        if name.startswith("parts.")
    ][:4]
    for name, label in _SIDE:
        value = snapshot.last(name)
        if value is not None:
            rows.append((label, share(value) if name in _SHARES else figure(value)))
    same, groups = snapshot.last("zero_std_groups"), snapshot.last("groups")
    if same is not None:
        rows.append(("same score", f"{same:.0f}" + (f" of {groups:.0f}" if groups is not None else "")))
    if replaced := snapshot.last("discarded"):
        rows.append(("replaced", f"{replaced:.0f} groups"))
    if masked := snapshot.last("masked"):
        rows.append(("cut, masked", f"{masked:.0f} answers"))
    if skipped := snapshot.last("skipped"):
        rows.append(("not finite", f"{skipped:.0f} updates"))
    if excluded := snapshot.last("excluded"):
        rows.append(("left out", f"{excluded:.0f} answers"))
    return columns(rows, room)


def below_lines(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """What stands below the curve, within the room's height: the run's state, the step, memory, warnings, the newest group."""
    lines = [room.rule, *state_lines(snapshot, room)]
    lines += phase_lines(snapshot, room) + memory_lines(snapshot, room)
    spare = room.height - len(lines)
    group = group_lines(snapshot, room, 2 if spare < 12 else 8)
    if snapshot.state != "finished":  # then there is nothing left to do about them
        lines += warning_lines(snapshot, room, max(1, min(3, spare - len(group) - 1)))
    if group and room.height - len(lines) > len(group):
        lines.append(Content(""))
    if room.height - len(lines) >= min(len(group), 2):
        lines += group
    return lines[: room.height]


def phase_lines(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """One line that divides the seconds of a step by phase."""
    seconds = phase_seconds(snapshot)
    if not seconds:
        return []
    whole = sum(seconds.values())
    head = f"where a step goes ({duration_of_step(whole)})"
    cells = room.width - len(head) - sum(len(name) + 4 for name in seconds)  # a bar may end in a part of a cell
    parts: list[str | tuple[str, str]] = [(head, MUTED)]
    for name, value in seconds.items():
        parts += [f"  {name} ", (bar(value / whole, max(cells, 4), room.glyphs) if whole else "", REWARD)]
    return [room.cut(line(*parts))]


def phase_seconds(snapshot: RunSnapshot) -> dict[str, float]:
    """Seconds of a step by phase, the mean of the recent steps."""
    found = {}
    for name, metric in snapshot.series.items():
        phase = name.removeprefix("seconds.")
        if phase != name and phase != "total" and (value := mean(metric.recent(PHASE_STEPS))) is not None:
            found[one_line(phase, 12)] = value
    return found


def duration_of_step(seconds: float) -> str:
    """A step's time: with a decimal where seconds alone would say little."""
    return f"{seconds:.2g}s" if seconds < 10 else duration(seconds)


def memory_lines(snapshot: RunSnapshot, room: Room) -> list[Content]:
    """The newest memory counters."""
    counts = {kind: snapshot.last(f"bytes.{kind}") or snapshot.memory.get(kind) for kind in ("peak", "active", "cache")}
    if counts["peak"] is None:
        return []
    rest = ", ".join(f"{size(count)} {kind}" for kind, count in counts.items() if kind != "peak" and count is not None)
    return [room.cut(line(("memory  ", MUTED), f"{size(counts['peak'])} peak of a step", (f"   {rest}" if rest else "", MUTED)))]


def warning_lines(snapshot: RunSnapshot, room: Room, most: int) -> list[Content]:
    """The newest warning in at most `most` lines, and how many there are besides."""
    if not snapshot.warnings:
        return []
    warning, more = snapshot.warnings[-1], snapshot.warning_count - 1
    step = "" if warning.step is None else f"step {warning.step}: "
    count = f"  (and {more} more: 5 log)" if more > 0 else ""
    text = f"{step}{warning.message}; {warning.remedy}" if warning.remedy else f"{step}{warning.message}"
    pieces = words(text, room.width - 2 - len(count), most + 1)
    lines = [line((f"{room.sign('⚠')} " if not index else "  ", AMBER), piece) for index, piece in enumerate(pieces[:most])]
    lines[-1] = room.cut(line(lines[-1], "…" if len(pieces) > most else "", (count, MUTED)))
    return lines


def group_lines(snapshot: RunSnapshot, room: Room, answers: int) -> list[Content]:
    """The first group of the newest step: its prompt, and answers from the best to the worst."""
    samples = snapshot.around.samples
    if samples is None or not samples.groups:
        return []
    group = samples.groups[0]
    head = f"step {samples.step}, first group  "
    lines = [line((head, MUTED), one_line(group.prompt.strip(), room.width - len(head)))]
    return lines + [_answer_line(answer, room) for answer in extremes(group, answers)]


def extremes(group: PromptGroup, count: int) -> list[Answer]:
    """At most `count` answers from the highest advantage to the lowest, half of them from either end."""
    ordered = sorted(group.answers, key=lambda answer: -(answer.advantage or 0.0))
    upper = (count + 1) // 2
    return ordered if len(ordered) <= count else [*ordered[:upper], *ordered[len(ordered) - (count - upper) :]]


def _answer_line(answer: Answer, room: Room) -> Content:
    advantage = answer.advantage or 0.0
    sign = room.sign("▲" if advantage > 0 else "▼" if advantage < 0 else " ")
    return line((f"  {figure(answer.reward):>5} {sign} ", REWARD), one_line(answer.text, room.width - 10))
