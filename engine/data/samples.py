"""Sample data for a method, made here and now: short problems whose answers are computed, so that every row is right.

Two topics: `arithmetic` is what the embedded model can read and was not trained on; `words` are word problems, for larger
models. For supervised fine-tuning the rows carry worked steps, for the reward methods the answer alone.
Everything but write_samples is a pure function of its arguments: the same seed gives the same rows.
"""

from __future__ import annotations

import json
import os
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from engine import methods
from engine.data import arithmetic
from engine.data.rows import ENDINGS
from engine.errors import InputError

Topic = Literal["arithmetic", "words"]
TOPICS: tuple[Topic, ...] = get_args(Topic)
MAX_ROWS = 10_000

_NAMES = ("Ada", "Bruno", "Carla", "Dilan", "Emma", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Luis", "Mia", "Nora")
_THINGS = ("pencils", "apples", "stickers", "marbles", "postcards", "shells", "buttons", "cookies")


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question and the steps to its answer, such as ("7*4=28", "28-3=25"); the last step ends with the answer."""

    question: str
    steps: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The number after the last step's equals sign."""
        return self.steps[-1].rpartition("=")[2]


def sample_rows(method_id: str, rows: int, seed: int, topic: Topic = "arithmetic") -> list[dict[str, str]]:
    """`rows` different rows for the method: prompt + completion for supervised training, else prompt + answer.

    Raises InputError for an unknown method or topic and for fewer than 1 or more than MAX_ROWS rows.
    """
    kind = methods.method(method_id).kind
    if not 1 <= rows <= MAX_ROWS:
        raise InputError(f"{rows} rows cannot be made", where="rows", remedy=f"ask for 1 to {MAX_ROWS}")
    if topic not in TOPICS:
        raise InputError(f"unknown topic {topic!r}", where="topic", remedy=f"one of: {', '.join(TOPICS)}")
    if topic == "words":
        problems = distinct_word_problems(rows, random.Random(f"words:{seed}"))
        if kind == "sft":
            return [{"prompt": p.question, "completion": worked(p)} for p in problems]
        return [{"prompt": p.question, "answer": p.answer} for p in problems]
    if kind == "sft":
        return [{"prompt": r["prompt"], "completion": r["completion"]} for r in arithmetic.careful_rows("train", rows, seed)]
    return [{"prompt": r["prompt"], "answer": r["answer"]} for r in arithmetic.rl_rows("train", rows, seed)]


def write_samples(
    path: Path, method_id: str, rows: int, seed: int, *, topic: Topic = "arithmetic", overwrite: bool = False
) -> Path:
    """Write sample_rows to the .jsonl file `path` and return it; its folder is made. Whole or not at all.

    Raises InputError as sample_rows does, for another ending, for a file that is there (unless `overwrite`) and for a
    place that cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError("data files end in .jsonl", where=str(path), remedy=f"name it {path.stem or 'sample'}.jsonl")
    text = "".join(json.dumps(row) + "\n" for row in sample_rows(method_id, rows, seed, topic))
    if path.exists() and not overwrite:
        raise InputError("is there already", where=str(path), remedy="name another file, or --force to replace it")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        if part.exists():
            part.unlink()
        raise InputError(f"cannot be written: {error.strerror}", where=str(path), remedy="name a file you may write") from error
    return path


def worked(problem: WordProblem) -> str:
    """The completion that supervised training imitates: the steps inside <think>, then the answer."""
    return f"<think>{', '.join(problem.steps)}</think><answer>{problem.answer}</answer>"


def distinct_word_problems(n: int, rng: random.Random) -> list[WordProblem]:
    """The first `n` different word problems that `rng` draws."""
    chosen: dict[str, WordProblem] = {}
    for problem in draw_word_problems(rng):
        if len(chosen) >= n:
            break
        chosen.setdefault(problem.question, problem)
    return list(chosen.values())


def draw_word_problems(rng: random.Random) -> Iterator[WordProblem]:
    """Draw word problems without end; they may repeat."""
    while True:
        yield rng.choice(_TEMPLATES)(rng)


def _boxes(rng: random.Random) -> WordProblem:
    name, thing, boxes, each = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(3, 12), rng.randint(4, 15)
    total = boxes * each
    given = rng.randint(2, total - 1)
    question = f"{name} has {boxes} boxes with {each} {thing} in each and gives away {given}. How many {thing} are left?"
    return WordProblem(question, (f"{boxes}*{each}={total}", f"{total}-{given}={total - given}"))


def _change(rng: random.Random) -> WordProblem:
    name, count, price = rng.choice(_NAMES), rng.randint(2, 9), rng.randint(2, 12)
    cost = count * price
    paid = cost + rng.randint(1, 50)
    question = f"{name} buys {count} tickets at ${price} each and pays with ${paid}. How many dollars come back?"
    return WordProblem(question, (f"{count}*{price}={cost}", f"{paid}-{cost}={paid - cost}"))


def _journey(rng: random.Random) -> WordProblem:
    name, speed, hours, rest = rng.choice(_NAMES), rng.randint(20, 90), rng.randint(2, 8), rng.randint(5, 95)
    first = speed * hours
    question = f"{name} drives {hours} hours at {speed} km per hour, then {rest} km more. How many kilometres is that?"
    return WordProblem(question, (f"{speed}*{hours}={first}", f"{first}+{rest}={first + rest}"))


def _sharing(rng: random.Random) -> WordProblem:
    name, thing, friends, each = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(2, 9), rng.randint(3, 20)
    total = friends * each
    first = rng.randint(1, total - 1)
    question = (
        f"{name} finds {first} {thing} in the morning and {total - first} in the afternoon and shares them equally "
        f"among {friends} friends. How many {thing} does each friend get?"
    )
    return WordProblem(question, (f"{first}+{total - first}={total}", f"{total}/{friends}={each}"))


def _saving(rng: random.Random) -> WordProblem:
    name, weekly, weeks, start = rng.choice(_NAMES), rng.randint(3, 25), rng.randint(3, 12), rng.randint(5, 60)
    saved = weekly * weeks
    spent = rng.randint(1, start + saved - 1)
    question = f"{name} has ${start}, saves ${weekly} a week for {weeks} weeks and spends ${spent}. How many dollars are left?"
    steps = (f"{weekly}*{weeks}={saved}", f"{start}+{saved}={start + saved}", f"{start + saved}-{spent}={start + saved - spent}")
    return WordProblem(question, steps)


_TEMPLATES: tuple[Callable[[random.Random], WordProblem], ...] = (_boxes, _change, _journey, _sharing, _saving)
