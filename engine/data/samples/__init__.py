"""Sample data for a method, made here and now: problems whose answers are computed, so that every row is right.

A topic is a set of templates that draw problems; a problem is rendered into whatever format the method takes. `arithmetic` is
what the embedded model can read and was not trained on; the other topics are for larger models.
Everything but write_samples is a pure function of its arguments: the same seed gives the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from engine import methods
from engine.data import arithmetic
from engine.data.examples import check_format, require_format
from engine.data.samples import (
    chains,
    chemistry,
    deadlines,
    decisive,
    infusions,
    law,
    measures,
    medicine,
    money,
    physics,
    words,
)
from engine.data.samples.formats import RENDERERS, render
from engine.data.samples.problem import Problem, Step, Template, distinct
from engine.data.writing import check_writable, write_rows
from engine.errors import InputError

__all__ = ["MAX_ROWS", "TOPICS", "Subject", "Topic", "formats", "problems", "sample_rows", "subject", "write_samples"]

Topic = Literal["arithmetic", "words", "chains", "decisive", "medicine", "science", "law"]
TOPICS: tuple[Topic, ...] = get_args(Topic)
MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Subject:
    """A topic as a list shows it."""

    id: Topic
    summary: str
    templates: tuple[Template, ...]  # empty: its problems are engine.data.arithmetic's
    format: str = ""  # that its rows have unless another is asked for; empty: by the kind of method
    without: Mapping[str, str] | None = None  # formats that cannot hold its answers, each with the reason


_SUBJECTS: Mapping[str, Subject] = {
    each.id: each
    for each in (
        Subject("arithmetic", "sums of two-digit numbers, which the embedded model can read", ()),
        Subject("words", "word problems of two to four steps", words.TEMPLATES),
        Subject("chains", "problems of four to seven steps", chains.TEMPLATES + money.TEMPLATES, "reasoning"),
        Subject(
            "decisive",
            "chains in which some steps decide, which are marked",
            decisive.TEMPLATES + measures.TEMPLATES,
            "reasoning",
        ),
        Subject("medicine", "doses, drip rates, clearances and dilutions", medicine.TEMPLATES + infusions.TEMPLATES, "reasoning"),
        Subject(
            "science",
            "stoichiometry, half-lives, motion, gases, acids and energy",
            chemistry.TEMPLATES + physics.TEMPLATES,
            "reasoning",
        ),
        Subject(
            "law",
            "periods that end on a date, interest, costs and penalties, by rules given in the question",
            deadlines.TEMPLATES + law.TEMPLATES,
            "reasoning",
            {"gsm8k": "its answers are dates, and gsm8k rows end in a number"},
        ),
    )
}


def subject(topic: str) -> Subject:
    """The topic's entry; an InputError names those there are."""
    if topic not in _SUBJECTS:
        raise InputError(f"unknown topic {topic!r}", where="topic", remedy=f"one of: {', '.join(TOPICS)}")
    return _SUBJECTS[topic]


def formats(method_id: str, topic: str) -> tuple[str, ...]:
    """The formats that the method can use and the topic can be written in, the one it has by itself first."""
    method, found = methods.method(method_id), subject(topic)
    own = found.format or ("prompt+completion" if method.kind == "sft" else "prompt+answer")
    usable = (name for name in method.formats if name in RENDERERS and name not in (found.without or {}))
    return tuple(sorted(usable, key=lambda name: name != own))


def problems(topic: str, rows: int, rng: random.Random) -> list[Problem]:
    """The first `rows` different problems of the topic that `rng` draws. Raises InputError."""
    found = subject(topic)
    if found.templates:
        return distinct(found.templates, rows, rng, topic)
    return [_sum(problem) for problem in arithmetic.distinct_problems("train", rows, rng)]


def sample_rows(
    method_id: str, rows: int, seed: int, topic: str = "arithmetic", format: str | None = None
) -> list[dict[str, Any]]:
    """`rows` different rows for the method, in the topic's own format unless `format` names another.

    Rows for a reward method have an `answer`, whatever their format. InputError for an unknown method, topic or format, a
    format that the method cannot use or that cannot hold the topic's answers, and fewer than 1 or more than MAX_ROWS rows.
    """
    method, found = methods.method(method_id), subject(topic)
    chosen = format if format is not None else formats(method_id, topic)[0]
    check_format(chosen)
    require_format(method, chosen, "format")
    if found.without and chosen in found.without:
        remedy = f"one of: {', '.join(formats(method_id, topic))}"
        raise InputError(f"{topic} has no {chosen} rows: {found.without[chosen]}", where="format", remedy=remedy)
    if not 1 <= rows <= MAX_ROWS:
        raise InputError(f"{rows} rows cannot be made", where="rows", remedy=f"ask for 1 to {MAX_ROWS}")
    name = topic
    if topic == "arithmetic":  # what is rewarded is drawn apart from what is imitated: it was not all seen before
        name = "careful" if method.kind == "sft" else "train"
    made = problems(topic, rows, random.Random(f"{name}:{seed}"))
    made_rows = [render(problem, chosen) for problem in made]
    if method.kind == "rl":
        for row, problem in zip(made_rows, made, strict=True):
            row.setdefault("answer", problem.answer)
    return made_rows


def write_samples(
    path: Path,
    method_id: str,
    rows: int,
    seed: int,
    *,
    topic: str = "arithmetic",
    format: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write sample_rows to the file `path`, a .jsonl, .json, .csv or .parquet, and return it; its folder is made.

    Whole or not at all. Raises InputError as sample_rows does, for another ending, for a file that is there (unless
    `overwrite`) and for a place that cannot be written.
    """
    check_writable(path, overwrite=overwrite)
    write_rows(path, sample_rows(method_id, rows, seed, topic, format), overwrite=overwrite)
    return path


def _sum(problem: arithmetic.Problem) -> Problem:
    """Its steps are those of the embedded model's working, and so is its completion."""
    parts = problem.working.split("=")  # 24+10=34+7=41: each result is where the next step begins
    steps = tuple(Step(f"{left} = {_result(right)}") for left, right in pairwise(parts))
    answer = str(problem.answer)
    return Problem(problem.prompt, steps, answer, f"The result is {answer}.", written=arithmetic.careful_completion(problem))


def _result(text: str) -> str:
    return text.replace("-", "+").partition("+")[0]
