"""Following a run in text: a live view in a terminal, plain lines elsewhere. A viewer only: leaving it changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import aclosing

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from engine.api import Run
from engine.cli import screens
from engine.figures import duration, number
from engine.plot import Glyphs, glyph_set, plot
from engine.runs.journal import Event, jsonable
from engine.runs.record import RunRecord
from engine.runs.state import RunState
from engine.safe_text import safe_text
from engine.telling import readable

_OVER = frozenset({"stopped", "finished", "failed", "lost", "damaged"})
_SAMPLES_SHOWN = 4


def exit_status(state: RunState) -> int:
    """0 where the run ended as asked, else 1."""
    return 0 if state.state in ("finished", "stopped") else 1


Epilogue = Callable[[Run, RunState], list[str]]  # more lines for the end


def nothing(run: Run, state: RunState) -> list[str]:
    """No epilogue."""
    return []


async def watch(run: Run, *, plain: bool, epilogue: Epilogue = nothing) -> int:
    """Show the run until it ends; returns its exit status."""
    state = await (_plain(run) if plain else _live(run))
    for line in [*screens.ending(state), *epilogue(run, state)]:
        print(line)
    if state.state == "lost":
        print(f"its worker is gone; droid-tune resume {run.id} goes on from the last checkpoint")
    return exit_status(state)


async def logs(run: Run, follow: bool, as_json: bool) -> None:
    """The journal, one event a line; with `follow` until the run ends."""
    last = (await run.state()).seq
    async with aclosing(run.events()) as events:
        async for event in events:
            print(_json_line(event) if as_json else log_line(event), flush=True)
            if not follow and event.seq >= last:
                return


def _json_line(event: Event) -> str:
    return json.dumps(jsonable({"seq": event.seq, "t": event.t, "type": event.type, **event.fields}), ensure_ascii=False)


def log_line(event: Event) -> str:
    """An event as one line of text; --json has every digit of its durations."""
    told = json.dumps(jsonable(readable(event.fields)), ensure_ascii=False)
    return f"{event.seq:>6} {event.type:<10} {safe_text(told)}"


async def _plain(run: Run) -> RunState:
    print(f"{run.id}: training in a worker of its own; leaving this (ctrl+c) does not stop it", flush=True)
    state = RunState()
    async with aclosing(run.events()) as events:
        async for event in events:
            state.apply(event)
            line = plain_line(event, state)
            if line:
                print(line, flush=True)
    return await run.state()


def plain_line(event: Event, state: RunState) -> str:
    """The line that an event is worth, or nothing."""
    if event.type == "step":
        shown = [
            f"{name} {number(entry.last)}" for name in ("reward", "loss", "length", "kl") if (entry := state.series.get(name))
        ]
        seconds = state.series.get("seconds.total")
        return f"step {state.step:>5}/{state.steps}  {'  '.join(shown)}  {number(seconds.last if seconds else None)} s"
    if event.type in ("phase", "heartbeat") and state.phase is not None and state.phase.progress is not None:
        return f"{state.phase.name} {screens.progress(state.phase.progress)}"
    if event.type == "eval":
        name = "loss" if state.method == "sft" else "reward"
        entry = state.held_out.get(name)
        return f"held-out {name} {number(entry.last if entry else None)} after step {event.fields.get('step')}"
    if event.type == "warning":
        return f"⚠ {safe_text(str(event.fields.get('message')))} ({safe_text(str(event.fields.get('remedy')))})"
    return ""


async def _live(run: Run) -> RunState:
    console = Console(highlight=False)
    refresh_seconds = 1.0 if "SSH_CONNECTION" in os.environ else 0.5
    state = await run.state()
    with Live(console=console, screen=False, auto_refresh=False, transient=False) as live:
        while True:
            samples = newest_samples(run.record, state)
            width, height = console.size.width, console.size.height
            lines = frame(state, samples, width, height - 1, glyph_set(console.encoding, os.environ))
            live.update(Text("\n".join(lines)), refresh=True)
            if state.state in _OVER:
                return state
            await asyncio.sleep(refresh_seconds)
            state = await run.state()


def newest_samples(record: RunRecord, state: RunState) -> list[dict[str, object]]:
    """The first group of the newest step's rollouts; nothing where there is none (or it has just been replaced)."""
    file = state.latest_samples("train")
    if file is None:
        return []
    try:
        with open(record.folder / file, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    return [row for row in rows if row["prompt_id"] == rows[0]["prompt_id"]]


def frame(state: RunState, samples: list[dict[str, object]], width: int, height: int, glyphs: Glyphs) -> list[str]:
    """The live view: at most `height` lines of at most `width` cells."""
    supervised = state.method == "sft"
    name = "loss" if supervised else "reward"
    main, held = state.series.get(name), state.held_out.get(name)
    figures = [
        f"{name} {number(main.last if main else None)}",
        f"held-out {number(held.last if held else None)} (base {number(held.values[0] if held else None)})",
        f"length {number(_last(state, 'length'))}",
        f"{number(_tokens_per_second(state))} tokens/s",
        f"eta {duration(state.eta_seconds())}",
    ]
    if state.phase is not None and state.phase.progress is not None:
        figures = [f"{state.phase.name} {screens.progress(state.phase.progress)}"]
    top = [screens.headline(state), "  ".join(figures), ""]
    bottom = ["", *_samples_lines(samples), ""]
    if state.warnings:
        warning = state.warnings[-1]
        bottom.append(f"⚠ step {warning.step}: {safe_text(warning.message)} ({safe_text(warning.remedy)})")
    if not state.ended:
        bottom.append(f"ctrl+c leaves; the run goes on, `droid-tune attach {safe_text(state.id or '')}` comes back")
    room = max(height - len(top) - len(bottom), 5)
    series = [(main.steps, main.values, name)] if main else []
    if held:
        series.append((held.steps, held.values, f"held-out {name}"))
    chart = plot(series, width, min(room, 16), glyphs=glyphs, y_min=None if supervised else 0.0)
    return [fit(line, width) for line in [*top, *chart, *bottom][: max(height, 8)]]


def fit(line: str, width: int) -> str:
    """The line cut to `width` terminal cells."""
    return line if cell_len(line) <= width else set_cell_size(line, max(width - 1, 0)) + "…"


def _samples_lines(samples: list[dict[str, object]]) -> list[str]:
    if not samples:
        return []
    ordered = sorted(samples, key=lambda row: -_sort_value(row["advantage"]))
    shown = ordered if len(ordered) <= _SAMPLES_SHOWN else [*ordered[: _SAMPLES_SHOWN // 2], *ordered[-_SAMPLES_SHOWN // 2 :]]
    lines = [f"newest group  {safe_text(str(samples[0]['prompt']))}  answer {safe_text(str(samples[0]['answer']))}"]
    for row in shown:
        advantage = _sort_value(row["advantage"])
        arrow = "▲" if advantage > 0 else "▼" if advantage < 0 else " "
        reward = row["reward"]
        lines.append(f"  {number(reward if isinstance(reward, float) else None):>5} {arrow} {safe_text(str(row['text']))}")
    return lines


def _sort_value(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _last(state: RunState, name: str) -> float | None:
    entry = state.series.get(name)
    return entry.last if entry else None


def _tokens_per_second(state: RunState) -> float | None:
    """Completion tokens of the last step over its seconds, all phases counted."""
    tokens, seconds = _last(state, "tokens"), _last(state, "seconds.total")
    return tokens / seconds if tokens is not None and seconds else None
