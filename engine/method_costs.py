"""What each method would cost in place of a run's own: seconds of a step and peak memory, as multiples of supervised training.

Every method gets the run's model, adapter, token limits and as many completions a step, and its own row of options; the run's
own method is taken as it is configured. Supervised training learns as many rows a step as the others have completions. Rewards
take no part, and what measured steps of the model correct is corrected in every row alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from engine import corrections, hardware
from engine.config import ObjectiveConfig, RunConfig
from engine.estimate import seconds_of
from engine.hardware import Hardware
from engine.machine_rates import Correction, Rates
from engine.memory import Plan
from engine.methods import METHODS, Method
from engine.models.sources import fixed
from engine.splitting import limit_bytes


@dataclass(frozen=True, slots=True)
class MethodCost:
    """One method in place of the run's own. Multiples are of supervised training's."""

    method: str
    own: bool  # the run's own method, as it is configured
    seconds: float | None  # of a step, all completions at their limit, none dropped; None: the machine's rates are not known
    seconds_most: float | None  # with every rollout that dynamic sampling may add
    phases: dict[str, float]  # without rewards
    peak_bytes: int
    micro_batch_rows: int
    updates: int  # of a step
    fits: bool
    time: float | None = None
    memory: float = 1.0
    note: str = ""
    corrected_by: Mapping[str, Correction] = field(default_factory=dict)  # the same for all rows that have the phase

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def method_costs(config: RunConfig, rates: Rates | None, known: Hardware | None = None) -> tuple[MethodCost, ...]:
    """A row for each method, supervised training first. Raises InputError where the model cannot be read."""
    known = known or hardware.facts()
    config = config.model_copy(update={"model": fixed(config.model)})
    rows = [_row(config, row, rates, known) for row in METHODS.values()]
    base = next(row for row in rows if row.method == "sft")
    return tuple(_against(row, base) for row in rows)


def _row(config: RunConfig, row: Method, rates: Rates | None, known: Hardware) -> MethodCost:
    changed, note = _in_place(config, row)
    plan = Plan(changed, known.backend)
    fit = plan.fit(limit_bytes(changed, known))
    time = None if rates is None else seconds_of(plan, rates, fit, corrections.alike(plan, rates))
    objective = None if row.objective is None else changed.resolved_objective()
    refills = 0 if objective is None else objective.dynamic_sampling
    return MethodCost(
        method=row.id,
        own=row.id == config.method,
        seconds=None if time is None else time.step,
        seconds_most=None if time is None else time.step + refills * time.refill,
        phases={} if time is None else dict(time.phases),
        peak_bytes=fit.peak,
        micro_batch_rows=min(fit.micro_batch_rows, plan.update_rows),
        updates=1 if objective is None else objective.updates,
        fits=fit.fits,
        note=note,
        corrected_by={} if time is None else time.corrected_by,
    )


def _in_place(config: RunConfig, row: Method) -> tuple[RunConfig, str]:
    """The config with the method in place of its own, and what had to be changed for it."""
    if row.id == config.method:
        return config, ""
    sampling = config.sampling
    is_supervised = METHODS[config.method].objective is None
    rows = sampling.prompts_per_step if is_supervised else sampling.prompts_per_step * sampling.group_size
    if row.objective is None:
        sampling = sampling.model_copy(update={"prompts_per_step": rows})
        return config.model_copy(update={"method": row.id, "objective": ObjectiveConfig(), "sampling": sampling}), ""
    prompts = max(1, rows // sampling.group_size)
    sampling = sampling.model_copy(update={"prompts_per_step": prompts})
    parts = min(row.objective.minibatches, prompts)
    objective = ObjectiveConfig() if parts == row.objective.minibatches else ObjectiveConfig(minibatches=parts)
    note = (
        ""
        if parts == row.objective.minibatches
        else f"{parts} mini-batches, not {row.objective.minibatches}: one for each prompt"
    )
    return config.model_copy(update={"method": row.id, "objective": objective, "sampling": sampling}), note


def _against(row: MethodCost, base: MethodCost) -> MethodCost:
    time = None if row.seconds is None or not base.seconds else row.seconds / base.seconds
    return replace(row, time=time, memory=row.peak_bytes / base.peak_bytes)
