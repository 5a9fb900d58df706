"""What `droid-tune estimate` draws: values to lines of text. Every string from outside goes through safe_text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from engine import estimate_words as words
from engine.cli.screens import table
from engine.config import RunConfig
from engine.corrections import REWARD
from engine.estimate import Estimate, short
from engine.figures import about, counted, duration, number, size
from engine.machine_rates import BUSY_CORES, Correction
from engine.measuring import MeasuredStep
from engine.method_costs import MethodCost
from engine.safe_text import safe_text
from engine.time_plan import TimePlan

_WIDTH = 120


def estimate(found: Estimate) -> list[str]:
    """The plan of memory and time: each phase in its parts, what binds first, and what was taken for granted."""
    name, total, held = words.held(found)
    rows = [[name, size(total), ""], *([f"  {part}", size(count), ""] for part, count in held)]
    for each in found.phases:
        rows.append([f"peak of the {each.phase}", size(each.peak_bytes), each.moment])
        rows += [[f"  {part}", size(count), ""] for part, count in each.parts]
    room = words.room(found)
    return [
        f"{words.peak(found)}  {'✓ fits' if found.fits else '✕ does not fit'}",
        "",
        *table(rows, right=(1,)),
        "",
        *([] if found.time is None else [*time(found.time), ""]),
        f"trains   {counted(found.trainable_parameters, 'parameter')} in micro-batches of "
        f"{counted(found.micro_batch_rows, 'row')}, {found.dtype} on {found.backend}",
        *(line for label, text in words.cut(found) for line in _told(label, text)),
        *([] if found.fits else _told("to fit", words.to_fit(found.change, found.tried, found.several))),
        *(_told("room", f"for {room}") if room else []),
        *(_told("time", found.seconds_reason) if found.time is None else []),
        *(line for each in found.assumptions for line in _told("assumed", each)),
    ]


def time(found: TimePlan) -> list[str]:
    """Seconds of a step by phase, and of the run."""
    parts = {"rollout": f"prefill {short(found.prefill)}, decode {short(found.decode)}"}
    by = {name: _correction(name, each) for name, each in found.corrected_by.items()}
    tokens = "completion" if "rollout" in found.phases else "target"
    rows = [["time of a step, about", short(found.step), f"{found.tokens_per_second:,.0f} {tokens} tokens/s"]]
    rows += [
        [f"  {name}", short(seconds), ", ".join(filter(None, (parts.get(name, ""), by.get(name, ""))))]
        for name, seconds in found.phases.items()
        if seconds
    ]
    rows += [
        [f"{found.evaluations} evaluations, each", short(found.evaluation), ""],
        [f"{found.checkpoints} checkpoints, each", short(found.checkpoint), ""],
        [f"the run of {found.steps} steps", duration(found.run), f"the {found.longest} takes longest"],
    ]
    return table(rows, right=(1,))


def _correction(phase: str, found: Correction) -> str:
    by = safe_text(found.by)
    if phase == REWARD:
        return f"{short(found.seconds_per_completion)} a completion, by {by} with these rewards"
    return f"corrected x{number(found.factor, 2)} by {by} of this model"


def measured(found: MeasuredStep) -> list[str]:
    """One step, predicted beside measured, and what follows for the run."""
    head = ["measured", "seconds", "predicted", "ratio", "peak", "planned"]
    rows = [
        [
            name,
            number(seconds),
            _or_none(found.predicted_seconds, name),
            f"x{number(found.ratios[name], 2)}" if name in found.ratios else "–",
            size(found.peak_bytes.get(name)),
            size(found.predicted_peak_bytes.get(name)),
        ]
        for name, seconds in found.seconds.items()
    ]
    rows.append(["step", number(found.total), number(sum(found.predicted_seconds.values())), "", "", ""])
    mean = found.completion_tokens / max(found.completions, 1)
    lines = [
        *table([head, *rows], right=(1, 2, 3, 4, 5)),
        "",
        "seconds are predicted for the lengths that the step had, peaks for completions at their limit",
        f"completions of {number(mean)} tokens on average, {found.longest_completion:,} at most, in micro-batches of "
        f"{counted(found.micro_batch_rows, 'row')}",
        f"the run: {duration(found.run_as_measured)} if steps stay like this one, {about(duration(found.run.run))}",
    ]
    if found.kept:
        rewards = "" if found.reward_seconds_per_completion is None else ", those with these rewards with their seconds"
        lines += _told("kept", f"later estimates of this model and type of adapter begin with these ratios{rewards}")
    else:
        busy = f"others used {found.others_cores:.1f} cores meanwhile (more than {BUSY_CORES:g})"
        lines += _told("busy", f"{busy}: the ratios are not kept for later estimates")
    if not found.warmed:
        lines += _told("note", "the first step was timed, which pays for what is compiled and allocated once")
    return lines + [line for note in found.notes for line in _told("⚠", note)]


def costs(rows: Sequence[MethodCost], config: RunConfig) -> list[str]:
    """The table of methods."""
    head = ["method", "step", "x sft", "peak", "x sft", "updates", ""]
    body = [
        [
            f"{row.method}{' *' if row.own else ''}",
            "–" if row.seconds is None else short(row.seconds),
            number(row.time, 2),
            size(row.peak_bytes),
            number(row.memory, 2),
            str(row.updates),
            "; ".join(_remarks(row)),
        ]
        for row in rows
    ]
    sampling = config.sampling
    lines = [
        *table([head, *body], right=(1, 2, 3, 4, 5)),
        "",
        f"* this run's method, as configured; the others with their own options, all with {safe_text(config.adapter.type)} "
        f"and up to {sampling.max_prompt_tokens:,} + {sampling.max_completion_tokens:,} tokens a row",
    ]
    lines += _told("sft", "learns as many rows a step as the others have completions; it samples none")
    if rows[0].seconds is not None:
        lines += _told("seconds", _alike(rows))
    return lines + _told("assumed", "every completion reaches its limit and is trained; rewards take no time in this table")


def _alike(rows: Sequence[MethodCost]) -> str:
    """What all rows are corrected by."""
    factors = {name: each for row in rows for name, each in row.corrected_by.items()}
    if not factors:
        return "by this machine's rates alone, in every row; no measured step corrects them"
    parts = ", ".join(f"{name} x{number(each.factor, 2)} by {safe_text(each.by)}" for name, each in factors.items())
    return f"corrected in every row alike, by steps of this model: {parts}"


def _remarks(row: MethodCost) -> list[str]:
    said = [row.note] if row.note else []
    if not row.fits:
        said.append("does not fit")
    if row.seconds is not None and row.seconds_most is not None and row.seconds_most > row.seconds:
        said.append(f"up to {short(row.seconds_most)} where groups are replaced")
    return said


def _or_none(values: Mapping[str, float], name: str) -> str:
    value = values.get(name)
    return number(value) if value else "–"


def _told(label: str, text: str) -> list[str]:
    """A sentence under a label, wrapped."""
    return textwrap.wrap(safe_text(text), _WIDTH, initial_indent=f"{label:<9}", subsequent_indent=" " * 9)
