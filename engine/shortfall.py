"""Whether a run's memory goes beyond its limit, as it is said when the run starts: a warning, since the plan may err."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hardware
from engine.config import RunConfig
from engine.estimate_words import to_fit
from engine.figures import size
from engine.hardware import Hardware
from engine.memory import Plan
from engine.memory_advice import cheapest_change, keys_tried, several_changes
from engine.memory_peaks import peaks
from engine.models.sources import fixed
from engine.splitting import limit_bytes


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What a run needs, what it may use, in bytes; in words, and what makes it fit."""

    need_bytes: int
    limit_bytes: int
    message: str
    remedy: str


def shortfall(config: RunConfig, known: Hardware | None = None) -> Shortfall | None:
    """None where the run fits on this machine (or on `known`). Raises InputError where the model cannot be read."""
    known = known or hardware.facts()
    plan = Plan(config.model_copy(update={"model": fixed(config.model)}), known.backend)
    limit = limit_bytes(config, known)
    fit = plan.fit(limit)
    if fit.fits:
        return None
    highest, change = peaks(plan, fit)[0], cheapest_change(plan, limit)
    several = several_changes(plan, limit) if change is None else None
    message = f"this run needs {size(fit.peak)} in the {highest.phase} and may use {size(limit)}: it starts all the same"
    remedy = f"to fit: {to_fit(change, keys_tried(plan, limit), several)}"
    return Shortfall(fit.peak, limit, message, remedy)
