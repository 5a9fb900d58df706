"""Learning canaries: what a run measures, watched for the ways in which training goes wrong without failing.

Each canary is a pure function of the run's recent history; its threshold stands beside it, with the reason. One that fires is
a warning in plain words with a remedy, given once and, while it stays so, again after REPEAT_STEPS. What is left out: stopping
the run, which is its user's to decide (a loss that is not finite is the loop's affair, which ends the run itself).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from engine.types import StepMetrics
from engine.worker import reward_canaries as rewards
from engine.worker import update_canaries as updates
from engine.worker.history import Finding, Held, History, Setting

REPEAT_STEPS = 50

Canary = Callable[[History, Setting], Finding | None]
STEP_CANARIES: tuple[Canary, ...] = (
    updates.weights_still,
    updates.gradient_zero,
    updates.ratio_start,
    updates.ratio_still,
    updates.sampler_gap,
    updates.clipped,
    updates.kl_blow_up,
    rewards.no_contrast,
    rewards.truncated,
    rewards.entropy_collapse,
    rewards.length_explosion,
    rewards.reward_constant,
    rewards.reward_saturated,
    rewards.part_drowns,
)


class Canaries:
    """All of them, for one run. `exact`: the model computes in float32, so that its own rounding is small; `batch_baseline`:
    advantages compare the whole batch (objective.advantage: global), so that groups of equal rewards teach too."""

    def __init__(self, exact: bool, history: History | None = None, *, batch_baseline: bool = False) -> None:
        self.setting = Setting(exact, batch_baseline)
        self.history = history or History()

    def step(self, metrics: StepMetrics) -> list[Finding]:
        """What the finished step gives reason to warn of."""
        self.history.add(metrics)
        found = [finding for canary in STEP_CANARIES if (finding := canary(self.history, self.setting)) is not None]
        return self._news(found, metrics.step)

    def evaluated(self, step: int, score: float, error: float | None) -> list[Finding]:
        """What an evaluation after step `step` gives reason to warn of."""
        history = self.history
        since = history.held[-1].step if history.held else 0
        name, sign = ("loss", -1.0) if history.supervised else ("reward", 1.0)
        values = [row[name] for row in history.recent if row["step"] > since and row[name] is not None]
        history.held.append(Held(step, score, error, sign * fmean(values) if values else None))
        found = rewards.overfit(history)
        return self._news([found] if found is not None else [], step)

    def _news(self, found: list[Finding], step: int) -> list[Finding]:
        news = [one for one in found if step - self.history.told.get(one.kind, -REPEAT_STEPS) >= REPEAT_STEPS]
        self.history.told.update({one.kind: step for one in news})
        return news
