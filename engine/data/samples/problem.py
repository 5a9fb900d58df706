"""A sample problem before it has a format, and what the templates of every topic are written with.

A template draws numbers and writes the problem around them. Values are exact (int, Fraction, date); a result is rounded in one
place alone, at the end, as the question asks, and a draw that would end in a tie there is thrown away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from engine.data import chains
from engine.errors import InputError

_MANY_DECIMALS = 12
_DRAWS_PER_ROW, _DRAWS = 20, 1000
SMALL_CHANGE = Fraction(1, 10)  # of the answer: a step that changes it by less is marked 0.5

NAMES = (
    *("Ada", "Bruno", "Carla", "Dilan", "Emma", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Luis", "Mia", "Nora"),
    *("Oskar", "Paula", "Quentin", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Yusuf", "Zoe", "Amara", "Bela", "Chiara"),
)


class Redraw(Exception):
    """The numbers drawn make no good problem: a tie where a result is rounded, nothing that decides, an amount below zero."""


@dataclass(frozen=True, slots=True)
class Step:
    """A sentence with its arithmetic, whose last number is its result; `mark` is how much the answer hinges on it, 0 to 1."""

    text: str
    mark: float = 0.0


@dataclass(frozen=True, slots=True)
class Domain:
    """What a problem of a domain says of itself. `terms` and `units` are what its reward looks for in a reply."""

    name: str
    level: str
    terms: tuple[str, ...]
    units: tuple[str, ...]  # spellings of the answer's unit; empty where the answer has none
    conventions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with the steps to its answer. `solution` is a sentence that ends in the answer."""

    question: str
    steps: tuple[Step, ...]
    answer: str
    solution: str
    domain: Domain | None = None
    written: str = ""  # the completion, where it is not laid out as a chain

    @property
    def chain(self) -> list[str]:
        """The steps' texts."""
        return [step.text for step in self.steps]

    @property
    def completion(self) -> str:
        """What supervised training imitates: the steps inside <think>, then the answer."""
        return self.written or chains.render(self.chain, self.solution, self.answer)


@dataclass(frozen=True, slots=True)
class Field:
    """What the problems of one field have in common."""

    name: str
    levels: tuple[str, ...]  # of which each problem draws one

    def problem(
        self,
        rng: random.Random,
        question: str,
        steps: list[Step],
        answer: str,
        solution: str,
        terms: tuple[str, ...],
        units: tuple[str, ...],
        *conventions: str,
    ) -> Problem:
        """A problem of the field; `solution` is the beginning of the sentence that ends in the answer, `conventions` say what
        is usual."""
        domain = Domain(self.name, rng.choice(self.levels), terms, units, conventions)
        return Problem(question, tuple(steps), answer, f"{solution} {answer}.", domain)


def unmarked(question: str, steps: Sequence[str], answer: str, solution: str) -> Problem:
    """A problem outside the domains whose steps are all alike."""
    return Problem(question, tuple(Step(step) for step in steps), answer, solution)


def decided(question: str, steps: Sequence[Step], answer: str, solution: str) -> Problem:
    """A problem of which some steps decide and some do not; Redraw where these numbers make them alike."""
    require(any(step.mark for step in steps) and not all(step.mark for step in steps))
    return Problem(question, tuple(steps), answer, solution)


Template = Callable[[random.Random], Problem]


def distinct(templates: Sequence[Template], count: int, rng: random.Random, topic: str) -> list[Problem]:
    """The first `count` different problems that `rng` draws. InputError where the templates do not have so many."""
    chosen: dict[str, Problem] = {}
    for _ in range(_DRAWS_PER_ROW * count + _DRAWS):
        problem = _drawn(rng.choice(templates), rng)
        chosen.setdefault(problem.question, problem)
        if len(chosen) == count:
            return list(chosen.values())
    raise InputError(f"{topic} has no {count} different problems", where="rows", remedy=f"ask for {len(chosen)} or fewer")


def _drawn(template: Template, rng: random.Random) -> Problem:
    """The template's next good problem, so that each template has the same share of a file."""
    while True:
        try:
            return template(rng)
        except Redraw:
            continue


def hinges(answer: Fraction | int, without: Fraction | int) -> float:
    """The mark of a step: what becomes of the answer for a reader who passes the step over.

    `without` is that reader's answer: no conversion made, no threshold looked at, the more obvious formula taken. 0 where it
    is the same, 0.5 where it is off by less than a tenth, else 1.
    """
    if without == answer:
        return 0.0
    return 0.5 if abs(Fraction(without) - answer) < SMALL_CHANGE * abs(Fraction(answer)) else 1.0


def require(condition: bool) -> None:
    """Redraw unless the condition holds."""
    if not condition:
        raise Redraw


def show(value: Fraction | int) -> str:
    """The value in decimal digits, all of them. ValueError where they have no end."""
    exact = Fraction(value)
    for places in range(_MANY_DECIMALS + 1):
        if (exact * 10**places).denominator == 1:
            return _digits(exact, places)
    raise ValueError(f"{exact} has no end in decimals")


def money(value: Fraction | int) -> str:
    """As show, with two decimals where there is one."""
    digits = show(value)
    return f"{digits}0" if digits[-2:-1] == "." else digits


def fixed(value: Fraction | int, places: int) -> str:
    """The value rounded to that many decimals, all of them written. Redraw where it lies half-way between two."""
    scaled = Fraction(value) * 10**places
    require((2 * scaled).denominator != 1 or scaled.denominator == 1)
    return _digits(Fraction(round(scaled), 10**places), places)


def near(value: Fraction | int, places: int) -> str:
    """`= 2.5` or, where it had to be rounded, `≈ 2.5`."""
    digits = fixed(value, places)
    return f"{'=' if Fraction(digits) == value else '≈'} {digits}"


def tenths(rng: random.Random, low: int, high: int) -> Fraction:
    """A number from low to high with at most one decimal."""
    return Fraction(rng.randint(10 * low, 10 * high), 10)


def hundredths(rng: random.Random, low: int, high: int) -> Fraction:
    """A number from low to high with at most two decimals, such as a price."""
    return Fraction(rng.randint(100 * low, 100 * high), 100)


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _digits(value: Fraction, places: int) -> str:
    sign = "-" if value < 0 else ""
    whole, rest = divmod(abs(value) * 10**places, 10**places)
    return f"{sign}{whole}.{int(rest):0{places}d}" if places else f"{sign}{whole}"
