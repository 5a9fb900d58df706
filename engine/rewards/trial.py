"""Tries a config's rewards before any training, through the real reward process: on the data's own answers, and on stored
completions. Nothing is sampled and no weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from engine.config import RewardConfig
from engine.data.scoring import reference_completion
from engine.rewards.answers import extract_answer, normalise
from engine.rewards.combine import columns_of
from engine.rewards.process import RewardProcess, Scores
from engine.rewards.registry import BUILT_IN, full_marks, needed_columns
from engine.types import Example

_REFERENCES = frozenset(("answer", "pattern", "schema"))  # columns that say what is right


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
    seconds: float  # of one call over all rows
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
            return f"{len(self.below)} reference answers do not get full marks"
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
    specs: Sequence[RewardConfig],
    examples: Sequence[Example],
    prompts: Sequence[str],
    encode: Callable[[str], list[int]],
) -> list[AnswersTrial]:
    """Each reward on every row's own answer, on another row's and on none. Of the two forms of `replies` the better one counts;
    `encode` gives a completion's token ids.

    InputError as RewardProcess.start raises it.
    """
    columns = columns_of(examples)
    pairs = [replies(example, prompt) for example, prompt in zip(examples, prompts, strict=True)]
    swapped = _others(examples)
    with RewardProcess(specs) as process:

        def score(completions: list[str]) -> Scores:
            ids = [encode(text) for text in completions] if process.token_ids else None
            return process.score(list(prompts), completions, columns, ids)

        own = [score([pair[form] for pair in pairs]) for form in (0, 1)]
        other = [score([pairs[row if at is None else at][form] for row, at in enumerate(swapped)]) for form in (0, 1)]
        empty = score([""] * len(pairs))
        needed = process.columns
    for spec in specs:
        if spec.file is None and spec.name in BUILT_IN:  # an option may stand in for the column
            needed[spec.name] = needed_columns(BUILT_IN[spec.name])
    return [_judged(spec, examples, own, other, empty, swapped, needed[spec.name]) for spec in specs]


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
    own: Sequence[Scores],
    other: Sequence[Scores],
    empty: Scores,
    swapped: Sequence[int | None],
    needed: Sequence[str],
) -> AnswersTrial:
    name = spec.name
    best = _better(name, own)
    known = [value for value in best if value is not None]
    full = full_marks(name) if spec.file is None and name in BUILT_IN else max(known, default=None)
    others = [value for value, at in zip(_better(name, other), swapped, strict=True) if at is not None and value is not None]
    below = [
        example.line
        for example, value in zip(examples, best, strict=True)
        if value is not None and full is not None and value < full
    ]
    errors = {error.message: None for scores in (*own, *other, empty) for error in scores.errors if error.name == name}
    return AnswersTrial(
        name=name,
        full_marks=full,
        reference=_mean(known),
        other=_mean(others),
        empty=_mean([value for part in empty.parts if (value := part[name]) is not None]),
        below=tuple(below),
        not_applicable=len(best) - len(known),
        seconds=own[0].seconds[name],
        errors=tuple(errors),
        judges_answers=not _REFERENCES.isdisjoint(needed),
        tells_answers_apart="answer" in needed,
    )


def _better(name: str, forms: Sequence[Scores]) -> list[float | None]:
    """Each row's better value of the two forms."""
    rows = zip(*([part[name] for part in scores.parts] for scores in forms), strict=True)
    return [max((value for value in row if value is not None), default=None) for row in rows]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
