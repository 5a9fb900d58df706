"""What the command line and the app both say of an estimate, in the same words. No line breaks, nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.estimate import Estimate
from engine.figures import counted, size
from engine.memory_advice import Bound, Change, Several

_UNTIL: Mapping[Bound, str] = {
    "memory": "by memory",
    "positions": "by the model's positions",
    "step": "all of the step",
    "search": "or more: the search ends there",
}


def held(found: Estimate) -> tuple[str, int, tuple[tuple[str, int], ...]]:
    """What is held throughout: a heading, its bytes, and its parts."""
    parts = (
        ("weights", found.weights_bytes),
        ("adapter", found.adapter_bytes),
        ("optimizer", found.optimizer_bytes),
        ("reference", found.reference_bytes),
    )
    return "held throughout", found.held_bytes, tuple((name, count) for name, count in parts if count)


def peak(found: Estimate) -> str:
    """The peak beside the limit, and where it is reached."""
    return f"peak {size(found.peak_bytes)} of {size(found.limit_bytes)} allowed, in the {found.binding_phase}"


def cut(found: Estimate) -> list[tuple[str, str]]:
    """Labels and texts: how the work is cut so that it fits, and what has to be fetched; where there is any of it."""
    said = []
    if found.decode_rows is not None:
        said.append(("decodes", f"{counted(found.decode_rows, 'row')} at once, the others wait"))
    if found.recomputes:
        said.append(("computes", "each layer again in the backward pass: updates take a third longer"))
    if found.fetch_bytes:
        said.append(("fetches", f"{size(found.fetch_bytes)} of weights, when the run starts"))
    return said


def to_fit(change: Change | None, tried: tuple[str, ...], several: Several | None) -> str:
    """What makes a run fit that does not."""
    if change is not None:
        return f"set {change.key} to {_value(change.value)}: peak {size(change.peak)}; {change.cost}"
    if several is None:
        return "a smaller or a quantised model, or more memory"
    values = ", ".join(f"{key} {_value(value)}" for key, value in several.values)
    if several.fits:
        return f"no single change is enough; together {values}: peak {size(several.peak)} (tried alone: {', '.join(tried)})"
    with_all = f", even with {values}" if values else ""
    return f"nothing that was tried is enough: the peak is {size(several.peak)}{with_all}; take a smaller model, or more memory"


def room(found: Estimate) -> str:
    """How far sizes could go in a run that fits, and what keeps each from more; "" where that is not known."""
    if found.largest is None or not found.fits:
        return ""
    most = (
        ("micro-batches", "micro_batch_rows", found.largest.micro_batch_rows, "row"),
        ("groups", "group_size", found.largest.group_size, "completion"),
        ("completions", "max_completion_tokens", found.largest.max_completion_tokens, "token"),
    )
    parts = [
        f"{name} of {counted(count, thing)} ({_UNTIL[found.largest.bounds[field]]})"
        for name, field, count, thing in most
        if count is not None
    ]
    return f"{', '.join(parts)}: each alone" if parts else ""


def _value(value: Any) -> str:
    """As it stands in a config."""
    return str(value).lower() if isinstance(value, bool) else str(value)
