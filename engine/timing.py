"""Seconds of a run's phases before it begins: a step's rollout, scores and updates, the evaluations, the checkpoints.

From sizes and the machine's rates alone; nothing is loaded. How long completions will be is not known: all are taken to reach
their limit, and all to be trained on, so the figures are upper bounds; with the lengths of a step that was measured, they
are that step's. The seconds of rewards are nobody's to know beforehand: 0 until a step was measured.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

from engine.machine_rates import Correction, Rates
from engine.memory import WIDTH, Plan
from engine.methods import method
from engine.model_files import ModelShape
from engine.objective import Objective
from engine.passes import Call, Passes
from engine.time_plan import Lengths, Packed, TimePlan

PHASES = ("rollout", "reward", "score", "update")
_SHRINK = 0.75  # finished rows leave the batch when no more than this share still runs
_SAMPLES = 24  # positions at which a decoding's cost is worked out
_REWARD = "reward"


def time_plan(
    plan: Plan,
    rates: Rates,
    micro_batch_rows: int,
    lengths: Lengths | None = None,
    corrections: Mapping[str, Correction] | None = None,
    decode_rows: int | None = None,
    recomputes: bool | None = None,
) -> TimePlan | None:
    """The seconds of the plan's run; None where config.json does not name the family's sizes. `corrections` are what was
    measured of its phases and rewards; `decode_rows` and `recomputes` (None: as the config says) are those of the plan's Fit."""
    if plan.shape is None:
        return None
    again = plan.recomputes if recomputes is None else recomputes
    return _Timing(plan, plan.shape, rates, micro_batch_rows, decode_rows, again, lengths, corrections or {}).plan_of_run()


def measured_corrections(measured: Mapping[str, float], predicted: TimePlan, completions: int, by: str) -> dict[str, Correction]:
    """What `time_plan` takes as corrections, from a step's measured seconds and the prediction with its lengths; `by` says which
    step it was."""
    found = {
        name: Correction(by, factor=measured[name] / seconds)
        for name, seconds in predicted.phases.items()
        if name != _REWARD and seconds > 0 and measured.get(name, 0) > 0
    }
    if measured.get(_REWARD) and completions:
        found[_REWARD] = Correction(by, seconds_per_completion=measured[_REWARD] / completions)
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
        corrections: Mapping[str, Correction],
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
        prefill = decode = reward = 0.0
        rows = [(self.lengths.prompts[place // self.group], new) for place, new in enumerate(self.lengths.completions)]
        phases = {"update": self._updates(rows) * self._factor("update")}
        if not self.is_supervised:
            prefill, decode = self._prefill(self.lengths.prompts), self._decode(rows)
            prefill, decode = prefill * self._factor("rollout"), decode * self._factor("rollout")
            score, reward = self._scores(rows) * self._factor("score"), self._judged * len(rows)
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
            corrected_by={name: found for name, found in self.corrections.items() if phases.get(name)},
        )

    def _factor(self, phase: str) -> float:
        return self.corrections[phase].factor if phase in self.corrections else 1.0

    @property
    def _judged(self) -> float:
        """Seconds of a completion's rewards; 0 where they are not known."""
        return self.corrections[_REWARD].seconds_per_completion if _REWARD in self.corrections else 0.0

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
        shared = before if self._shares and not greedy else 0.0  # an evaluation has one completion of each prompt
        copied = partial(self.passes.copied, before=before, shares=shared > 0)
        ends = sorted(new for _, new in rows)
        if self.decode_rows is not None and self.decode_rows < len(rows):  # rows that wait take the places of those that are done
            mean = sum(ends) / len(ends)
            seconds = self._positions(Call(self.decode_rows, 1, before, shared, self.group), 0, round(mean), greedy)
            return seconds * len(rows) / self.decode_rows
        seconds, start, running = copied(len(ends), new=ends[-1]), 0, len(ends)
        for end in sorted(set(ends)):
            left = len(ends) - bisect_right(ends, end)
            if left <= _SHRINK * running:
                prompts = len(rows) / self.group  # each with fewer rows, in the mean
                call = Call(running, 1, before, shared, max(running / prompts, 1.0))
                seconds += self._positions(call, start, end, greedy) + copied(left, new=ends[-1])
                start, running = end, left
        return seconds

    @cached_property
    def _shares(self) -> bool:
        sampling = self.plan.config.sampling
        keys = self.plan.keys(sampling.prompts_per_step, sampling.group_size)
        return keys is not None and keys.shares

    def _positions(self, call: Call, start: int, end: int, greedy: bool) -> float:
        """Positions `start` to `end` of a batch that stays: the cost is worked out at some of them."""
        count = end - start
        some = min(count, _SAMPLES)
        places = [call.before + start + (place + 0.5) * count / some for place in range(some)]
        return count * sum(self.passes.decode(replace(call, before=place), greedy=greedy) for place in places) / some

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
        if objective.updates == objective.minibatches and objective.entropy_quantile == 1 and not in_reward:
            seconds *= 1 - 1 / objective.updates  # the first update's ratio needs no old policy
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
            return self._scored(self._packed(rows)) * self._factor("update")
        decoded = self._prefill([length for length, _ in rows]) + self._decode(rows, greedy=True)
        return decoded * self._factor("rollout") + self._judged * count

    def _checkpoint(self) -> float:
        """What is trained, its optimizer's state, and the best adapter so far."""
        plan = self.plan
        trained = plan.adapter or plan.weights
        return (2 * trained + plan.optimizer) / self.rates.disk_bytes_per_second


def _counted(values: Sequence[int]) -> list[tuple[int, int]]:
    return [(value, list(values).count(value)) for value in sorted(set(values))]


def _round_up(value: int) -> int:
    return -(-value // WIDTH) * WIDTH
