"""What only a measurement can tell, asked of a worker process: the machine's rates, and one real step of a config.

The step is nobody's run: it uses the config's data, rewards and sizes, and writes nothing into the runs folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine import config as configs
from engine import corrections, hardware, machine_rates
from engine.config import RunConfig
from engine.errors import InputError
from engine.hardware import Hardware
from engine.machine_rates import BUSY_CORES, Correction, Rates
from engine.memory import Fit, Plan
from engine.models.sources import fetched_bytes, fixed, model_folder
from engine.runs import launch
from engine.splitting import limit_bytes
from engine.takehome import asking
from engine.time_plan import Lengths, Packed, TimePlan
from engine.timing import measured_corrections, time_plan

Told = Callable[[str], None]


@dataclass(frozen=True)
class MeasuredStep:
    """A step beside its prediction. Seconds by phase, those predicted for the lengths that the step had; bytes are mlx's peak."""

    seconds: Mapping[str, float]
    cpu_seconds: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    predicted_seconds: Mapping[str, float]  # by the rates alone
    predicted_peak_bytes: Mapping[str, int]
    ratios: Mapping[str, float]  # measured over predicted
    reward_seconds_per_completion: float | None  # None: no rewards
    found: Mapping[str, Correction]  # both, as later estimates are corrected by them
    run: TimePlan  # of the whole run corrected by them, every completion at its limit
    run_as_measured: float  # seconds of the run, should its steps stay like this one
    micro_batch_rows: int
    completions: int
    completion_tokens: int
    longest_completion: int
    warmed: bool  # whether a step went before it that is not counted
    others_cores: float | None  # cores that other processes kept busy
    kept: bool  # whether later estimates of this model, and of these rewards, begin with what was found
    notes: tuple[str, ...]  # warnings of the step, as a run would journal them

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        tree = {**asdict(self), "run": self.run.as_dict(), "total": self.total, "notes": list(self.notes)}
        del tree["found"]  # `run` says it, as `corrected_by`
        return tree


def rates_key(known: Hardware | None = None) -> str:
    """Under which this machine's rates are kept, as a worker that is launched now would compute."""
    _, used, _ = launch.worker_environment(os.environ, {})
    return machine_rates.key(known or hardware.facts(), used["threads"], used["blas"])


def known_rates(home: Path, known: Hardware | None = None) -> Rates | None:
    """This machine's rates, where they were measured; it takes milliseconds."""
    return machine_rates.load(home, rates_key(known))


async def measure_rates(home: Path, told: Told) -> Rates:
    """Measure this machine's rates in a worker, a few seconds, and keep them. Raises InputError."""
    environment, _, _ = launch.worker_environment(os.environ, {})
    found: list[Rates] = []

    def take(line: asking.Line) -> None:
        if line["event"] == "rates":
            found.append(Rates.from_dict(line["rates"]))
        else:
            told(line["text"])

    told("starting a worker")
    home.mkdir(parents=True, exist_ok=True)
    await asking.ask("rates", {"folder": str(home)}, environment, take)
    if not found:
        raise InputError(
            "the worker gave no rates", where="engine.worker rates", remedy="`droid-tune doctor` shows what is amiss"
        )
    machine_rates.keep(home, rates_key(), found[0])
    return found[0]


async def measure_step(config: RunConfig, home: Path, rates: Rates, told: Told) -> MeasuredStep:
    """Run one step of the (checked) config in a worker, and set it beside its prediction. Raises InputError."""
    config = config.model_copy(update={"model": fixed(config.model)})
    missing = fetched_bytes(model_folder(config.model))
    if missing:
        remedy = f"fetch them first: `hf download {config.model}`, or estimate without --measure"
        raise InputError("the weights are not on this machine", where=config.model, remedy=remedy)
    environment, _, _ = launch.worker_environment(os.environ, {})
    found: list[Mapping[str, Any]] = []
    notes: list[str] = []

    def take(line: asking.Line) -> None:
        if line["event"] == "step":
            found.append(line["step"])
        elif line["event"] == "warning":
            notes.append(line["text"])
        else:
            told(line["text"])

    told("starting a worker")
    await asking.ask("measure", {"config": configs.dump(config)}, environment, take)
    if not found:
        raise InputError("the worker measured nothing", where="engine.worker measure", remedy="`droid-tune doctor` says more")
    known = hardware.facts()
    plan = Plan(config, known.backend)
    made = compared(plan, plan.fit(limit_bytes(config, known)), rates, found[0], notes)
    if made.kept:
        machine_rates.keep(home, rates_key(known), corrections.kept(plan, rates, made.found))
    return made


def compared(plan: Plan, fit: Fit, rates: Rates, step: Mapping[str, Any], notes: Sequence[str] = ()) -> MeasuredStep:
    """What the worker's `step` says of the plan's run. Raises InputError for a family whose sizes are not known."""
    updates = tuple(tuple(Packed(*batch) for batch in update) for update in step["updates"])
    scored = tuple(Packed(*batch) for batch in step["scored"]) or None
    lengths = Lengths(tuple(step["prompts"]), tuple(step["completions"]), updates, scored)
    cut: dict[str, Any] = {"decode_rows": fit.decode_rows, "recomputes": fit.recomputes}
    predicted = time_plan(plan, rates, fit.micro_batch_rows, lengths, **cut)
    if predicted is None:
        remedy = "a run measures its steps itself: start it, and see `droid-tune status`"
        raise InputError("config.json does not name this family's sizes", where=plan.config.model, remedy=remedy)
    seconds = {name: float(value) for name, value in step["seconds"].items()}
    found = measured_corrections(seconds, predicted, len(lengths.completions), corrections.STEP)
    run = time_plan(plan, rates, fit.micro_batch_rows, corrections=found, **cut)
    like_this = time_plan(plan, rates, fit.micro_batch_rows, lengths, found, **cut)
    assert run is not None and like_this is not None  # as was the prediction
    peaks = {"rollout": fit.rollout_peak, "update": fit.update_peak}
    others = step["others_cores"]
    return MeasuredStep(
        seconds=seconds,
        cpu_seconds=step["cpu_seconds"],
        peak_bytes=step["peak_bytes"],
        predicted_seconds=predicted.phases,
        predicted_peak_bytes={name: peak for name, peak in peaks.items() if peak is not None},
        ratios={name: each.factor for name, each in found.items() if name != corrections.REWARD},
        reward_seconds_per_completion=(found[corrections.REWARD].seconds_per_completion if corrections.REWARD in found else None),
        found=found,
        run=run,
        run_as_measured=like_this.run,
        micro_batch_rows=int(step["micro_batch_rows"]),
        completions=len(lengths.completions),
        completion_tokens=sum(lengths.completions),
        longest_completion=max(lengths.completions, default=0),
        warmed=bool(step["warmed"]),
        others_cores=others,
        kept=others is None or others <= BUSY_CORES,
        notes=tuple(notes),
    )
