"""The weighted sum of reward parts."""

from __future__ import annotations

from engine.rewards.combine import combine, outcomes


def test_weighted_sum() -> None:
    """Row 0: 1.0 x 1 + 0.2 x 0.5 = 1.1. Row 1: only `format` applies: 0.2 x 1 = 0.2. Row 2: 1.0 x 0 + 0.2 x -1 = -0.2."""
    parts: list[dict[str, float | None]] = [
        {"answer": 1.0, "format": 0.5},
        {"answer": None, "format": 1.0},
        {"answer": 0.0, "format": -1.0},
    ]
    assert combine(parts, [False] * 3, {"answer": 1.0, "format": 0.2}) == [1.1, 0.2, -0.2]


def test_a_failed_row_has_no_total_whatever_its_other_parts_say() -> None:
    assert combine([{"a": 1.0, "b": None}, {"a": 1.0, "b": 1.0}], [True, False], {"a": 1.0, "b": 1.0}) == [None, 2.0]


def test_a_row_without_an_applicable_part_has_no_total() -> None:
    assert combine([{"a": None}, {"a": 0.0}], [False, False], {"a": 1.0}) == [None, 0.0]


def test_no_rows() -> None:
    assert combine([], [], {"a": 1.0}) == []


def test_outcomes_leave_process_parts_out() -> None:
    """Row 0: 1.0 x 1 without the process part. Row 1: the process part alone applies: 0. Rows 2 and 3: nothing; failed."""
    parts: list[dict[str, float | None]] = [
        {"answer": 1.0, "chain": 0.5},
        {"answer": None, "chain": 0.5},
        {"answer": None, "chain": None},
        {"answer": 1.0, "chain": None},
    ]
    failed, weights = [False, False, False, True], {"answer": 1.0, "chain": 2.0}
    assert outcomes(parts, failed, weights, {"chain"}) == [1.0, 0.0, None, None]
    assert outcomes(parts, failed, weights, ()) == combine(parts, failed, weights) == [2.0, 1.0, None, None]
