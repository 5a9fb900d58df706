"""What a check of a data file found, as plain values, and how single findings become groups."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.data.values import BROKEN_FILE, Problem

_BINS = 20  # of a histogram
Verdict = Literal["ready", "ready with warnings", "unusable"]


@dataclass(frozen=True, slots=True)
class ProblemGroup:
    """Rows with the same kind of trouble; reason and remedy are the first row's."""

    kind: str
    count: int
    lines: tuple[int, ...]  # all of them, ascending; () where no single row is meant: the file, the model, a reward
    field: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Lengths in tokens of the usable rows' prompts or completions, as a run makes the rows.

    Of a sample, median, p95 and bins are those of the rows drawn by chance; min, max and over_limit count the longest rows, too.
    """

    min: int
    median: float
    p95: int  # the smallest length that at least 95% of the rows do not exceed
    max: int
    limit: int
    over_limit: int  # rows longer than limit
    bins: tuple[int, ...]  # rows in each of 20 equal parts of the lengths from min to max, of fewer where there are fewer lengths


@dataclass(frozen=True, slots=True)
class DryRun:
    """What one reward gave the rows' own answers."""

    name: str
    rows: int  # that it was tried on; 0: it was left out, and `note` says why
    full: int | None  # rows whose own answer got full marks; None: what full marks are is not known (a function of the user's)
    not_applicable: int  # rows
    failed: int  # rows
    seconds: float  # of all calls
    note: str  # why it was chosen, left out or given up; may be empty


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the held-out file holds."""

    path: str
    format: str
    rows: int
    usable: int
    problems: tuple[ProblemGroup, ...]  # their lines are those of this file
    is_unusable: bool  # a run would not start with it


@dataclass(frozen=True, slots=True)
class DataReport:
    """What validate found. "unusable": training could not start; "ready with warnings": it could, but see what is listed."""

    path: str
    method: str
    format: str
    rows: int
    usable: int  # rows less those with problems
    problems: tuple[ProblemGroup, ...]  # rows that cannot be used, most frequent first; without lines, why the file cannot
    prompt_tokens: TokenLengths | None  # None without a tokenizer
    completion_tokens: TokenLengths | None  # None without a tokenizer and for reward methods, which sample their completions
    duplicates: int  # rows that repeat an earlier one's prompt, completion and answer
    duplicate_lines: tuple[int, ...]  # all of them, ascending
    verdict: Verdict
    training_rows: int | None = None  # that the measured rows become, too long ones included; None without a tokenizer
    split_chats: int = 0  # measured rows that become several, since the template does not keep earlier turns as they were
    warnings: tuple[ProblemGroup, ...] = ()  # rows that can be used, and should be looked at; most frequent first
    sampled: int | None = None  # rows that were rendered, measured and scored; None: every usable row. The rest is of every row
    dry_run: tuple[DryRun, ...] = ()  # the rewards that the rows' own answers were scored with
    decisive_share: float | None = None  # of target tokens, those of steps that sparse_indicators mark; None: no such step
    held_out: HeldOut | None = None  # the held-out file, where there is one
    is_settings_only: bool = False  # unusable, but only for its limits and rewards: another config could use the data
    labels: tuple[tuple[str, int], ...] = ()  # reference answers and their rows, where there are 20 different ones at most

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for `--json`."""
        return asdict(self)


class Groups:
    """Gathers problems by kind and field; of each it keeps the line, of each kind the first as a whole."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[Problem, array[int]]] = {}

    def add(self, problem: Problem) -> None:
        """One more."""
        group = self._found.get((problem.kind, problem.field))
        if group is None:
            group = self._found[(problem.kind, problem.field)] = (problem, array("Q"))
        group[1].append(problem.line)

    def update(self, others: Groups) -> None:
        """All of `others` as well."""
        for key, (first, lines) in others._found.items():
            self._found.setdefault(key, (first, array("Q")))[1].extend(lines)

    def __len__(self) -> int:
        return sum(len(lines) for _, lines in self._found.values())

    @property
    def is_broken(self) -> bool:
        """Whether one of them means that the file is damaged."""
        return any(kind in BROKEN_FILE for kind, _ in self._found)

    def groups(self) -> tuple[ProblemGroup, ...]:
        """The groups, most frequent first, then in file order."""
        made = [
            ProblemGroup(first.kind, len(lines), tuple(sorted(lines)), first.field, first.reason, first.remedy)
            for first, lines in self._found.values()
        ]
        return tuple(sorted(made, key=lambda group: (-group.count, group.lines[0])))


def grouped(problems: Sequence[Problem]) -> tuple[ProblemGroup, ...]:
    """Problems by kind and field, most frequent first, then in file order."""
    groups = Groups()
    for problem in sorted(problems, key=lambda problem: problem.line):
        groups.add(problem)
    return groups.groups()


def token_lengths(lengths: Iterable[int], limit: int, longest: Iterable[int] = ()) -> TokenLengths | None:
    """The distribution of `lengths`; None where there are none. `longest` count for min, max and over_limit alone."""
    ordered = sorted(lengths)
    if not ordered:
        return None
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    every = [*ordered, *longest]
    over = sum(length > limit for length in every)
    least, most = min(every), max(every)
    bins = [0] * min(_BINS, most - least + 1)
    for length in ordered:
        bins[(length - least) * len(bins) // (most - least + 1)] += 1
    return TokenLengths(least, statistics.median(ordered), p95, most, limit, over, tuple(bins))
