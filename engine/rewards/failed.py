"""What a built-in reward returns for a completion that it could not score: no number and no None, for the reason is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The completion is excluded, counted, and reported."""

    why: str  # the same text for all completions with the same fault
    detail: str = ""  # what is this completion's own
    is_row_fault: bool = False  # the row of the data is at fault, whatever the completion says


def by_row(column: str, score: Callable[..., float | None], *rows: Iterable[Any]) -> list[float | Failed | None]:
    """score(*row) of every row; Failed for a row whose `column` it cannot use, which it says by ValueError: one bad row of the
    data must not cost the others their rewards."""
    scores: list[float | Failed | None] = []
    for row in zip(*rows, strict=True):
        try:
            scores.append(score(*row))
        except ValueError as error:
            scores.append(Failed(f"its {column} cannot be used", str(error), is_row_fault=True))
    return scores
