"""What the command line draws: values to lines of text, nothing else. Every string from outside goes through safe_text."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.figures import STATE_GLYPHS, duration, number, size
from engine.methods import Method
from engine.runs.state import RunState
from engine.runs.summary import RunSummary
from engine.runs.values import Progress
from engine.safe_text import safe_text


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Columns padded to their widest cell; the columns in `right` are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def method_row(method: Method) -> dict[str, Any]:
    """A method for `--json`."""
    return {**asdict(method), "changed": method.changed, "meaningless": method.meaningless}


def methods(rows: Sequence[Method]) -> list[str]:
    """The method table with the paper's defaults."""
    lines: list[str] = []
    for method in rows:
        lines += [f"{method.id}  {method.title}", f"    {method.summary}"]
        facts = {"differs": method.differs, "use it": method.when, "source": method.source, "data": ", ".join(method.formats)}
        if method.objective is not None:
            facts["defaults"] = ", ".join(f"{key} {_option(value)}" for key, value in method.defaults.items())
            refused: dict[str, list[str]] = {}
            for option, why in method.meaningless.items():
                refused.setdefault(why, []).append(option)
            if refused:
                facts["refuses"] = "; ".join(f"{', '.join(options)} ({why})" for why, options in refused.items())
        for key, value in facts.items():
            lines += textwrap.wrap(value, 100, initial_indent=f"    {key:<9}", subsequent_indent=" " * 13)
        lines.append("")
    lines.append("start one: droid-tune train CONFIG, with a recipe of the same name to begin from")
    return lines


def _option(value: object) -> str:
    return "no bound" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def runs(rows: Sequence[RunSummary]) -> list[str]:
    """The list of runs, or what to do when there is none."""
    if not rows:
        return [
            "no runs yet",
            "",
            "droid-tune demo           watch the embedded model learn to think (offline)",
            "droid-tune train CONFIG   start your own",
        ]
    head = ["", "state", "run", "method", "model", "step", "reward", "held-out", "age"]
    body = [
        [
            STATE_GLYPHS.get(row.state, " "),
            row.state,
            safe_text(row.id),
            row.method,
            safe_text(Path(row.model).name),
            f"{row.step}/{row.steps}" if row.steps else "–",
            number(row.reward),
            number(row.held_out),
            duration(time.time() - row.created) if row.created else "–",
        ]
        for row in rows
    ]
    lines = table([head, *body], right=(5, 6, 7, 8))
    lines += [f"! {safe_text(row.id)}: {safe_text(row.damaged)}" for row in rows if row.damaged]
    lines += [
        f"? {row.id}: its worker is gone; droid-tune resume {row.id} goes on from the last checkpoint"
        for row in rows
        if row.state == "lost"
    ]
    return lines


def status(state: RunState, folder: Path) -> list[str]:
    """One run in a page."""
    lines = [headline(state), f"folder    {folder}"]
    if state.phase is not None and not state.ended:
        lines.append(f"phase     {state.phase.name}, {duration(time.time() - state.phase.t)} in it")
        if state.phase.progress is not None:
            lines.append(f"bytes     {progress(state.phase.progress)}")
    seconds, left = state.step_seconds(), duration(state.eta_seconds())
    if seconds is None and state.predicted:
        lines.append(f"speed     no step measured yet; about {left} to go, with every completion at its limit")
    else:
        lines.append(f"speed     {number(seconds)} s a step, {left} to go, evaluations counted")
    lines += [
        f"{name:<9} {number(entry.last, 4)} at step {entry.steps[-1]}" for name, entry in state.series.items() if "." not in name
    ]
    held = state.held_out.get("reward") or state.held_out.get("loss")
    if held:
        first, last = f"{number(held.values[0])} at step {held.steps[0]}", f"{number(held.last)} at step {held.steps[-1]}"
        lines.append(f"held-out  {first}, {last}, best at step {state.best_step}")
    if state.checkpoint is not None:
        lines.append(f"saved     {state.checkpoint.path} ({state.checkpoint.reason})")
    lines += [f"⚠ step {w.step}: {safe_text(w.message)} ({safe_text(w.remedy)})" for w in state.warnings[-5:]]
    return lines + ending(state)


def progress(found: Progress) -> str:
    """How far a download or a conversion is."""
    rate, left = size(found.bytes_per_second), duration(found.eta_seconds)
    return f"{size(found.done)} of {size(found.total)}, {rate}/s, {left} to go"


def headline(state: RunState) -> str:
    """Run, method, model, state and step in one line."""
    model = Path(state.model).name if state.model else "–"
    shown = f"{STATE_GLYPHS.get(state.state, ' ')} {state.state}"
    return f"{safe_text(state.id or '–')}  {state.method}  {safe_text(model)}  {shown}  step {state.step}/{state.steps}"


def ending(state: RunState) -> list[str]:
    """How a run ended: base against tuned and the command that uses the result, or the error and its remedy."""
    if state.failure is not None and state.state == "failed":
        return [f"✕ {safe_text(str(state.failure.get('error')))}", f"  {safe_text(str(state.failure.get('remedy')))}"]
    if state.result is None:
        return []
    found = state.result
    what = "loss" if state.method == "sft" else "reward"
    interval = f"95% interval {number(found.get('low'))} to {number(found.get('high'))}, " if found.get("low") is not None else ""
    return [
        f"held-out {what}: base {number(found.get('base'))}, tuned {number(found.get('tuned'))} "
        f"(difference {number(found.get('difference'))}, {interval}{found.get('n')} prompts; "
        f"best at step {found.get('tuned_step')})",
        f"adapter  {safe_text(str(found.get('adapter')))}",
        f"use it   {safe_text(str(found.get('command')))}",
    ]
