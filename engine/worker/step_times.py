"""What a run's own steps teach later estimates: how long they took beside what is predicted for the lengths that they had.

Steps are gathered from one scheduled checkpoint to the next. Where the machine was quiet meanwhile, the medians of their factors
are kept with the machine's rates, under the keys that `droid-tune estimate --measure` uses. The first step of a process is left
out (it pays for what is compiled and allocated once), and so are steps that replaced groups, or lack an update or its rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine import corrections, hardware, machine_load, machine_rates
from engine.config import RunConfig
from engine.errors import InputError
from engine.machine_rates import BUSY_CORES, Correction
from engine.memory import Plan
from engine.splitting import limit_bytes
from engine.time_plan import Lengths, Packed
from engine.timing import measured_corrections, time_plan
from engine.worker.batching import Batch, Sharing, pack
from engine.worker.guard import MemoryGuard
from engine.worker.model import Policy
from engine.worker.step import RewardTask, step_completions
from engine.worker.task import Task, Warn
from engine.worker.work import StepWork

LEAST_STEPS = 3  # that a median is taken of
MOST_STEPS = 16  # of one window that are predicted: the latest


@dataclass(slots=True)
class StepTimes:
    """The steps of one run since its last scheduled checkpoint. `home` is the folder that holds the rates, `rates_key` says
    whose; `by` names the run."""

    config: RunConfig
    home: Path
    rates_key: str
    by: str
    policy: Policy
    guard: MemoryGuard
    warn: Warn
    pids: Sequence[int] = ()  # of processes that are the run's own
    since: Callable[[machine_load.Mark], machine_load.Load] = machine_load.since
    _start: machine_load.Mark | None = None  # None: before the first step has ended
    _seconds: float = 0.0  # of all steps since then, pauses left out
    _steps: list[tuple[dict[str, float], Lengths]] = field(default_factory=list)
    _updates: list[list[Batch]] = field(default_factory=list)  # of the step under way
    _peak: int = 0  # bytes, of all steps

    def updated(self, batches: list[Batch]) -> None:
        """An update was made of these micro-batches."""
        self._updates.append(batches)

    def stepped(self, work: StepWork) -> None:
        """The step has ended."""
        updates, self._updates = self._updates, []
        self._peak = max(self._peak, self.guard.peak())
        if self._start is None:
            self._start = machine_load.mark(self.pids)
            return
        self._seconds += work.seconds.get("total", 0.0)
        is_whole = len(updates) == len(work.updates) and all(updates) and all(update.applied for update in work.updates)
        if work.refills or not is_whole:
            return
        lengths = step_lengths(work, updates, self.guard.micro_batch_rows, self.policy.sharing)
        self._steps = [*self._steps, (dict(work.seconds), lengths)][-MOST_STEPS:]

    def keep(self) -> None:
        """Keep what the steps so far teach, and begin anew; with too few of them go on."""
        if self._start is None or len(self._steps) < LEAST_STEPS:
            return
        load = self.since(self._start)
        # all that others did counts as if it had been done during the steps: a pause must not make them look quiet
        others = None if load.others_cores is None else load.others_cores * load.seconds / max(self._seconds, 1e-3)
        steps, self._steps, self._seconds, self._start = self._steps, [], 0.0, machine_load.mark(self.pids)
        rates = machine_rates.load(self.home, self.rates_key)
        if rates is None or (others is not None and others > BUSY_CORES):
            return
        known = hardware.facts()
        plan = Plan(self.config, known.backend)
        found = medians(plan, rates, self.guard, self.policy.recomputes, steps, self.by)
        if found:
            found[corrections.PEAK] = Correction(self.by, self._peak / plan.fit(limit_bytes(self.config, known)).peak)
        try:
            machine_rates.keep(self.home, self.rates_key, corrections.kept(plan, rates, found))
        except InputError as error:
            self.warn("estimates", f"later estimates do not learn from this run: {error.what}", error.remedy)


def own_pids(task: Task) -> list[int]:
    """Of the task's reward process: what it computes is no other's work."""
    pid = task.judge.process.pid if isinstance(task, RewardTask) else None
    return [] if pid is None else [pid]


def medians(
    plan: Plan,
    rates: machine_rates.Rates,
    guard: MemoryGuard,
    recomputes: bool,
    steps: Sequence[tuple[dict[str, float], Lengths]],
    by: str,
) -> dict[str, Correction]:
    """By phase the median of what each step corrects; {} where config.json does not name the family's sizes."""
    each: list[dict[str, Correction]] = []
    for seconds, lengths in steps:
        said = time_plan(plan, rates, guard.micro_batch_rows, lengths, decode_rows=guard.decode_rows, recomputes=recomputes)
        if said is not None:
            each.append(measured_corrections(seconds, said, len(lengths.completions), by))
    found = {}
    for name in dict.fromkeys(name for one in each for name in one):
        of_phase = [one[name] for one in each if name in one]
        factor = statistics.median(one.factor for one in of_phase)
        seconds_each = statistics.median(one.seconds_per_completion for one in of_phase)
        found[name] = Correction(by, factor, seconds_each)
    return found


def step_lengths(work: StepWork, updates: Sequence[Sequence[Batch]], rows: int, sharing: Sharing) -> Lengths:
    """The lengths that a step had, its updates' micro-batches, and those of its scoring in micro-batches of `rows` rows."""
    packed = tuple(tuple(_packed(batch) for batch in batches) for batches in updates)
    if not work.groups:  # supervised
        pairs = [pair for batch in updates[0] for pair in _rows(batch)]
        return Lengths(tuple(prompt for prompt, _ in pairs), tuple(new for _, new in pairs), packed)
    prompts = tuple(len(group.prompt.token_ids) for group in work.groups)
    completions = tuple(len(rollout.token_ids) for group in work.groups for rollout in group.rollouts)
    scored = tuple(_packed(batch) for batch in pack(step_completions(work.groups), rows, sharing=sharing))
    return Lengths(prompts, completions, packed, scored)


def _rows(batch: Batch) -> list[tuple[int, int]]:
    """(prompt tokens, completion tokens) of each row that is trained."""
    ends = [int(np.flatnonzero(row)[-1]) + 1 if row.any() else 1 for row in batch.mask > 0]
    return [(int(batch.prompt_lengths[place]), end) for place, end in zip(batch.prompt_row, ends, strict=True)]


def _packed(batch: Batch) -> Packed:
    (prompts, tokens), (rows, width) = batch.prompts.shape, batch.completions.shape
    return Packed(prompts, tokens, rows, width, int((batch.mask > 0).sum()))
