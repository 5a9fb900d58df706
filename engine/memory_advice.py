"""What to change in a config that does not fit into memory, and how far it could go: the plan asked again, nothing read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from engine import optim_rules
from engine.errors import InputError
from engine.memory import Plan
from engine.memory_batches import most

QUANTISED_BITS = 4
MOST_COMPLETIONS = 1024  # of a group, that are looked for
MOST_TOKENS = 1 << 16  # of a completion
LEAST_PROMPT_TOKENS = 16  # hardly a prompt is shorter with its template
SMALLER_STATE = ("lion", "adafactor", "sgd")

Bound = Literal["memory", "positions", "step", "search"]


@dataclass(frozen=True, slots=True)
class Change:
    """One key of the config, the value that makes the run fit, what that costs, and the peak that is then predicted."""

    key: str
    value: Any
    cost: str
    peak: int


@dataclass(frozen=True, slots=True)
class Several:
    """Values of several keys that make the run fit together; where `fits` is False, the smallest run that was found."""

    values: tuple[tuple[str, Any], ...]
    peak: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Largest:
    """The most of each that fits, everything else as it is (what is `auto` or null is chosen anew); None: not even the least."""

    micro_batch_rows: int | None
    group_size: int | None
    max_completion_tokens: int | None
    # what keeps each from being more: the memory, the model's positions, the rows of the step, or that nothing larger was tried
    bounds: dict[str, Bound]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A key that makes a run smaller, from the value that is nearest to its own to the one that takes least."""

    section: str
    field: str
    cost: str
    values: Sequence[Any]

    @property
    def key(self) -> str:
        return f"{self.section}.{self.field}"


def keys_tried(plan: Plan, limit: int) -> tuple[str, ...]:
    """The keys that `cheapest_change` tries, in its order."""
    return tuple(dict.fromkeys(choice.key for choice in _choices(plan, limit)))


def cheapest_change(plan: Plan, limit: int) -> Change | None:
    """The single change that makes a run fit into `limit` bytes at the least loss; None where it fits, or where none does.

    In this order: what costs nothing or time alone; what makes the model coarser or the adapter smaller; what changes the task.
    """
    if plan.fit(limit).fits:
        return None
    for choice in _choices(plan, limit):
        found = _nearest(choice.values, partial(_peak, plan, choice, limit))
        if found is not None:
            return Change(choice.key, found[0], choice.cost, found[1])
    return None


def several_changes(plan: Plan, limit: int) -> Several:
    """The keys of `cheapest_change` together, in its order: each as far as it goes until the run fits, then each back as far as
    may be, the dearest first."""
    made: dict[str, _Choice] = {}
    values: dict[str, Any] = {}
    for choice in (each for _ in range(2) for each in _choices(_with(plan, values), limit)):  # full training has no rank at first
        further = {**values, choice.key: choice.values[-1]}
        try:
            fits = _with(plan, further).fit(limit).fits
        except InputError:
            continue
        made[choice.key], values = choice, further
        if fits:
            break
    smallest = _with(plan, values).fit(limit)
    if not smallest.fits:
        return Several(tuple(values.items()), smallest.peak, False)
    for key in reversed(list(values)):
        others = {name: value for name, value in values.items() if name != key}
        if _with(plan, others).fit(limit).fits:
            values = others
            continue
        found = _nearest(made[key].values, partial(_peak, _with(plan, others), made[key], limit))
        values[key] = values[key] if found is None else found[0]
    return Several(tuple(values.items()), _with(plan, values).fit(limit).peak, True)


def largest(plan: Plan, limit: int) -> Largest:
    """How far the run's sizes can go within `limit` bytes, each alone."""
    chosen = plan.fit(limit)
    rows = plan.rows_within(limit, chosen.recomputes)
    fits_one = max(plan.update_peak(rows, chosen.recomputes), plan.score_peak(rows) or 0) <= limit
    room = MOST_TOKENS if plan.positions is None else max(1, plan.positions - plan.config.sampling.max_prompt_tokens)
    tokens = _furthest(plan, "max_completion_tokens", 1, min(room, MOST_TOKENS), limit)
    group = None if plan.is_supervised else _furthest(plan, "group_size", 2, MOST_COMPLETIONS, limit)
    bounds: dict[str, Bound] = {
        "micro_batch_rows": "step" if rows == plan.update_rows else "memory",
        "group_size": "search" if group == MOST_COMPLETIONS else "memory",
        "max_completion_tokens": "search" if tokens == MOST_TOKENS else "positions" if tokens == room else "memory",
    }
    return Largest(rows if fits_one else None, group, tokens, bounds)


