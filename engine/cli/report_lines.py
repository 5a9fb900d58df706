"""A data check as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from engine.data.length_bar import length_bar
from engine.data.validate import DataReport, DryRun, ProblemGroup, TokenLengths
from engine.plot import Glyphs
from engine.safe_text import safe_text

_SHOWN_LINES = 5
_SHOWN_LABELS = 6
_WITHOUT_LINES = {"reward-failed": "every row", "no-template": "the model", "no-generation-prompt": "the model"}


def report(found: DataReport, glyphs: Glyphs = "ascii") -> list[str]:
    """The data check; `glyphs` are those that the terminal has."""
    lines = [
        f"file     {safe_text(found.path)}",
        f"format   {found.format} for {found.method}",
        f"rows     {found.rows}, usable {found.usable}",
    ]
    if found.prompt_tokens is not None:
        lines += _lengths("prompt", found.prompt_tokens, glyphs)
    if found.completion_tokens is not None:
        lines += _lengths("target", found.completion_tokens, glyphs)
    if found.decisive_share is not None:
        lines.append(f"decisive {100 * found.decisive_share:.0f}% of the target tokens weigh more: those of marked steps")
    if found.sampled is not None:
        what = "lengths, template and rewards" if found.dry_run else "lengths and template"
        lines.append(f"sample   {what} of {found.sampled:,} rows (drawn, and the longest); --full measures all")
    if any(count > 1 for _, count in found.labels):
        lines.append(f"answers  {_labels(found)}")
    if found.duplicates:
        rows = "row repeats" if found.duplicates == 1 else "rows repeat"
        lines.append(f"repeats  {found.duplicates} {rows} an earlier one: {_lines(found.duplicate_lines)}")
    lines += [f"dry run  {_dry_run(run, found.sampled is not None)}" for run in found.dry_run]
    lines += problems((*found.problems, *found.warnings))
    held = () if found.held_out is None else found.held_out.problems
    if found.held_out is not None:
        own = found.held_out
        state = "; unusable" if own.is_unusable else ""
        lines.append(f"held-out {safe_text(own.path)}: rows {own.rows}, usable {own.usable}{state}")
        lines += problems(held)
    named = [found.duplicate_lines, *(problem.lines for problem in (*found.problems, *found.warnings, *held))]
    if max(map(len, named)) > _SHOWN_LINES:
        lines.append("note     --json lists every line")
    return [*lines, f"verdict  {found.verdict}"]


def problems(groups: Sequence[ProblemGroup]) -> list[str]:
    """What is wrong with which rows, and what to do about it."""
    lines = []
    for problem in groups:
        lines.append(f"{problem.count:>7} x {problem.kind}: {safe_text(problem.reason)} ({_place(problem)})")
        if problem.remedy:
            lines.append(f"          {safe_text(problem.remedy)}")
    return lines


def _dry_run(run: DryRun, is_sample: bool) -> str:
    name, note = safe_text(run.name), safe_text(run.note)
    if not run.rows:
        return f"{name} {note}"
    rows = f"{run.rows:,}{' sampled' if is_sample else ''} rows"
    if run.full is None:
        text = f"{name}: fails on {run.failed:,} of {rows}; what full marks are is not known"
    else:
        text = f"{run.full:,} of {rows}: the row's own answer gets full marks from {name}"
        counts = ((run.not_applicable, "not applicable"), (run.failed, "failed"))
        text += "".join(f", {count:,} {what}" for count, what in counts if count)
    return f"{text} ({run.seconds:.3f} s{f'; {note}' if note else ''})"


def _labels(found: DataReport) -> str:
    total = sum(count for _, count in found.labels)
    shown = [f"{safe_text(label)!r:.40} {100 * count / total:.0f}%" for label, count in found.labels[:_SHOWN_LABELS]]
    more = len(found.labels) - _SHOWN_LABELS
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _place(problem: ProblemGroup) -> str:
    if not problem.lines:
        return _WITHOUT_LINES.get(problem.kind, "the file as a whole")
    return _lines(problem.lines) + (f" field {safe_text(problem.field)}" if problem.field else "")


def _lengths(label: str, found: TokenLengths, glyphs: Glyphs) -> list[str]:
    text = (
        f"{label:<9}{found.min} to {found.max} tokens, median {found.median:g}, 95% within {found.p95}; "
        f"{found.over_limit} over the limit of {found.limit}"
    )
    bar = length_bar(found, glyphs)
    return [text, f"         {found.min} [{bar}] {found.max}"] if bar else [text]


def _lines(lines: Sequence[int]) -> str:
    more = len(lines) - _SHOWN_LINES
    shown = ", ".join(map(str, lines[:_SHOWN_LINES])) + (f" and {more} more" if more > 0 else "")
    return f"{'line' if len(lines) == 1 else 'lines'} {shown}"
