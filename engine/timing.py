"""Seconds of a run's phases before it begins: a step's rollout, scores and updates, the evaluations, the checkpoints.

From sizes and the machine's rates alone; nothing is loaded. How long completions will be is not known: all are taken to reach
their limit, and all to be trained on, so the figures are upper bounds; with the lengths of a step that was measured, they
are that step's. The seconds of rewards are nobody's to know beforehand: 0 until a step was measured.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from engine.machine_rates import Rates
from engine.memory import WIDTH, Plan
from engine.methods import method
from engine.model_files import ModelShape
from engine.objective import Objective
from engine.passes import Call, Passes

PHASES = ("rollout", "reward", "score", "update")
_SHRINK = 0.75  # finished rows leave the batch when no more than this share still runs
_SAMPLES = 24  # positions at which a decoding's cost is worked out
_JUDGED = "reward per completion"  # among the corrections: seconds, not a ratio


@dataclass(frozen=True, slots=True)
class Packed:
    """A micro-batch: so many prompts and completions, each padded to the widest, and the completion tokens that count."""

    prompts: int
    prompt_tokens: int
    rows: int
    width: int
    positions: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a step's rows: of each prompt, and of each completion, group after group."""

    prompts: tuple[int, ...]
    completions: tuple[int, ...]
    # the micro-batches of each update, and those of a scoring, as they were; None: every row, as the plan would pack them
    updates: tuple[tuple[Packed, ...], ...] | None = None
    scored: tuple[Packed, ...] | None = None


@dataclass(frozen=True)
class TimePlan:
    """Seconds of a run, phase by phase. `evaluation` and `checkpoint` are those of one."""

    phases: Mapping[str, float]  # of a step: rollout, reward, score, update; those that the method has
    prefill: float  # a part of the rollout, as is the next
    decode: float
    evaluation: float
    checkpoint: float
    steps: int
    evaluations: int
    checkpoints: int
    tokens: int  # completion tokens of a step
    refill: float  # of one more rollout that dynamic sampling may take, for all prompts
    corrected_by: Mapping[str, float] = field(default_factory=dict)  # measured over predicted, where that is known

    @property
    def step(self) -> float:
        return sum(self.phases.values())

    @property
    def run(self) -> float:
        """All steps, evaluations and checkpoints; loading the model is not among them."""
        return self.steps * self.step + self.evaluations * self.evaluation + self.checkpoints * self.checkpoint

    @property
    def longest(self) -> str:
        """The phase of a step that takes longest."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens of a step over its seconds."""
        return self.tokens / self.step

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        totals = {"step": self.step, "run": self.run, "longest": self.longest, "tokens_per_second": self.tokens_per_second}
        return {**asdict(self), **totals}


def time_plan(
    plan: Plan,
    rates: Rates,
    micro_batch_rows: int,
    lengths: Lengths | None = None,
    corrections: Mapping[str, float] | None = None,
    decode_rows: int | None = None,
    recomputes: bool | None = None,
) -> TimePlan | None:
    """The seconds of the plan's run; None where config.json does not name the family's sizes. `corrections` are factors by
    phase, and seconds of rewards for each completion, from a step that was measured; `decode_rows` and
    `recomputes` (None: as the config says) are those of the plan's Fit."""
    if plan.shape is None:
        return None
    again = plan.recomputes if recomputes is None else recomputes
    return _Timing(plan, plan.shape, rates, micro_batch_rows, decode_rows, again, lengths, corrections or {}).plan_of_run()


def correction_name(plan: Plan) -> str:
    """Under which measured ratios are kept: the family, the adapter's type, and the bytes of an activation."""
    family = "unknown" if plan.shape is None else plan.shape.family
    kind = "sft" if method(plan.config.method).kind == "sft" else "rl"
    quantised = " quantised" if any(module.quantised for module in plan.modules) else ""
    return f"{family} {plan.config.adapter.type} {kind} {plan.item} bytes{quantised}"


def ratios(measured: Mapping[str, float], predicted: TimePlan, completions: int) -> dict[str, float]:
    """What `time_plan` takes as corrections, from a measured step and the prediction with its lengths."""
    found = {
        name: measured[name] / seconds for name, seconds in predicted.phases.items() if seconds > 0 and measured.get(name, 0) > 0
    }
    if measured.get("reward") and completions:
        found = {name: value for name, value in found.items() if name != "reward"}
        found[_JUDGED] = measured["reward"] / completions
    return found


