"""The peak of each phase of a run: at which moment it is reached, and the parts that add up to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.memory import Fit, Plan
from engine.memory_moments import Moment

Phase = Literal["rollout", "score", "update"]


@dataclass(frozen=True, slots=True)
class Peak:
    """Of one phase. The parts add up to `peak_bytes`."""

    phase: Phase
    peak_bytes: int
    moment: str  # such as: as the backward pass begins
    parts: tuple[tuple[str, int], ...]  # by name, in bytes; what is held is the first


def peaks(plan: Plan, fit: Fit) -> tuple[Peak, ...]:
    """Of the phases that the method has, the highest first."""
    rows = fit.micro_batch_rows
    found = [_peak("update", plan.held, plan.update_moments(rows, fit.recomputes))]
    if plan.scores:
        found.append(_peak("score", plan.held, plan.score_moments(rows)))
    if fit.rollout_peak is not None:
        found.append(_peak("rollout", plan.held, _rollout(plan, fit.decode_rows, fit.rollout_peak - plan.held)))
    return tuple(sorted(found, key=lambda each: each.peak_bytes, reverse=True))


def _peak(phase: Phase, held: int, moments: Sequence[Moment]) -> Peak:
    """The largest of the moments, parts of 0 left out."""
    most = max(moments, key=lambda moment: moment.bytes)
    parts = (("held throughout", held), *((name, size) for name, size in most.parts if size))
    return Peak(phase, held + most.bytes, most.name, parts)


def _rollout(plan: Plan, rows: int | None, most: int) -> list[Moment]:
    """Of the rollout and the evaluation, the last tokens; where they take less than `most`, it is the prompts that take that."""
    moments = []
    for place, (prompts, group) in enumerate(plan.decoded):
        name = "at the last tokens of the evaluation" if place else "at the last tokens"
        logits = plan.draw_logits(min(prompts * group, rows or prompts * group))
        moments.append(Moment(name, (("kv cache", plan.cache(prompts, group, rows)), ("logits", logits))))
    if all(moment.bytes < most for moment in moments):
        moments.append(Moment("as the prompts are read", (("prompts under way", most),)))
    return moments or [Moment("at the last tokens", ())]
