"""What `sparse_indicators` say of a chain's steps: which of them decide. Rewards and supervised training weigh steps by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DECISIVE_WEIGHT = 3.0  # of a step whose mark is 1; a step whose mark is 0 weighs 1

_REMEDY = "write one number from 0 to 1, or true or false, for each step, or texts that the decisive steps contain"


class MarkError(ValueError):
    """The marks do not fit the steps: `kind` and `field` say what is wrong where, `reason` and `remedy` are for a person."""

    def __init__(self, kind: str, field: str, reason: str, steps: int) -> None:
        super().__init__(f"sparse_indicators does not fit {steps} steps: {reason}; {_REMEDY}")
        self.kind = kind
        self.field = field
        self.reason = reason
        self.remedy = _REMEDY


def step_marks(steps: Sequence[str], indicators: Any) -> list[float]:
    """Each step's mark, 0 to 1: a number for each step (true and false do as well), or 1 where a step contains one of the texts,
    in capitals or not. All 0 without indicators. MarkError for anything else, and for texts that no step contains."""
    if indicators is None:
        return [0.0] * len(steps)
    if isinstance(indicators, str):
        indicators = [indicators]
    if not isinstance(indicators, Sequence):
        found = "an object" if isinstance(indicators, Mapping) else f"{indicators!r:.40}"
        raise MarkError("wrong-type", "sparse_indicators", f"'sparse_indicators' is {found}", len(steps))
    if indicators and all(isinstance(mark, str) for mark in indicators):
        wanted = [mark.casefold() for mark in indicators if mark.strip()]
        marks = [float(any(text in step.casefold() for text in wanted)) for step in steps]
        if not any(marks):
            reason = f"no step contains {' or '.join(indicators)!r:.60}"
            raise MarkError("marks-nothing", "sparse_indicators", reason, len(steps))
        return marks
    if len(indicators) != len(steps):
        reason = f"{len(indicators)} marks for {len(steps)} steps"
        raise MarkError("wrong-length", "sparse_indicators", reason, len(steps))
    for place, mark in enumerate(indicators):
        if not isinstance(mark, int | float) or not 0 <= mark <= 1:
            reason = f"{mark!r:.40} is no weight from 0 to 1"
            raise MarkError("wrong-type", f"sparse_indicators[{place}]", reason, len(steps))
    return [float(mark) for mark in indicators]


def mark_weight(mark: float, decisive_weight: float = DECISIVE_WEIGHT) -> float:
    """What a step of this mark weighs, 1 to `decisive_weight`; every other thing weighs 1."""
    return 1 + (decisive_weight - 1) * mark
