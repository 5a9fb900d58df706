"""A benchmark as text: a table for each part, and what else the machine did meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from engine import machine_load
from engine.cli.screens import table
from engine.figures import number, size
from engine.machine_load import Load
from engine.safe_text import safe_text

SAME_GRADIENT = 1e-5  # relative, in float32

Found = Mapping[str, Any]


def lines(found: Found) -> list[str]:
    """The whole report."""
    machine = found["machine"]
    shown = [
        f"{safe_text(machine['chip'])}, {machine['cores']} cores, {machine['backend']}, mlx {found['versions'].get('mlx', '–')}"
    ]
    dtype = "float32"
    if "model" in found:
        model, settings = found["model"], found["settings"]
        dtype = model["dtype"]
        samples = "rollout" in found or "step" in found
        rows = "completions of {} tokens, none stops" if samples else "targets of {} tokens"
        shown += [
            f"{safe_text(model['name'])}: {model['parameters'] / 1e6:,.1f} M parameters, {dtype}, "
            f"adapter of rank {settings['rank']}",
            f"{settings['prompts']} x {settings['group']} {rows.format(settings['max_tokens'])}; "
            f"medians of {settings['repeats']}; peaks are above the weights",
            "a ratio is the median of those of neighbouring passes",
        ]
    for part, draw in (("rollout", _rollout), ("step", _step), ("sft", _sft), ("journal", _journal), ("app", _app)):
        if part in found:
            shown += ["", *draw(found[part], dtype), _load(found[part]["load"])]
    return shown


def _rollout(found: Found, _: str) -> list[str]:
    sides = found["sides"]
    parts = list(sides["ours"])
    rows = [["", *parts, "peak"]]
    named = {
        "ours": "ours, tokens/s",
        "apart": "ours, a copy of the prompt for each row",
        "bare": "bare loop",
        "bare_adapter": "bare loop, adapter on",
    }
    ends = {"apart": ", a copy for each", "bare": "", "bare_adapter": ", adapter on"}
    for side, figures in sides.items():
        speeds = [number(figures[part]["tokens_per_second"]) for part in parts]
        rows.append([named[side], *speeds, size(figures["whole"]["peak_bytes_above_weights"])])
    for bare, ratios in found.get("speed", {}).items():
        rows.append([f"ours / {'apart' if bare == 'apart' else named[bare]}", *(_percent(ratios[part]) for part in parts), ""])
    for bare, ratios in found.get("cpu_speed", {}).items():
        rows.append([f"  by CPU time{ends[bare]}", *(_percent(ratios[part]) for part in parts), ""])
    head = f"rollout  {found['rows']} rows of {found['prompt_tokens']} prompt tokens"
    return [head, *table(rows, right=range(1, len(rows[0])))]


def _step(found: Found, dtype: str) -> list[str]:
    ours, bare = found["ours"], found.get("bare", {})
    rows = [["", "ours", "bare loop", "ours / bare", "by CPU time", "peak, ours", "bare"]]
    for phase in ours:
        times = [_ratio(found.get(key, {}).get(phase)) for key in ("time", "cpu_time")]
        rows.append([phase, _seconds(ours[phase]), _seconds(bare.get(phase)), *times, _peak(ours[phase]), _peak(bare.get(phase))])
    updates = "1 update" if found["updates"] == 1 else f"{found['updates']} updates"
    head = f"step  {found['rows']} rows, {found['prompt_tokens']} prompt tokens, {updates} in micro-batches of "
    shown = [f"{head}{found['micro_batch_rows']} rows", *table(rows, right=range(1, 7)), *_gradient(found, dtype)]
    beta = found.get("beta")
    if beta is not None and "refused" in beta:
        shown.append(f"beta: refused by the method: {beta['refused']}")
    elif beta is not None:
        off, on = (size(figures["whole"]["peak_bytes_above_weights"]) for figures in (beta["0"], beta["0.04"]))
        longer = f"{_ratio(beta['time'])} times as long, {_ratio(beta['cpu_time'])} by CPU time"
        shown.append(f"beta 0.04 against 0: score and update {longer}; peak {on} against {off}")
    if "lengths" in found:
        shown += ["", *_lengths(found["lengths"], found["lengths_spread"])]
    return shown


def _lengths(found: list[Found], spread: Found) -> list[str]:
    head = ["tokens", "rows at once", "rollout", "update", "whole", "attention", "apart", "/computed", "by CPU", "peak"]
    rows = [
        [
            str(row["max_tokens"]),
            _cut(row["micro_batches"]),
            *(number(row["milliseconds_per_token"][name]) for name in ("rollout", "update", "whole", "attention")),
            number(row["milliseconds_per_token"]["update_apart"]),
            number(row["milliseconds_per_computed_token"]["update_apart"]),
            number(row["cpu_milliseconds_per_computed_token"]["update_apart"]),
            size(row["peak_bytes_above_weights"]["whole"]),
        ]
        for row in found
    ]
    most = {key: _ratio(value) for key, value in spread.items()}
    return [
        "milliseconds per completion token; attention: the update's, timed alone; apart: the update without it, then per token",
        "computed (a prompt counts once in each micro-batch), on the clock and by CPU time",
        *table([head, *rows], right=range(10)),
        f"apart from attention, most over least: {most['milliseconds_per_token']} per completion token, "
        f"{most['milliseconds_per_computed_token']} per computed token",
        f"by CPU time: {most['cpu_milliseconds_per_token']} and {most['cpu_milliseconds_per_computed_token']}",
    ]


def _cut(rows: Sequence[int]) -> str:
    """Micro-batches by their rows: 2 x 11+10."""
    return "+".join(f"{times} x {each}" if times > 1 else str(each) for each, times in Counter(rows).items())


def _sft(found: Found, dtype: str) -> list[str]:
    rows = [["", "ours", "bare loop", "ours / bare", "by CPU time", "peak, ours", "bare"]]
    ours, bare = found["ours"], found.get("bare")
    ratios = [_ratio(found.get("time")), _ratio(found.get("cpu_time"))]
    rows.append(["update", _seconds(ours), _seconds(bare), *ratios, _peak(ours), _peak(bare)])
    head = f"sft  {found['rows']} rows of {found['prompt_tokens']} prompt + {found['target_tokens']} target tokens"
    return [head, *table(rows, right=range(1, 7)), *_gradient(found, dtype)]


def _gradient(found: Found, dtype: str) -> list[str]:
    apart = found.get("gradient_difference")
    if apart is None:
        return []
    text = f"the gradients differ by {apart:.1e} of their norm"
    if dtype != "float32":
        return [f"{text} ({dtype})"]
    return [f"{'✓' if apart <= SAME_GRADIENT else '✕'} {text} (≤ {SAME_GRADIENT:g})"]


def _journal(found: Found, _: str) -> list[str]:
    parts = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in found["parts_cpu_seconds"].items())
    counts = f"{found['steps']} steps of the demo, {found['evaluations']} evaluations, {found['checkpoints']} checkpoints"
    return [
        f"journal  {counts}, {size(found['written_bytes'])} kept",
        f"the record takes {_percent(found['share_of_cpu'])} of {found['cpu_seconds']:.1f} s of CPU time, "
        f"{_percent(found['share_of_wall'])} of the time on the clock",
        f"CPU time: {parts}",
    ]


def _app(found: Found, _: str) -> list[str]:
    steps, pairs = found["step_seconds"], found["slowdown_by_pair"]
    apart = f"; between neighbouring windows {_ratio(min(pairs))} to {_ratio(max(pairs))}" if len(pairs) > 1 else ""
    return [
        f"app  {found['windows']} windows of {found['window_seconds']:g} s with it and as many without",
        f"the app takes {_percent(found['share_of_one_core'])} of one core (at most {_percent(found['share_most'])}), "
        f"and {found['start_cpu_seconds']:.1f} s of CPU time to start",
        f"a step takes {steps['with']:.3f} s with it, {steps['without']:.3f} s without: {_ratio(found['slowdown'])} times{apart}",
    ]


def _load(found: Found) -> str:
    known = {name: value for name, value in found.items() if name != "idle"}
    load = Load(**known)
    return f"{'' if load.idle else '⚠ '}{machine_load.sentence(load)}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _seconds(figures: Found | None) -> str:
    return "–" if figures is None else f"{figures['seconds']:.3g} s"


def _peak(figures: Found | None) -> str:
    return "–" if figures is None else size(figures["peak_bytes_above_weights"])
