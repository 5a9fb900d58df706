"""What a call of the rewards is given, and one total per completion from the parts that they gave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.types import Example


def columns_of(examples: Sequence[Example], known: Collection[str] = ()) -> dict[str, list[Any]]:
    """The data's columns as a reward gets them: examples[i] is the row that completion i replies to. Every column that some
    example has, or that is in `known`, is there, None where a row has none; `answer` is the reference."""
    names = sorted({name for example in examples for name in example.columns} | set(known))
    columns = {name: [example.columns.get(name) for example in examples] for name in names}
    return columns | {"answer": [example.answer for example in examples]}


def combine(
    parts: Sequence[Mapping[str, float | None]], failed: Sequence[bool], weights: Mapping[str, float]
) -> list[float | None]:
    """total[i] = sum of weights[name] * parts[i][name] over the parts that are not None: the reward as it is shown.

    A part that is None does not apply and is left out; where no part applies, and for a completion that failed, the
    total is None: such a completion is excluded from baseline and update, which a made-up 0 would distort. A process
    reward's part is the mean of its steps' values.
    """
    return outcomes(parts, failed, weights, ())


def outcomes(
    parts: Sequence[Mapping[str, float | None]],
    failed: Sequence[bool],
    weights: Mapping[str, float],
    process: Collection[str],
) -> list[float | None]:
    """The same sum without the parts named in `process`, whose values belong to single steps and not to the outcome.

    0.0 where process parts alone apply: the completion counts, by its steps. None where it failed or no part applies.
    """
    totals: list[float | None] = []
    for row, row_failed in zip(parts, failed, strict=True):
        applicable = {name: value for name, value in row.items() if value is not None}
        terms = [weights[name] * value for name, value in applicable.items() if name not in process]
        totals.append(sum(terms, 0.0) if applicable and not row_failed else None)
    return totals
