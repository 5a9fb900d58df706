"""One total per completion from the parts that its rewards gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def combine(
    parts: Sequence[Mapping[str, float | None]], failed: Sequence[bool], weights: Mapping[str, float]
) -> list[float | None]:
    """total[i] = sum of weights[name] * parts[i][name] over the parts that are not None.

    A part that is None does not apply and is left out; where no part applies, and for a completion that failed, the
    total is None: such a completion is excluded from baseline and update, which a made-up 0 would distort.
    """
    totals: list[float | None] = []
    for row, row_failed in zip(parts, failed, strict=True):
        terms = [weights[name] * value for name, value in row.items() if value is not None]
        totals.append(sum(terms) if terms and not row_failed else None)
    return totals