def _choices(plan: Plan, limit: int) -> Iterator[_Choice]:
    config = plan.config
    optim, adapter, sampling = config.optim, config.adapter, config.sampling

    def below(section: str, field: str, cost: str, now: int, least: int = 1) -> Iterator[_Choice]:
        if now > least:
            yield _Choice(section, field, cost, range(now - 1, least - 1, -1))

    if optim.micro_batch_rows not in (None, 1):
        if optim.grad_checkpoint is not True:  # without computing layers again, where that is enough
            yield _Choice("optim", "micro_batch_rows", "nothing but a little time", [plan.rows_within(limit, False)])
        yield from below("optim", "micro_batch_rows", "more micro-batches", optim.micro_batch_rows or 1)
    if optim.grad_checkpoint is False:
        yield _Choice("optim", "grad_checkpoint", "about a third more time for the updates", [True])
    if not plan.is_supervised:
        yield from below("run", "eval_rows", "evaluations are noisier", config.run.eval_rows)
    if not plan.is_full and not any(module.quantised for module in plan.modules):
        yield _Choice(
            "quantize", "bits", "the base model becomes coarser, and is computed more slowly on a CPU", [QUANTISED_BITS]
        )
    states = {
        name: optim_rules.state_numbers(name, plan.trainable_shapes)
        for name in SMALLER_STATE
        if optim_rules.refusal(optim.model_copy(update={"name": name})) is None
    }
    now = optim_rules.state_numbers(optim.name, plan.trainable_shapes)
    smaller = sorted((name for name, count in states.items() if count < now), key=lambda name: -states[name])
    if smaller:
        yield _Choice("optim", "name", "another optimizer, whose learning rate has to be found", smaller)
    if not plan.is_full:
        yield from below("adapter", "rank", "the adapter can learn less", adapter.rank)
        yield from below(
            "adapter", "layers", "only the last layers are trained", adapter.layers if adapter.layers > 0 else plan.layers
        )
    minibatches = 1 if plan.objective is None else plan.objective.minibatches
    yield from below("sampling", "prompts_per_step", "noisier gradients", sampling.prompts_per_step, minibatches)
    if plan.objective is not None:
        least = 1 if plan.objective.advantage == "global" else 2
        yield from below("sampling", "group_size", "noisier advantages", sampling.group_size, least)
    yield from below("sampling", "max_completion_tokens", "longer completions are cut", sampling.max_completion_tokens)
    length = sampling.max_prompt_tokens
    yield from below("sampling", "max_prompt_tokens", "rows with longer prompts are left out", length, LEAST_PROMPT_TOKENS)
    if plan.is_full:
        yield _Choice("adapter", "type", "a low-rank adapter is trained, not every weight", ["lora"])


def _with(plan: Plan, values: dict[str, Any]) -> Plan:
    """The plan with these keys changed. Raises InputError."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, field = key.split(".")
        sections.setdefault(section, {})[field] = value
    return plan.changed(**sections) if sections else plan


def _peak(plan: Plan, choice: _Choice, limit: int, value: Any) -> int | None:
    """The predicted peak with that value; None where it does not fit, or cannot be."""
    try:
        found = plan.changed(**{choice.section: {choice.field: value}}).fit(limit)
    except InputError:
        return None
    return found.peak if found.fits else None


def _nearest(values: Sequence[Any], peak: Callable[[Any], int | None]) -> tuple[Any, int] | None:
    """The first of the values that fits, and its peak; where one does, those behind it do."""
    if not values or peak(values[-1]) is None:
        return None
    last = len(values) - 1
    place = last - most(last + 1, lambda number: peak(values[last - number + 1]) is not None) + 1
    found = peak(values[place])
    return None if found is None else (values[place], found)


def _furthest(plan: Plan, field: str, least: int, highest: int, limit: int) -> int | None:
    def fits(value: int) -> bool:
        return plan.changed(sampling={field: value}).fit(limit).fits

    return most(highest - least + 1, lambda number: fits(least + number - 1)) + least - 1 if fits(least) else None
