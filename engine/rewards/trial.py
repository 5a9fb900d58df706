"""Tries a config's rewards before any training, through the real reward process: on the data's own answers, by the dry run that
`validate` has (dry_run.py), and on stored completions. Nothing is sampled and no weights are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from engine.config import RewardConfig
from engine.data.scoring import ROUNDING, Marks, OwnAnswer, reference_completion
from engine.rewards.answers import extract_answer, normalise
from engine.rewards.combine import columns_of
from engine.rewards.dry_run import Encode, answer_scorer
from engine.rewards.process import RewardProcess
from engine.rewards.registry import BUILT_IN, full_marks
from engine.types import Example


@dataclass(frozen=True, slots=True)
class AnswersTrial:
    """What one reward gives the data's own answers. Each mean is over the rows that it applies to; None where there are none."""

    name: str
    full_marks: float | None  # of a built-in reward; of a user's the best that any row got
    reference: float | None  # mean for the row's own answer
    other: float | None  # mean for the answer of another row, where that one is different
    empty: float | None  # mean for an empty completion
    below: tuple[int, ...]  # lines of the rows whose own answer does not get full marks
    not_applicable: int  # rows
    seconds: float  # of the calls for every row's own answer, laid out
    errors: tuple[str, ...]
    judges_answers: bool  # whether a right answer must get full marks: then `below` is a fault, else only worth knowing
    tells_answers_apart: bool  # whether it compares with the row's `answer`

    @property
    def fault(self) -> str:
        """What is wrong, in words; empty where nothing is."""
        if self.errors:
            return self.errors[0]
        if self.reference is None:
            return "applies to no row"
        if not self.judges_answers:
            return ""
        if self.below:
            answers = "answer does" if len(self.below) == 1 else "answers do"
            return f"{len(self.below)} reference {answers} not get full marks"
        if self.tells_answers_apart and self.other is not None and self.other >= self.reference:
            return "other rows' answers get as much: it does not tell right from wrong"
        return ""


@dataclass(frozen=True, slots=True)
class CompletionsTrial:
    """What one reward gives stored completions, over those that it applies to."""

    name: str
    mean: float | None
    least: float | None
    most: float | None
    not_applicable: int  # failed ones among them
    seconds: float
    errors: tuple[str, ...]


def replies(example: Example, prompt: str) -> tuple[str, str]:
    """The row's own answer as a completion: bare, and laid out as reference_completion does it."""
    return example.answer or "", reference_completion(example, prompt)


def try_answers(
    specs: Sequence[RewardConfig], examples: Sequence[Example], prompts: Sequence[str], encode: Encode
) -> tuple[list[AnswersTrial], list[str]]:
    """Each reward on every row's own answer, on another row's and on none; and the names of those that say nothing of a bare
    answer, which are left out. `encode` gives a completion's token ids.

    A built-in reward that owes the own answer full marks is asked about its laid-out form, as a check of the data asks it; of
    any other the better of the two forms of `replies` counts. InputError as RewardProcess.start raises it.
    """
    pairs = [replies(example, prompt) for example, prompt in zip(examples, prompts, strict=True)]
    swapped = _others(examples)
    with answer_scorer(specs, encode=encode, patience_seconds=math.inf, must_load=True) as scorer:

        def score(completions: Sequence[str]) -> dict[str, Marks]:
            rows = [OwnAnswer(*row) for row in zip(examples, prompts, completions, strict=True)]
            return {marks.name: marks for marks in scorer(rows)}

        own = [score([pair[form] for pair in pairs]) for form in (1, 0)]
        other = [score([pairs[row if at is None else at][form] for row, at in enumerate(swapped)]) for form in (1, 0)]
        empty = score([""] * len(pairs))
    tried = [spec for spec in specs if own[0][spec.name].tried]
    found = [
        _judged(spec, examples, [form[spec.name] for form in own], [form[spec.name] for form in other], empty[spec.name], swapped)
        for spec in tried
    ]
    return found, [spec.name for spec in specs if spec not in tried]


def try_completions(
    specs: Sequence[RewardConfig],
    prompts: Sequence[str],
    completions: Sequence[str],
    token_ids: list[list[int]] | None,
    examples: Sequence[Example],
) -> list[CompletionsTrial]:
    """Each reward on completions that a run has sampled; examples[i] is the row that completions[i] replies to."""
    with RewardProcess(specs) as process:
        scores = process.score(list(prompts), list(completions), columns_of(examples), token_ids)
    found = []
    for spec in specs:
        values = [part[spec.name] for part in scores.parts]
        known = [value for value in values if value is not None]
        errors = tuple(error.message for error in scores.errors if error.name == spec.name)
        seconds = scores.seconds[spec.name]
        least, most = min(known, default=None), max(known, default=None)
        found.append(CompletionsTrial(spec.name, _mean(known), least, most, len(values) - len(known), seconds, errors))
    return found


def _others(examples: Sequence[Example]) -> list[int | None]:
    """For each row the next one, around the end, whose answer is different; None where all are the same."""
    answers = [normalise(extract_answer(example.answer or "")) for example in examples]
    following: list[int | None] = [None] * len(answers)
    nearest: int | None = None
    for row in reversed(range(2 * len(answers))):
        at, after = row % len(answers), (row + 1) % len(answers)
        nearest = after if answers[after] != answers[at] else nearest
        following[at] = nearest
    return following


def _judged(
    spec: RewardConfig,
    examples: Sequence[Example],
    own: Sequence[Marks],
    other: Sequence[Marks],
    empty: Marks,
    swapped: Sequence[int | None],
) -> AnswersTrial:
    name, marks = spec.name, own[0]
    best = _best(own)
    known = [value for value in best if value is not None]
    full = full_marks(name) if spec.file is None and name in BUILT_IN else max(known, default=None)
    owed = best if marks.full is None else marks.values  # rows that it owes nothing are not below anything
    below = [
        example.line
        for example, value in zip(examples, owed, strict=False)
        if value is not None and full is not None and full - value > ROUNDING
    ]
    others = [value for value, at in zip(_best(other), swapped, strict=False) if at is not None and value is not None]
    errors = {failure.message: None for said in (*own, *other, empty) for failure in said.failures}
    return AnswersTrial(
        name=name,
        full_marks=full,
        reference=_mean(known),
        other=_mean(others),
        empty=_mean([value for value in empty.given if value is not None]),
        below=tuple(below),
        not_applicable=len(examples) - len(known),
        seconds=marks.seconds,
        errors=tuple(errors),
        judges_answers=marks.judges_answers,
        tells_answers_apart=marks.needs_answer,
    )


def _best(forms: Sequence[Marks]) -> list[float | None]:
    """Each row's value; of a reward of which it is not known what it owes the better one of the forms."""
    if forms[0].full is not None:
        return list(forms[0].given)
    rows = zip(*(form.given for form in forms), strict=False)
    return [max((value for value in row if value is not None), default=None) for row in rows]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
