"""How much memory and time a run needs, before anything is loaded, and whether this machine has the memory.

The arithmetic: engine/memory.py and engine/timing.py. Time needs the rates of this machine, measured once; without them it is
not known, and the estimate says how to get them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine import corrections, hardware
from engine.config import RunConfig
from engine.figures import about, duration, size
from engine.hardware import Hardware
from engine.machine_rates import BUSY_CORES, Correction, Rates
from engine.memory import FLOAT32, MEASURED_FAMILIES, Fit, Plan
from engine.memory_advice import Change, Largest, Several, cheapest_change, keys_tried, largest, several_changes
from engine.memory_peaks import Peak, Phase, peaks
from engine.models.sources import fetched_bytes, fixed, model_folder
from engine.splitting import cache_bytes, limit_bytes
from engine.time_plan import TimePlan
from engine.timing import time_plan

MEASURE = "droid-tune estimate CONFIG"


@dataclass(frozen=True)
class Estimate:
    """A run's memory in bytes, part by part, and its time. The phases' peaks include what is held throughout: it and a phase's
    parts add up to its peak. `seconds` are those of the whole run with every completion at its limit; None where they are not
    known, and `seconds_reason` says why."""

    fits: bool
    binding_phase: Phase
    peak_bytes: int
    limit_bytes: int
    phases: tuple[Peak, ...]  # that the method has, the highest first
    weights_bytes: int  # held throughout, as are the next three
    adapter_bytes: int
    optimizer_bytes: int
    reference_bytes: int
    trainable_parameters: int
    micro_batch_rows: int
    backend: str
    dtype: str  # of the activations
    seconds: float | None
    seconds_reason: str  # or, where they are known, what they are made of
    assumptions: tuple[str, ...]
    fetch_bytes: int = 0  # weights that are not on this machine: the run fetches them first
    time: TimePlan | None = None
    decode_rows: int | None = None  # of a rollout at once; None: all
    recomputes: bool = False  # the backward pass computes each layer again
    change: Change | None = None  # where it does not fit: the single change at the least loss that makes it fit, if there is one
    tried: tuple[str, ...] = ()  # the keys none of which makes it fit alone
    several: Several | None = None  # then: the keys that do together, or the smallest run that was found
    largest: Largest | None = None  # how far sizes can go, each alone; None where the model's sizes are not known

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for `--json`."""
        phases = [{**asdict(each), "parts": dict(each.parts)} for each in self.phases]
        several = None if self.several is None else {**asdict(self.several), "values": dict(self.several.values)}
        time = None if self.time is None else self.time.as_dict()
        return {**asdict(self), "held_bytes": self.held_bytes, "phases": phases, "several": several, "time": time}

    @property
    def held_bytes(self) -> int:
        """What is held throughout."""
        return self.weights_bytes + self.adapter_bytes + self.optimizer_bytes + self.reference_bytes

    @property
    def knows_sizes(self) -> bool:
        """Whether config.json names the family's sizes: without them only what is held is counted."""
        return self.largest is not None


def estimate(config: RunConfig, known: Hardware | None = None, rates: Rates | None = None) -> Estimate:
    """The memory plan of the run on this machine (or on `known`), and with the machine's `rates` its time. Raises InputError
    where the model cannot be read."""
    known = known or hardware.facts()
    config = config.model_copy(update={"model": fixed(config.model)})
    plan = Plan(config, known.backend)
    limit = limit_bytes(config, known)
    fit = plan.fit(limit)
    phases, change = peaks(plan, fit), cheapest_change(plan, limit)
    is_helpless = change is None and not fit.fits
    time = None if rates is None else seconds_of(plan, rates, fit)
    return Estimate(
        fits=fit.fits,
        binding_phase=phases[0].phase,
        peak_bytes=fit.peak,
        limit_bytes=limit,
        phases=phases,
        weights_bytes=plan.weights,
        adapter_bytes=plan.adapter,
        optimizer_bytes=plan.optimizer,
        reference_bytes=plan.reference,
        trainable_parameters=plan.trainable,
        micro_batch_rows=min(fit.micro_batch_rows, plan.update_rows),
        backend=known.backend,
        dtype="float32" if plan.item == FLOAT32 else "16-bit",
        seconds=None if time is None else time.run,
        seconds_reason=_reason(rates, time),
        assumptions=(*_assumptions(plan, fit), *(() if time is None or rates is None else _of_time(plan, time, rates))),
        fetch_bytes=fetched_bytes(model_folder(config.model)),
        time=time,
        decode_rows=fit.decode_rows,
        recomputes=fit.recomputes,
        change=change,
        tried=keys_tried(plan, limit) if is_helpless else (),
        several=several_changes(plan, limit) if is_helpless else None,
        largest=None if plan.shape is None else largest(plan, limit),
    )


