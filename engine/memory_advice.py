"""What to change in a config that does not fit into memory, and how far it could go: the plan asked again, nothing read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine.errors import InputError
from engine.memory import Plan
from engine.memory_batches import most

QUANTISED_BITS = 4
MOST_COMPLETIONS = 1024  # of a group, that are looked for
MOST_TOKENS = 1 << 16  # of a completion


@dataclass(frozen=True, slots=True)
class Change:
    """One key of the config, the value that makes the run fit, what that costs, and the peak that is then predicted."""

    key: str
    value: Any
    cost: str
    peak: int


@dataclass(frozen=True, slots=True)
class Largest:
    """The most of each that fits, everything else as it is (what is `auto` or null is chosen anew); None: not even the least."""

    micro_batch_rows: int | None
    group_size: int | None
    max_completion_tokens: int | None


def cheapest_change(plan: Plan, limit: int) -> Change | None:
    """The single change that makes a run fit into `limit` bytes at the least loss; None where it fits, or where none does.

    In this order: what costs nothing or time alone; what makes the model coarser or the adapter smaller; what changes the task.
    """
    if plan.fit(limit).fits:
        return None
    for section, field, cost, values in _changes(plan, limit):
        found = _nearest(values, partial(_peak, plan, section, field, limit))
        if found is not None:
            return Change(f"{section}.{field}", found[0], cost, found[1])
    return None


def largest(plan: Plan, limit: int) -> Largest:
    """How far the run's sizes can go within `limit` bytes, each alone."""
    chosen = plan.fit(limit)
    rows = plan.rows_within(limit, chosen.recomputes)
    fits_one = plan.update_peak(1, chosen.recomputes) <= limit
    most_tokens = MOST_TOKENS if plan.positions is None else max(1, plan.positions - plan.config.sampling.max_prompt_tokens)
    return Largest(
        micro_batch_rows=rows if fits_one else None,
        group_size=None if plan.is_supervised else _furthest(plan, "sampling", "group_size", 2, MOST_COMPLETIONS, limit),
        max_completion_tokens=_furthest(plan, "sampling", "max_completion_tokens", 1, most_tokens, limit),
    )


Changes = Iterator[tuple[str, str, str, range | list[Any]]]  # section, field, what it costs, values from the nearest on


def _changes(plan: Plan, limit: int) -> Changes:
    optim, adapter, sampling = plan.config.optim, plan.config.adapter, plan.config.sampling
    if optim.micro_batch_rows not in (None, 1):
        if optim.grad_checkpoint is not True:  # without computing layers again, where that is enough
            yield "optim", "micro_batch_rows", "nothing but a little time", [plan.rows_within(limit, False)]
        yield "optim", "micro_batch_rows", "more micro-batches", range(optim.micro_batch_rows - 1, 0, -1)
    if optim.grad_checkpoint is False:
        yield "optim", "grad_checkpoint", "about a third more time for the updates", [True]
    if not plan.is_full and not any(module.quantised for module in plan.modules):
        yield "quantize", "bits", "the base model becomes coarser, and is computed more slowly on a CPU", [QUANTISED_BITS]
    if not plan.is_full and plan.layers > 1:
        now = adapter.layers if adapter.layers > 0 else plan.layers
        yield "adapter", "layers", "only the last layers are trained", range(now - 1, 0, -1)
    if not plan.is_supervised:
        yield "sampling", "group_size", "noisier advantages", range(sampling.group_size - 1, 1, -1)
    yield "sampling", "max_completion_tokens", "longer completions are cut", range(sampling.max_completion_tokens - 1, 0, -1)
    if plan.is_full:
        yield "adapter", "type", "a low-rank adapter is trained, not every weight", ["lora"]


def _peak(plan: Plan, section: str, field: str, limit: int, value: Any) -> int | None:
    """The predicted peak with that value; None where it does not fit, or cannot be."""
    try:
        found = plan.changed(**{section: {field: value}}).fit(limit)
    except InputError:
        return None
    return found.peak if found.fits else None


def _nearest(values: range | list[Any], peak: Callable[[Any], int | None]) -> tuple[Any, int] | None:
    """The first of the values that fits, and its peak; where one does, those behind it do."""
    if not values or peak(values[-1]) is None:
        return None
    last = len(values) - 1
    place = last - most(last + 1, lambda number: peak(values[last - number + 1]) is not None) + 1
    found = peak(values[place])
    return None if found is None else (values[place], found)


def _furthest(plan: Plan, section: str, field: str, least: int, highest: int, limit: int) -> int | None:
    def fits(value: int) -> bool:
        return _peak(plan, section, field, limit, value) is not None

    return most(highest - least + 1, lambda number: fits(least + number - 1)) + least - 1 if fits(least) else None
