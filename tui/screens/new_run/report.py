"""What the checks of model and data found, in lines."""

from __future__ import annotations

from textual.content import Content

from engine.data.length_bar import length_bar
from engine.data.validate import DataReport, DryRun, TokenLengths
from engine.errors import InputError
from engine.plot import Glyphs
from engine.safe_text import safe_text
from tui.draft import DEMO, Draft
from tui.forms import MODEL
from tui.screens.new_run.checks import Checks, FileCheck, all_too_long, is_of_hub, said
from tui.screens.new_run.parts import columns

LABEL_CELLS = 10
SHOWN_ANSWERS = 5
_VERDICTS = {"ready": "✓", "ready with warnings": "⚠", "unusable": "✕"}
_FAILED = "✕ {}"


def report(checks: Checks, draft: Draft, width: int, glyphs: Glyphs = "ascii") -> Content:
    """The report, line by line as it comes in."""
    lines: list[tuple[str, str]] = []
    if checks.model is None:
        lines.append(("model", "checking ..." if checks.files else "not looked at yet"))
    elif isinstance(checks.model, InputError):
        lines.append(("model", _FAILED.format(said(checks.model))))
    else:
        where = "the embedded model" if draft.text(MODEL) == DEMO else safe_text(str(checks.model))
        lines.append(("model", f"✓ found: {where}"))
    for file in checks.files:
        lines += _file_lines(file, glyphs)
    if draft.profile is not None:
        lines.append(("profile", f"{draft.profile.title}; g makes rows for it"))
        lines += [("", draft.beyond_model)] if draft.beyond_model else []
    return columns(lines, width, LABEL_CELLS, indent=0)


def _file_lines(file: FileCheck, glyphs: Glyphs) -> list[tuple[str, str]]:
    found = file.found
    if isinstance(found, InputError):
        return [(file.role, _FAILED.format(said(found)))]
    if found is None:
        hub = "a data set of the hub: fetched and checked when the run starts; `droid-tune validate` does so now"
        return [(file.role, hub if is_of_hub(str(file.path)) else "checking ...")]
    amount = f"{found.rows:,} rows, {found.usable:,} usable, format {found.format}"
    lines: list[tuple[str, str]] = [(file.role, f"{_VERDICTS[found.verdict]} {found.verdict}: {amount}")]
    if all_too_long(found):
        lines.append(("", "every prompt is over the limit: raise sampling.max_prompt_tokens in the next step"))
    elif file.role == "held-out":
        return lines
    for label, lengths in (("prompts", found.prompt_tokens), ("targets", found.completion_tokens)):
        if lengths is not None:
            lines.append((label, _lengths(lengths)))
            bar = length_bar(lengths, glyphs)
            lines += [("", f"{lengths.min} [{bar}] {lengths.max}")] if bar else []
        elif file.measuring and label == "prompts":
            lines.append((label, "counting tokens ..."))
    return [*lines, *_more_lines(found)]


def _more_lines(found: DataReport) -> list[tuple[str, str]]:
    lines = []
    if found.decisive_share is not None:
        lines.append(("decisive", f"{100 * found.decisive_share:.0f}% of the target tokens weigh more: those of marked steps"))
    if found.labels:
        lines.append(("answers", answers(found)))
    lines += [("rewards" if place == 0 else "", line) for place, line in enumerate(dry_run(found))]
    if found.sampled is not None:
        lines.append(("sample", f"measured and scored: {found.sampled:,} rows, drawn by chance, and the longest"))
    return lines


def answers(found: DataReport) -> str:
    """How often each answer is the right one, the most frequent first."""
    total = sum(count for _, count in found.labels)
    shown = [f"{safe_text(label)[:40]} ({100 * count / total:.0f}%)" for label, count in found.labels[:SHOWN_ANSWERS]]
    more = len(found.labels) - SHOWN_ANSWERS
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def dry_run(found: DataReport) -> list[str]:
    """What the rewards gave the rows' own answers: those that gave full marks in one line, each other one in its own."""
    full = [run for run in found.dry_run if run.rows and run.full == run.rows]
    untried = [run for run in found.dry_run if not run.rows]
    lines = []
    if full:
        names = ", ".join(safe_text(run.name) for run in full)
        lines.append(f"✓ the rows' own answers get full marks from {names}")
    lines += [_reward(run) for run in found.dry_run if run.rows and run.full != run.rows]
    return [*lines, *(f"{safe_text(run.name)}: {safe_text(run.note) or 'not tried'}" for run in untried)]


def _reward(run: DryRun) -> str:
    """A reward that did not give full marks throughout."""
    name, note = safe_text(run.name), f"; {safe_text(run.note)}" if run.note else ""
    failed = f", {run.failed:,} failed" if run.failed else ""
    if run.full is None:
        sign = "⚠ " if run.failed else ""
        return f"{sign}{name}: run on {run.rows:,} rows{failed}{note}"
    others = f", {run.not_applicable:,} not applicable" if run.not_applicable else ""
    return f"⚠ {name}: {run.full:,} of {run.rows:,} rows' own answers get full marks{others}{failed}{note}"


def _lengths(found: TokenLengths) -> str:
    over = f"{found.over_limit:,}" if found.over_limit else "none"
    spread = f"{found.min} to {found.max} tokens, median {found.median:g}, 95% within {found.p95}"
    return f"{spread}; {over} over the limit of {found.limit}"