def time_of(config: RunConfig, rates: Rates, known: Hardware | None = None) -> TimePlan | None:
    """The run's time alone, on this machine; None where config.json does not name the family's sizes. Raises InputError."""
    known = known or hardware.facts()
    config = config.model_copy(update={"model": fixed(config.model)})
    plan = Plan(config, known.backend)
    return seconds_of(plan, rates, plan.fit(limit_bytes(config, known)))


def seconds_of(plan: Plan, rates: Rates, fit: Fit, found: Mapping[str, Correction] | None = None) -> TimePlan | None:
    """The plan's time by the machine's rates, and by what measured steps of its model and of its rewards have corrected, or by
    what is `found`."""
    found = corrections.known(plan, rates) if found is None else found
    rows = fit.micro_batch_rows
    return time_plan(plan, rates, rows, corrections=found, decode_rows=fit.decode_rows, recomputes=fit.recomputes)


def _reason(rates: Rates | None, time: TimePlan | None) -> str:
    if rates is None:
        return f"unknown: this machine's speed was not measured yet; `{MEASURE}` does it once"
    if time is None:
        return "config.json does not name this family's sizes; the run measures time itself, from its first step on"
    most = f", corrected by {', '.join(time.sources)}" if time.sources else ", not yet corrected by a measured step"
    return f"{about(duration(time.run))}: {short(time.step)} a step, the {time.longest} takes longest{most}"


def short(seconds: float) -> str:
    """Seconds of a step, with tenths where they matter."""
    if seconds < 0.001:
        return "under 1 ms" if seconds else "0s"
    if seconds < 0.01:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.2g}s" if seconds < 10 else duration(seconds)


def _of_time(plan: Plan, time: TimePlan, rates: Rates) -> list[str]:
    """What the seconds take for granted."""
    said = ["time: loading the model and starting are not counted; nothing else runs on this machine"]
    if time.phases.get("reward") == 0:
        said.append("time: that of these rewards is not known, and 0 here; `droid-tune estimate CONFIG --measure` measures it")
    if not time.sources:
        said.append("time: from sizes and rates alone; a step of this model corrects it: `droid-tune estimate CONFIG --measure`")
    if (peak := corrections.known(plan, rates).get(corrections.PEAK)) is not None:
        said.append(f"memory: {peak.by} of this model took {peak.factor:.0%} of the peak that was planned for it")
    if time.refill:
        most = plan.config.resolved_objective().dynamic_sampling
        said.append(f"time: no group is replaced; dynamic sampling may add up to {most} rollouts of {short(time.refill)} a step")
    if plan.shape is not None and (plan.shape.family not in MEASURED_FAMILIES or plan.shape.is_mixture):
        said.append(f"time: as of a llama-type transformer, which {plan.shape.family} is not in every part")
    if rates.others_cores is not None and rates.others_cores > BUSY_CORES:
        said.append(
            f"time: the rates were measured while others used {rates.others_cores:.1f} cores; --remeasure on a quiet machine"
        )
    return said


def _assumptions(plan: Plan, fit: Fit) -> tuple[str, ...]:
    """What the numbers take for granted, in plain words."""
    sampling, adapter = plan.config.sampling, plan.config.adapter
    said = [
        f"prompts of {sampling.max_prompt_tokens:,} and completions of {sampling.max_completion_tokens:,} tokens, their maximum",
        "memory of Python and its libraries is not counted",
        f"freed buffers that mlx keeps for reuse come on top: at most {size(cache_bytes(fit, plan.backend))}",
    ]
    longest = sampling.max_prompt_tokens + sampling.max_completion_tokens
    if plan.positions is not None and longest > plan.positions:
        said.append(
            f"prompt and completion may reach {longest:,} tokens; the model was made for {plan.positions:,}, "
            "and what comes after them it has never seen (max_position_embeddings)"
        )
    if plan.casts:
        said.append("16-bit weights are held in float32, which a CPU computes fastest")
    if plan.backend == "cuda":
        said.append("attention scores are stored for the backward pass (a fused kernel would not)")
    if adapter.keys is not None:
        said.append("activations as if every linear module had an adapter; with adapter.keys there are fewer")
    if plan.decoded and plan.decoded[1][0] > sampling.prompts_per_step * sampling.group_size:
        said.append(f"evaluation decodes {plan.config.run.eval_rows:,} rows at once, more than a step's rollout")
    if plan.shape is None:
        said.append("config.json does not name this family's sizes: activations, logits and cache are NOT counted")
    elif plan.shape.family not in MEASURED_FAMILIES or plan.shape.is_mixture:
        said.append(f"a layer of {plan.shape.family} is counted as one of a llama-type transformer and a quarter more")
    return tuple(said)
