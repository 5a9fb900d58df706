"""What the learning canaries look back on: a run's recent steps, its first ones, and its evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import Any

from engine.types import StepMetrics

RECENT = 5  # steps whose mean is "now", and at the beginning "the start": one step of a small batch is too noisy
_KEPT = 30  # steps of history: what the slowest canary looks back on
_WATCHED = (
    "step",
    "loss",
    "lr",
    "grad_norm",
    "moved",
    "skipped",
    "reward",
    "reward_std",
    "parts_spread",
    "groups",
    "zero_std_groups",
    "masked",
    "length",
    "truncated",
    "entropy",
    "kl",
    "ratio_gap_first",
    "ratio_gap_later",
    "clip_low",
    "clip_high",
    "mismatch",
    "mismatch_kl",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A canary that fired."""

    kind: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Held:
    """An evaluation: `score` is better when higher, `error` its standard error (None with fewer than two rows), `train` the mean
    of the training score since the evaluation before."""

    step: int
    score: float
    error: float | None
    train: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """What of a run's config decides how its history is to be read."""

    exact: bool  # the model computes in float32, so that its own rounding is small
    batch_baseline: bool  # advantages compare the whole batch: groups of equal rewards teach too


@dataclass(slots=True)
class History:
    """What the canaries know. All of it goes into checkpoints, so that a resumed run warns as the first would have."""

    recent: list[dict[str, Any]] = field(default_factory=list)  # _WATCHED of the last _KEPT steps
    start: list[dict[str, Any]] = field(default_factory=list)  # of the first RECENT
    held: list[Held] = field(default_factory=list)
    best: float | None = None  # highest reward of a single completion so far
    worst: float | None = None
    peak_lr: float = 0.0
    peak_spread: dict[str, float] = field(default_factory=dict)  # of each reward, the highest parts_spread of a step
    told: dict[str, int] = field(default_factory=dict)  # kind -> step of its last warning

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> History:
        """The inverse of as_dict."""
        held = [Held(**one) for one in tree["held"]]
        return cls(**{one.name: tree[one.name] for one in fields(cls)} | {"held": held})

    def add(self, metrics: StepMetrics) -> None:
        """Take in a finished step. What is not finite counts as not measured: the loop warns of that itself."""
        row = {name: _finite(getattr(metrics, name)) for name in _WATCHED}
        spread = {name: value for name, given in metrics.parts_spread.items() if (value := _finite(given)) is not None}
        row["parts_spread"] = spread
        if len(self.start) < RECENT:
            self.start.append(row)
        self.recent = [*self.recent, row][-_KEPT:]
        self.peak_lr = max(self.peak_lr, metrics.lr)
        for name, value in spread.items():
            self.peak_spread[name] = max(self.peak_spread.get(name, 0.0), value)
        if metrics.reward_min is not None and metrics.reward_max is not None:
            self.worst = metrics.reward_min if self.worst is None else min(self.worst, metrics.reward_min)
            self.best = metrics.reward_max if self.best is None else max(self.best, metrics.reward_max)

    @property
    def supervised(self) -> bool:
        """Whether the run has no rollouts, but a loss on given completions."""
        return bool(self.recent) and self.recent[-1]["groups"] is None

    def now(self, name: str, steps: int = RECENT) -> float | None:
        """The mean over the last `steps` steps; None before there are as many, or where one has no such value."""
        return _mean([row[name] for row in self.recent[-steps:]], steps)

    def at_start(self, name: str) -> float | None:
        """The same over the first RECENT steps."""
        return _mean([row[name] for row in self.start], RECENT)

    def last(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The last RECENT steps of those that are `wanted`; none where there are fewer."""
        rows = [row for row in self.recent if wanted(row)]
        return rows[-RECENT:] if len(rows) >= RECENT else []

    def solved(self) -> float | None:
        """Where the mean reward now lies between the worst (0) and the best (1) completion seen."""
        reward = self.now("reward")
        if reward is None or self.best is None or self.worst is None or self.best <= self.worst:
            return None
        return (reward - self.worst) / (self.best - self.worst)

    def flat(self, steps: int = RECENT) -> float | None:
        """Share of groups without reward variance over the last `steps` steps."""
        rows = self.recent[-steps:]
        if len(rows) < steps or any(row["groups"] is None for row in rows):
            return None
        groups: int = sum(row["groups"] for row in rows)
        return float(sum(row["zero_std_groups"] for row in rows)) / groups

    def constant(self) -> bool:
        """Whether every completion of the last RECENT steps had the same reward."""
        rows = self.recent[-RECENT:]
        if len(rows) < RECENT or any(row["reward_std"] is None or row["reward_std"] > _SAME for row in rows):
            return False
        rewards: list[float] = [row["reward"] for row in rows]
        return max(rewards) - min(rewards) <= _SAME


_SAME = 1e-8  # rewards that differ by less are one value, as for advantages


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: list[Any], wanted: int) -> float | None:
    if len(values) < wanted or any(value is None for value in values):
        return None
    return fmean(values)
