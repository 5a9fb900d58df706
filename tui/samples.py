"""A step's samples file as groups of answers. It is read within bounds: a model may have written anything, and as much."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.runs.journal import number

MOST_BYTES = 16 << 20  # of a file; what comes after is left out, and that is said
MOST_CHARACTERS = 20_000  # of one text
# Lists of numbers, nine tenths of a row: of the ids only their number is shown. No text looks like that: its quotes are escaped.
_NUMBERS = {name: re.compile(rb'"%s": ?\[([^\[\]{"]*)\]' % name) for name in (b"token_ids", b"logprobs")}


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion. `reward` None: left out of the baseline; `parts` by reward name, None: not applicable."""

    text: str
    reward: float | None
    parts: Mapping[str, float | None]
    advantage: float | None
    tokens: int | None
    finish: str  # stop, or length: cut at the limit


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """All answers to one prompt in one step."""

    prompt: str
    answer: str | None
    answers: tuple[Answer, ...]

    @property
    def best(self) -> Answer:
        """The answer with the highest advantage."""
        return max(self.answers, key=_rank)

    @property
    def worst(self) -> Answer:
        """The answer with the lowest advantage."""
        return min(self.answers, key=_rank)


@dataclass(frozen=True, slots=True)
class StepSamples:
    """The groups of one step in the order of the file. `skipped` rows could not be read; `problem` says why there are none."""

    step: int
    groups: tuple[PromptGroup, ...] = ()
    skipped: int = 0
    problem: str = ""


@dataclass(slots=True)
class _Gathering:
    prompt: str
    answer: str | None
    answers: list[Answer] = field(default_factory=list)


def read_samples(folder: Path, file: str, step: int) -> StepSamples:
    """The samples `file` of the run folder `folder`; whatever is wrong with it is said in the result."""
    path = folder / file
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return StepSamples(step, problem="the journal names a samples file outside the run folder")
        with path.open("rb") as source:
            data = source.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL in it
        return StepSamples(step, problem=f"the samples of step {step} cannot be read: {error}")
    lines = data[:MOST_BYTES].split(b"\n")
    if len(data) > MOST_BYTES:
        lines[-1] = b""  # cut in two
    return _groups(step, [line for line in lines if line.strip()], len(data) > MOST_BYTES)


def _groups(step: int, lines: list[bytes], cut: bool) -> StepSamples:
    found: dict[object, _Gathering] = {}
    skipped = 0
    for line in lines:
        row = _row(_without_numbers(line))
        if row is None:
            skipped += 1
            continue
        prompt, answer = _text(row.get("prompt")), row.get("answer")
        key = row["prompt_id"] if isinstance(row.get("prompt_id"), int | str) else prompt
        group = found.setdefault(key, _Gathering(prompt, None if answer is None else _text(answer)))
        group.answers.append(_answer(row))
    problem = f"the file is over {MOST_BYTES >> 20} MB: only its beginning is shown" if cut else ""
    groups = tuple(PromptGroup(group.prompt, group.answer, tuple(group.answers)) for group in found.values())
    return StepSamples(step, groups, skipped, problem)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("text"), str) else None


def _without_numbers(line: bytes) -> bytes:
    """The line with the number of its token ids in place of the ids, and no logprobs."""
    ids = _NUMBERS[b"token_ids"].search(line)
    if ids is not None:
        count = ids[1].count(b",") + 1 if ids[1].strip() else 0
        line = b'%b"token_ids": %d%b' % (line[: ids.start()], count, line[ids.end() :])
    return _NUMBERS[b"logprobs"].sub(b'"logprobs": 0', line, count=1)


def _answer(row: Mapping[str, Any]) -> Answer:
    parts, ids = row.get("parts"), row.get("token_ids")
    return Answer(
        text=_text(row["text"]),
        reward=number(row.get("reward")),
        parts={_text(name): number(value) for name, value in parts.items()} if isinstance(parts, dict) else {},
        advantage=number(row.get("advantage")),
        tokens=ids if type(ids) is int else None,
        finish=_text(row.get("finish") or ""),
    )


def _text(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … ({len(text):,} characters)"


def _rank(answer: Answer) -> float:
    return answer.advantage if answer.advantage is not None and answer.advantage == answer.advantage else 0.0
