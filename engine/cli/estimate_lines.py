"""What `droid-tune estimate` draws: values to lines of text. Every string from outside goes through safe_text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from engine.cli.screens import table
from engine.config import RunConfig
from engine.estimate import Estimate, short
from engine.figures import duration, number, size
from engine.machine_rates import BUSY_CORES
from engine.measuring import MeasuredStep
from engine.method_costs import MethodCost
from engine.safe_text import safe_text
from engine.timing import TimePlan

_WIDTH = 120


def estimate(found: Estimate) -> list[str]:
    """The plan of memory and time: each phase in its parts, what binds first, and what was taken for granted."""
    held = [
        ("weights", found.weights_bytes),
        ("adapter", found.adapter_bytes),
        ("optimizer", found.optimizer_bytes),
        ("reference", found.reference_bytes),
    ]
    phases = [
        (
            "update",
            found.update_peak_bytes,
            [("activations", found.activation_bytes), ("logits", found.logits_bytes), ("gradient", found.gradient_bytes)],
        )
    ]
    if found.rollout_peak_bytes is not None:
        phases.append(
            ("rollout", found.rollout_peak_bytes, [("kv cache", found.cache_bytes), ("logits", found.rollout_logits_bytes)])
        )
    phases.sort(key=lambda phase: phase[0] != found.binding_phase)
    verdict = "✓ fits" if found.fits else "✕ does not fit"
    rows = [["held throughout", ""], *([f"  {name}", size(count)] for name, count in held if count)]
    for name, peak, parts in phases:
        rows += [[f"peak of the {name}", size(peak)], *([f"  {part}", size(count)] for part, count in parts if count)]
    return [
        f"peak {size(found.peak_bytes)} of {size(found.limit_bytes)} allowed, in the {found.binding_phase}  {verdict}",
        "",
        *table(rows, right=(1,)),
        "",
        *([] if found.time is None else [*time(found.time), ""]),
        f"trains   {found.trainable_parameters:,} parameters in micro-batches of {found.micro_batch_rows} rows, "
        f"{found.dtype} on {found.backend}{', each layer computed again in the backward pass' if found.recomputes else ''}",
        *([] if found.decode_rows is None else [f"decodes  {found.decode_rows} rows at once, the others wait"]),
        *room(found),
        *([f"fetches  {size(found.fetch_bytes)} of weights, when the run starts"] if found.fetch_bytes else []),
        *(_told("time", found.seconds_reason) if found.time is None else []),
        *(line for each in found.assumptions for line in _told("assumed", each)),
    ]


def room(found: Estimate) -> list[str]:
    """What would make it fit, or how far its sizes could go."""
    if found.change is not None:
        change = found.change
        return _told("fits if", f"{change.key}: {change.value} (peak {size(change.peak)}); {change.cost}")
    if not found.fits:
        return _told("fits if", "several values are lowered: no single one is enough; or with a smaller model")
    if found.largest is None:
        return []
    sizes = {
        "micro-batches of": found.largest.micro_batch_rows,
        "groups of": found.largest.group_size,
        "completions of": found.largest.max_completion_tokens,
    }
    parts = [
        f"{name} {count:,}{' tokens' if 'completions' in name else ''}" for name, count in sizes.items() if count is not None
    ]
    return [f"room     for {', '.join(parts)}: each alone, at most"] if parts else []


def time(found: TimePlan) -> list[str]:
    """Seconds of a step by phase, and of the run."""
    parts = {"rollout": f"prefill {short(found.prefill)}, decode {short(found.decode)}"}
    by = {name: f"corrected x{number(value, 2)} by a measured step" for name, value in found.corrected_by.items()}
    rows = [["time of a step, at most", short(found.step), f"{found.tokens_per_second:,.0f} completion tokens/s"]]
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


def measured(found: MeasuredStep) -> list[str]:
    """One step, predicted beside measured, and what follows for the run."""
    head = ["measured", "seconds", "predicted", "ratio", "peak", "at most"]
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
        f"completions of {number(mean)} tokens on average, {found.longest_completion} at most, in micro-batches of "
        f"{found.micro_batch_rows} rows",
        f"the run: {duration(found.run_as_measured)} if steps stay like this one, at most {duration(found.run.run)}",
    ]
    if found.kept:
        lines += _told("kept", "later estimates of this family and adapter begin with these ratios")
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
        f"and up to {sampling.max_prompt_tokens} + {sampling.max_completion_tokens} tokens a row",
    ]
    lines += _told("sft", "learns as many rows a step as the others have completions; it samples none")
    return lines + _told("at most", "every completion reaches its limit and is trained; rewards take no time in this table")


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
