"""What mlx says of the device, and how fast a float32 matrix product runs on it (measured, not looked up)."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx

_SHAPE = (256, 576, 1536)  # a small model's feed-forward layer
_REPEATS = 20


def device() -> tuple[str, str | None]:
    """The default device: gpu or cpu, and its name where mlx tells it."""
    info = mx.device_info()
    kind = "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"
    name = info.get("device_name") or info.get("architecture")
    return kind, None if name is None else str(name)


def facts() -> dict[str, Any]:
    """Device, backends, memory sizes in bytes (None where mlx does not tell) and GFLOP/s of a float32 product 256x576x1536."""
    info = mx.device_info()
    rows, inner, columns = _SHAPE
    a, b = mx.random.normal((rows, inner)), mx.random.normal((inner, columns))
    mx.eval(a @ b)
    start = time.perf_counter()
    for _ in range(_REPEATS):
        mx.eval(a @ b)
    seconds = (time.perf_counter() - start) / _REPEATS
    kind, name = device()
    return {
        "device": kind,
        "name": name,
        "metal": mx.metal.is_available(),
        "cuda": mx.cuda.is_available(),
        "memory_size": info.get("memory_size"),
        "max_recommended_working_set_size": info.get("max_recommended_working_set_size"),
        "matmul_gflops": 2 * rows * inner * columns / seconds / 1e9,
    }
