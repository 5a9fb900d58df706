"""What an estimate of time is made of, and what it says: the lengths of a step, and the seconds of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.machine_rates import Correction


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
    corrected_by: Mapping[str, Correction] = field(default_factory=dict)  # phase -> what was measured of it, and in what

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

    @property
    def sources(self) -> tuple[str, ...]:
        """What the phases were corrected by, rewards left out: nothing predicts these, so nothing of them is corrected."""
        return tuple(dict.fromkeys(found.by for name, found in self.corrected_by.items() if name != "reward"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        totals = {"step": self.step, "run": self.run, "longest": self.longest, "tokens_per_second": self.tokens_per_second}
        return {**asdict(self), **totals}
