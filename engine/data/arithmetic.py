"""Synthetic arithmetic for the embedded demo model.

A problem is a short chain of additions and subtractions, such as `24+17-9`.
Two imitated solvers write completions for it:

* the *hasty* solver answers at once and is mostly wrong;
* the *careful* solver works inside `<think>` and is always right.

A model trained on a mix in which the hasty solver is the more frequent one
answers at once when decoded greedily, and is mostly wrong; reinforcement
learning with the answer alone as its reward discovers that thinking pays.

Everything here is a pure function of its arguments: each problem belongs to
exactly one split, decided by a hash of its text, so that the splits are
disjoint whatever the number of rows and the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypedDict

Split = Literal["sft", "train", "heldout"]

#: Every operand, intermediate result and answer has two digits.
SMALLEST, LARGEST = 10, 99
#: Share of the problems that have two operands; the others have three.
TWO_OPERAND_SHARE = 0.2
#: Share of the fine-tuning rows that the hasty solver writes.
HASTY_SHARE = 0.7
#: How often the hasty solver's answer is right.
HASTY_ACCURACY = 0.2
#: The hasty solver's wrong answers are off by 1 up to this.
HASTY_MISS = 9

_HELDOUT_PERCENT = 5
_TRAIN_PERCENT = 15


class SftRow(TypedDict):
    """One row of supervised fine-tuning data."""

    prompt: str
    completion: str


class RlRow(TypedDict):
    """One row of reinforcement-learning data."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Problem:
    """A chain of additions and subtractions, evaluated from left to right.

    `terms` are the signed operands: `24+17-9` is `(24, 17, -9)`.
    """

    terms: tuple[int, ...]

    @property
    def expression(self) -> str:
        """The problem as written, such as `24+17-9`."""
        return str(self.terms[0]) + "".join(f"{term:+d}" for term in self.terms[1:])

    @property
    def prompt(self) -> str:
        """The question put to the model."""
        return f"What is {self.expression}?"

    @property
    def answer(self) -> int:
        """The correct result."""
        return sum(self.terms)

    @property
    def working(self) -> str:
        """The result worked out with the tens, then the ones, of each operand.

        `24+17` is worked as `24+10=34+7=41`.
        """
        value = self.terms[0]
        written = str(value)
        for term in self.terms[1:]:
            sign = 1 if term > 0 else -1
            tens, ones = abs(term) // 10 * 10, abs(term) % 10
            for part in (tens, ones):
                value += sign * part
                written += f"{'+' if term > 0 else '-'}{part}={value}"
        return written

    @property
    def split(self) -> Split:
        """The one split this problem belongs to, by a hash of its text."""
        digest = hashlib.blake2b(self.expression.encode(), digest_size=8).digest()
        percent = int.from_bytes(digest, "big") % 100
        if percent < _HELDOUT_PERCENT:
            return "heldout"
        if percent < _HELDOUT_PERCENT + _TRAIN_PERCENT:
            return "train"
        return "sft"


def draw_problem(rng: random.Random) -> Problem:
    """Draw a problem whose operands and partial results all have two digits."""
    operations = 1 if rng.random() < TWO_OPERAND_SHARE else 2
    value = rng.randint(SMALLEST, LARGEST)
    terms = [value]
    for _ in range(operations):
        addable, subtractable = LARGEST - value, value - SMALLEST
        add = addable >= SMALLEST and (subtractable < SMALLEST or rng.random() < 0.5)
        size = rng.randint(SMALLEST, addable if add else subtractable)
        terms.append(size if add else -size)
        value += terms[-1]
    return Problem(tuple(terms))


def draw_problems(split: Split, rng: random.Random) -> Iterator[Problem]:
    """Draw problems of one split without end; they may repeat."""
    while True:
        problem = draw_problem(rng)
        if problem.split == split:
            yield problem


def distinct_problems(split: Split, n: int, rng: random.Random) -> list[Problem]:
    """The first `n` different problems of `split` that `rng` draws."""
    chosen: dict[str, Problem] = {}
    for problem in draw_problems(split, rng):
        if len(chosen) >= n:
            break
        chosen.setdefault(problem.expression, problem)
    return list(chosen.values())


def hasty_completion(problem: Problem, rng: random.Random) -> str:
    """Answer at once: right with probability `HASTY_ACCURACY`, else a near miss."""
    answer = problem.answer
    if rng.random() >= HASTY_ACCURACY:
        lowest, highest = max(SMALLEST, answer - HASTY_MISS), min(LARGEST, answer + HASTY_MISS)
        nearby = range(lowest, highest + 1)
        answer = rng.choice([guess for guess in nearby if guess != answer])
    return f"<answer>{answer}</answer>"


def careful_completion(problem: Problem) -> str:
    """Work the problem inside `<think>`, then give the correct answer."""
    return f"<think>{problem.working}</think><answer>{problem.answer}</answer>"


def sft_rows(n: int, seed: int) -> list[SftRow]:
    """Return `n` rows of the two solvers' mixed work on the `sft` split."""
    rng = random.Random(f"sft:{seed}")
    rows: list[SftRow] = []
    for problem in islice(draw_problems("sft", rng), n):
        if rng.random() < HASTY_SHARE:
            completion = hasty_completion(problem, rng)
        else:
            completion = careful_completion(problem)
        rows.append({"prompt": problem.prompt, "completion": completion})
    return rows


def rl_rows(split: Split, n: int, seed: int) -> list[RlRow]:
    """Return `n` different problems of `split`, each with its answer."""
    problems = distinct_problems(split, n, random.Random(f"{split}:{seed}"))
    return [{"prompt": p.prompt, "answer": str(p.answer)} for p in problems]


def careful_rows(split: Split, n: int, seed: int) -> list[SftRow]:
    """`n` different problems of `split`, each with the careful solver's work."""
    problems = distinct_problems(split, n, random.Random(f"careful:{seed}"))
    return [{"prompt": p.prompt, "completion": careful_completion(p)} for p in problems]
