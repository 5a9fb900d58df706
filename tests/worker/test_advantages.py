"""Advantages against reference values and worked examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.worker import golden
from engine.worker.advantages import advantages

CASES = golden.fixture("advantages")["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_mode_agrees_with_the_reference(case: dict[str, Any]) -> None:
    for mode, expected in case["expected"].items():
        found = advantages(case["rewards"], mode)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-10, err_msg=mode)


def test_a_group_without_variance_gets_exactly_zero_whatever_float_noise_says() -> None:
    rewards = [[0.1 + 0.2, 0.3, 0.3], [1.0, 1.0, 1.0 - 1e-9]]
    for mode in ("group", "group_ddof0", "none", "batch", "rloo"):
        assert advantages(rewards, mode) == [[0.0] * 3, [0.0] * 3]


def test_a_missing_reward_moves_no_baseline() -> None:
    """[1, None, 0]: the mean of the two is .5, so none gives +.5, 0, -.5 and rloo 2/(2-1) times that."""
    assert advantages([[1.0, None, 0.0]], "none") == [[0.5, 0.0, -0.5]]
    assert advantages([[1.0, None, 0.0]], "rloo") == [[1.0, 0.0, -1.0]]
