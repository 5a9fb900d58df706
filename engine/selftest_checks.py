"""The self-test's checks as data, and what a check and the whole test give. Values only; engine/selftest.py runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

COMMAND = "droid-tune doctor --selftest"

Outcome = Literal["passed", "failed", "warning", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it measures, what a miss means, what to do then. A miss of an optional one is a warning."""

    name: str
    measures: str
    meaning: str
    remedy: str
    required: bool = True


_SAY = "report these lines to the project, and do not train on this device until it passes"

CHECKS: tuple[Check, ...] = (
    Check(
        "golden values",
        "policy losses, their gradients and advantages against reference values from another implementation",
        "mlx computes exp, sums or their derivatives wrongly here: no method would be what its paper says",
        f"update mlx (and macOS or the driver); if it stays so, {_SAY}",
    ),
    Check(
        "batch or alone",
        "log-probabilities of rows of unequal length, scored in one padded batch and one by one",
        "padding or another row changes what a row scores: ratios and KL would be wrong",
        f"try `{COMMAND} demo`; if that passes, this model's family is the cause; else {_SAY}",
    ),
    Check(
        "sampler and trainer",
        "log-probabilities reported while sampling (token by token, with a cache) and those that training computes",
        "the policy that samples is not the one that is trained: updates push the wrong way",
        f"try `{COMMAND} demo`; if that passes, use a float32 copy of this model, or another one; else {_SAY}",
    ),
    Check(
        "same bits twice",
        "one training step done twice from the same state: tokens and weights that differ",
        "this device does not repeat itself: a resumed run goes on soundly, but not to the same bits",
        "nothing needs mending; do not rely on resume giving identical numbers on this device",
        required=False,
    ),
    Check(
        "gradient",
        "the loss's slope by the gradient and by finite differences, along random directions of the adapter's weights",
        "the gradient is not the loss's: training would not go where the rewards point",
        f"try `{COMMAND} demo`; if that passes, this model's family is the cause; else {_SAY}",
    ),
    Check(
        "adapter round trip",
        "logits of the trained policy, and of the adapter written to disk and loaded by mlx_lm",
        "what a run takes home is not what it trained",
        "update mlx-lm; until it passes, judge a run by what its adapter generates and not by its curve",
    ),
)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Figure(_Value):
    """One measured number; None where it is not finite. `limit` is the largest value that passes, None: for information."""

    name: str
    value: float | None
    limit: float | None = None

    @property
    def is_within(self) -> bool:
        return self.limit is None or (self.value is not None and self.value <= self.limit)


class CheckResult(_Value):
    """How a check went. `note` says why it was skipped or what broke; `meaning` and `remedy` are for a miss."""

    name: str
    measures: str
    outcome: Outcome
    figures: tuple[Figure, ...] = ()
    seconds: float
    note: str = ""
    meaning: str
    remedy: str


class Subject(_Value):
    """What was tested: the device and the precision that the model computes in there."""

    device: str  # gpu or cpu
    device_name: str | None
    dtype: str


class Report(_Value):
    """A whole self-test. `chip`, `backend` and `versions` decide whether it still speaks of this machine."""

    date: str  # ISO 8601, with the offset to UTC
    host: str
    chip: str
    backend: str
    versions: dict[str, str]
    model: str
    subject: Subject
    seconds: float
    results: tuple[CheckResult, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst of the results; a skipped check does not count."""
        found = {result.outcome for result in self.results}
        return "failed" if "failed" in found else "warning" if "warning" in found else "passed"

    def named(self, outcome: Outcome) -> list[str]:
        """Names of the checks that ended so."""
        return [result.name for result in self.results if result.outcome == outcome]

    def as_dict(self) -> dict[str, Any]:
        """The report with its outcome, for `--json`."""
        return {"outcome": self.outcome, **self.model_dump(mode="json")}


def result(
    check: Check, figures: Sequence[Figure] = (), *, seconds: float = 0.0, skipped: str = "", broke: str = ""
) -> CheckResult:
    """The check's result: `broke` (what went wrong) fails it, `skipped` says why it was not tried; else the figures decide."""
    miss: Outcome = "failed" if check.required else "warning"
    outcome: Outcome = "passed" if all(figure.is_within for figure in figures) else miss
    if broke or skipped:
        outcome = "failed" if broke else "skipped"
    return CheckResult(
        name=check.name,
        measures=check.measures,
        outcome=outcome,
        figures=tuple(figures),
        seconds=seconds,
        note=broke or skipped,
        meaning=check.meaning,
        remedy=check.remedy,
    )
