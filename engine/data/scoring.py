"""The dry run of a data check: every row's own answer as a completion, and what rewards say of it.

An answer that gets less than full marks from a reward that compares with it is one that no completion can match. Which rewards
there are is not known here: a Scorer is handed in (engine/rewards/dry_run.py has the real one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.data.chains import render
from engine.data.fields import Unusable
from engine.data.report import DryRun, Groups, ProblemGroup
from engine.data.values import Problem
from engine.rewards.answers import extract_answer
from engine.types import Example

ROUNDING = 1e-9  # so much less than full marks is full marks
_REMEDY = "correct the answer, or use another reward"


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """A row with its rendered prompt and the completion that a right model would give."""

    example: Example
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong for some rows."""

    message: str
    remedy: str
    rows: tuple[int, ...]  # places


@dataclass(frozen=True, slots=True)
class Marks:
    """What one reward says of some rows, by their places."""

    name: str
    tried: int  # rows, from the first on
    values: tuple[float | None, ...] = ()  # [tried]; None: not applicable, failed, or a row that it owes nothing
    full: float | None = None  # marks; None: not known, as of a user's own function
    judges_answers: bool = False  # whether it compares with the row's reference
    failures: tuple[Failure, ...] = ()
    seconds: float = 0.0
    note: str = ""  # why it was chosen, left out or given up
    given: tuple[float | None, ...] = ()  # [tried]: `values`, and what rows got that it owes nothing
    needs_answer: bool = False  # whether it cannot do without the row's `answer`


class Scorer(Protocol):
    """Scores rows; several calls where there are too many for one, the rewards always the same and in the same order."""

    def __call__(self, rows: Sequence[OwnAnswer], /) -> Sequence[Marks]: ...


def reference_completion(example: Example, prompt: str = "") -> str:
    """The completion that a right model would give: the answer, and the chain's steps where there are some, in the layout of the
    `format` reward; what the prompt ends with (an opening <think>) is not written again.

    An answer that has a layout of its own, and a completion without an answer, stand as they are.
    """
    text = _laid_out(example)
    return text.removeprefix("<think>") if prompt.rstrip().endswith("<think>") else text


def _laid_out(example: Example) -> str:
    own = example.answer
    if own is None:
        return example.completion or ""
    if "<answer>" in own:
        return own
    bare = extract_answer(own)
    thoughts, ending, _ = own.rpartition("</think>")
    if ending:
        return f"{thoughts}</think>\n<answer>{bare}</answer>"
    chain, solution = example.columns.get("reasoning_steps"), example.columns.get("solution")
    if isinstance(chain, list):
        try:
            return render(list(map(str, chain)), solution if isinstance(solution, str) else bare, bare)
        except Unusable:  # a tag in the answer breaks any layout: written around it all the same, for `format` to say so
            pass
    return f"<think>\nThe answer is {bare}.\n</think>\n<answer>{bare}</answer>"


@dataclass(slots=True)
class _Run:
    """One reward so far."""

    name: str
    full_marks: float | None = None
    rows: int = 0
    full: int = 0
    not_applicable: int = 0
    failed: list[int] = field(default_factory=list)  # lines
    failure: Failure | None = None  # the first
    seconds: float = 0.0
    note: str = ""


class Tally:
    """Adds up what the scorer says, lot after lot."""

    def __init__(self) -> None:
        self.warnings = Groups()  # of rows
        self._runs: dict[str, _Run] = {}

    def add(self, rows: Sequence[OwnAnswer], marks: Sequence[Marks]) -> None:
        """One more lot."""
        for own in marks:
            run = self._runs.setdefault(own.name, _Run(own.name))
            failed = {place for failure in own.failures for place in failure.rows}
            run.full_marks, run.note = own.full, own.note or run.note
            run.rows += own.tried
            run.seconds += own.seconds
            run.failed += [rows[place].example.line for place in sorted(failed)]
            run.failure = run.failure or next(iter(own.failures), None)
            run.not_applicable += sum(v is None and place not in failed for place, v in enumerate(own.values))
            run.full += sum(own.full is not None and v is not None and own.full - v <= ROUNDING for v in own.values)
        for place, row in enumerate(rows):
            self._judge(row.example.line, place, marks)

    def runs(self) -> tuple[DryRun, ...]:
        """What became of each reward."""
        return tuple(
            DryRun(
                run.name,
                run.rows,
                None if run.full_marks is None else run.full,
                run.not_applicable,
                len(run.failed),
                run.seconds,
                run.note,
            )
            for run in self._runs.values()
        )

    def failures(self) -> list[ProblemGroup]:
        """A group for each reward that failed; without lines where it failed for every row."""
        groups = []
        for run in self._runs.values():
            if run.failure is not None:
                lines = () if len(run.failed) == run.rows else tuple(sorted(run.failed))
                reason = f"{run.name} failed: {run.failure.message}"
                groups.append(ProblemGroup("reward-failed", len(run.failed), lines, run.name, reason, run.failure.remedy))
        return groups

    @property
    def is_refused(self) -> bool:
        """Whether a reward failed for every row that it was tried on: in a run it would do so at once."""
        return any(run.rows and len(run.failed) == run.rows for run in self._runs.values())

    def _judge(self, line: int, place: int, marks: Sequence[Marks]) -> None:
        tried = [own for own in marks if own.full is not None and place < own.tried]
        low = {own.name: own.full - value for own in tried if own.full is not None and (value := own.values[place]) is not None}
        low = {name: by for name, by in low.items() if by > ROUNDING}
        if low:
            shown = ", ".join(f"{name} by {by:g}" for name, by in low.items())
            reason = f"the row's own answer falls short of full marks: {shown}"
            self.warnings.add(Problem(line, "answer-below-full", "answer", reason, _REMEDY))
        judges = [own for own in tried if own.judges_answers]
        has_failed = any(place in failure.rows for own in judges for failure in own.failures)
        if judges and not has_failed and all(own.values[place] is None for own in judges):
            reason = f"{' and '.join(own.name for own in judges)} cannot judge the row's own answer"
            self.warnings.add(Problem(line, "answer-not-scored", "answer", reason, _REMEDY))