class _Timing:
    """One run's arithmetic."""

    def __init__(
        self,
        plan: Plan,
        shape: ModelShape,
        rates: Rates,
        micro_batch_rows: int,
        decode_rows: int | None,
        recomputes: bool,
        lengths: Lengths | None,
        corrections: Mapping[str, float],
    ) -> None:
        self.plan, self.shape, self.rates = plan, shape, rates
        self.passes = Passes(plan, shape, rates)
        self.micro = max(1, micro_batch_rows)
        self.decode_rows = decode_rows
        self.sampling, self.section = plan.config.sampling, plan.config.run
        self.is_supervised = method(plan.config.method).kind == "sft"
        self.objective = Objective() if self.is_supervised else plan.config.resolved_objective()
        self.corrections = corrections
        self.lengths = lengths or self._longest()
        self.recomputes = recomputes

    def _longest(self) -> Lengths:
        prompts = self.sampling.prompts_per_step
        rows = prompts if self.is_supervised else prompts * self.sampling.group_size
        return Lengths((self.sampling.max_prompt_tokens,) * prompts, (self.sampling.max_completion_tokens,) * rows)

    @cached_property
    def group(self) -> int:
        return max(1, len(self.lengths.completions) // max(1, len(self.lengths.prompts)))

    def plan_of_run(self) -> TimePlan:
        prefill = decode = score = reward = 0.0
        rows = [(self.lengths.prompts[place // self.group], new) for place, new in enumerate(self.lengths.completions)]
        by = self.corrections.get
        phases = {"update": self._updates(rows) * by("update", 1.0)}
        if not self.is_supervised:
            prefill, decode = self._prefill(self.lengths.prompts), self._decode(rows)
            prefill, decode = prefill * by("rollout", 1.0), decode * by("rollout", 1.0)
            score = self._scores(rows) * by("score", by("update", 1.0))
            reward = by(_JUDGED, 0.0) * len(rows)
            phases = {"rollout": prefill + decode, "reward": reward, "score": score, **phases}
        section = self.section
        whole = section.steps // section.eval_every + bool(section.steps % section.eval_every)
        kept = section.steps // section.checkpoint_every + bool(section.steps % section.checkpoint_every)
        return TimePlan(
            phases=phases,
            prefill=prefill,
            decode=decode,
            evaluation=self._evaluation(),
            checkpoint=self._checkpoint(),
            steps=section.steps,
            evaluations=1 + whole,
            checkpoints=1 + kept,
            tokens=sum(self.lengths.completions),
            refill=prefill + decode + reward if self.objective.dynamic_sampling else 0.0,
            corrected_by={name: value for name, value in self.corrections.items() if name != _JUDGED},
        )

    # The rollout.

    def _prefill(self, prompts: Sequence[int]) -> float:
        """Each prompt alone, and the head at its last position."""
        one = self.passes
        return sum(count * (one.forward(Call(1, length), lean=True) + one.head(1)) for length, count in _counted(prompts))

    def _decode(self, rows: Sequence[tuple[int, int]], *, greedy: bool = False) -> float:
        """All rows together, position by position; rows that are done leave as the sampler lets them leave."""
        if not rows:
            return 0.0
        before = sum(prompt for prompt, _ in rows) / len(rows)
        ends = sorted(new for _, new in rows)
        if self.decode_rows is not None and self.decode_rows < len(rows):  # rows that wait take the places of those that are done
            mean = sum(ends) / len(ends)
            return self._positions(self.decode_rows, before, 0, round(mean), greedy) * len(rows) / self.decode_rows
        seconds, start, running = self.passes.copied(len(ends), before, ends[-1]), 0, len(ends)
        for end in sorted(set(ends)):
            left = len(ends) - bisect_right(ends, end)
            if left <= _SHRINK * running:
                seconds += self._positions(running, before, start, end, greedy)
                seconds += self.passes.copied(left, before, ends[-1])
                start, running = end, left
        return seconds

    def _positions(self, rows: int, before: float, start: int, end: int, greedy: bool) -> float:
        """Positions `start` to `end` of a batch that stays: the cost is worked out at some of them."""
        count = end - start
        some = min(count, _SAMPLES)
        places = [before + start + (place + 0.5) * count / some for place in range(some)]
        return count * sum(self.passes.decode(rows, place, greedy=greedy) for place in places) / some

    # Scores and updates.

    def _packed(self, rows: Sequence[tuple[int, int]]) -> list[Packed]:
        """The rows in micro-batches, the shortest first."""
        ordered = sorted(rows, key=lambda row: row[1])
        parts = [ordered[start : start + self.micro] for start in range(0, len(ordered), self.micro)]
        return [
            Packed(
                prompts=-(-len(part) // self.group),
                prompt_tokens=max(length for length, _ in part),
                rows=len(part),
                width=_round_up(part[-1][1]),
                positions=sum(width for _, width in part),
            )
            for part in parts
        ]

    def _calls(self, batch: Packed) -> list[Call]:
        """The sequences of a micro-batch that go through the layers together: prompts once each, where that is possible."""
        if self.plan.shares and batch.prompts < batch.rows:
            return [Call(batch.prompts, batch.prompt_tokens), Call(batch.rows, batch.width, batch.prompt_tokens)]
        return [Call(batch.rows, _round_up(batch.prompt_tokens + batch.width))]

    def _scored(self, batches: Sequence[Packed], *, adapter: bool = True) -> float:
        seconds = 0.0
        for batch in batches:
            seconds += sum(self.passes.forward(call, adapter=adapter) for call in self._calls(batch))
            seconds += self.passes.head(batch.positions)
        return seconds

    def _scores(self, rows: Sequence[tuple[int, int]]) -> float:
        """The policy of the rollout, for several updates or for entropies; the reference, where there is a KL."""
        objective = self.objective
        in_reward = bool(objective.beta) and objective.kl_in == "reward"
        is_old = objective.old == "trainer" and (objective.updates > 1 or in_reward)
        batches = self._packed(rows) if self.lengths.scored is None else self.lengths.scored
        seconds = self._scored(batches) if is_old or objective.entropy_quantile < 1 else 0.0
        if objective.beta:
            seconds += self._scored(batches, adapter=self.plan.is_full or bool(objective.ref_sync_every))
        return seconds

    def _updates(self, rows: Sequence[tuple[int, int]]) -> float:
        """All updates of a step: whole groups are dealt to the mini-batches, as evenly as can be."""
        if self.lengths.updates is not None:
            return sum(self._update(update) for update in self.lengths.updates)
        if self.is_supervised:
            return self._update(self._packed(rows))
        groups = [rows[start : start + self.group] for start in range(0, len(rows), self.group)]
        parts = min(self.objective.minibatches, len(groups))
        made = [[row for group in groups[part::parts] for row in group] for part in range(parts)]
        return self.objective.updates_per_rollout * sum(self._update(self._packed(part)) for part in made)

    def _update(self, batches: Sequence[Packed]) -> float:
        """One update: forward, backward and the optimizer."""
        seconds = 0.0
        for batch in batches:
            calls = self._calls(batch)
            forward = sum(self.passes.forward(call, gradient=True) for call in calls)
            seconds += forward * (2 if self.recomputes else 1) + sum(self.passes.backward(call) for call in calls)
            seconds += self.passes.head(batch.positions, gradient=True)
        return seconds + self.passes.step_weights(len(batches))

    # What comes beside the steps.

    def _evaluation(self) -> float:
        """Held-out rows, at most as many as the config allows, of lengths like the step's: decoded greedily, or scored."""
        count, lengths = self.section.eval_rows, self.lengths
        rows = [
            (lengths.prompts[(place // self.group) % len(lengths.prompts)], lengths.completions[place % len(lengths.completions)])
            for place in range(count)
        ]
        if self.is_supervised:
            return self._scored(self._packed(rows)) * self.corrections.get("update", 1.0)
        decoded = self._prefill([length for length, _ in rows]) + self._decode(rows, greedy=True)
        return decoded * self.corrections.get("rollout", 1.0) + self.corrections.get(_JUDGED, 0.0) * count

    def _checkpoint(self) -> float:
        """What is trained, its optimizer's state, and the best adapter so far."""
        plan = self.plan
        trained = plan.adapter or plan.weights
        return (2 * trained + plan.optimizer) / self.rates.disk_bytes_per_second


def _counted(values: Sequence[int]) -> list[tuple[int, int]]:
    return [(value, list(values).count(value)) for value in sorted(set(values))]


def _round_up(value: int) -> int:
    return -(-value // WIDTH) * WIDTH
