"""Exponentials by powers of two: as exact as mlx's own, on either way."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.worker import exponential


@pytest.mark.parametrize("by_power", [False, True])
def test_both_ways_are_the_exponential(by_power: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative error: float32's last place is 6e-8, and an argument of 80 that is rounded by half of its own last place (4e-6)
    moves the exponential by as much."""
    monkeypatch.setattr(exponential, "power_is_faster", lambda: by_power)
    x = np.linspace(-80, 5, 100_001, dtype=np.float32)
    found = np.array(exponential.exp(mx.array(x))).astype(np.float64)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=1e-5)
    ends = np.array(exponential.exp(mx.array([-np.inf, 0.0, -1e9])))
    assert ends.tolist() == [0.0, 1.0, 0.0]


def test_a_gpu_takes_mlxs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exponential.platform, "machine", lambda: "arm64")
    assert not exponential.power_is_faster()
    monkeypatch.setattr(exponential.platform, "machine", lambda: "x86_64")
    assert exponential.power_is_faster() is (mx.default_device().type == mx.DeviceType.cpu)
