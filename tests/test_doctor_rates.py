"""The rates that `doctor` shows: of the largest product and of the most memory that were measured."""

from __future__ import annotations

from engine.cli.doctor import measured_rates, rates_line
from engine.machine_rates import Rates


def test_the_largest_product_and_the_most_memory_are_shown() -> None:
    """Products of 2,048 rows with a width of 1,024: 90 GFLOP/s; the 96 MiB that were used in turn: 12.5 GB/s."""
    by_width = {16: {1: 1e9, 2048: 2e9}, 1024: {1: 3e9, 2048: 90e9}}
    rates = Rates({4: by_width}, {1: 1e9}, {4 << 20: 1e12, 96 << 20: 12.5e9}, {"plain": 1e9}, 1e-6, 1e8, measured_t=1.7e9)
    assert measured_rates(rates) == {"matmul_gflops": {"float32": 90.0}, "memory_gb_per_second": 12.5, "measured_t": 1.7e9}
    assert "90 GFLOP/s in float32; memory 12.5 GB/s" in rates_line(rates) and rates_line(rates).startswith("rates of 2023-11-1")
    assert measured_rates(None) is None and "not measured yet" in rates_line(None)
