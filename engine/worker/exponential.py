"""Powers of two in place of exponentials where that is faster.

On a CPU without vectorised mathematics (mlx's build for Linux on x86) mlx's `exp` takes 18 ns a number and `power` 9, so
exp(x) is computed as 2 ** (x log2 e) there; elsewhere it is mlx's own. Off by a few units of float32's last place times |x|.
"""

from __future__ import annotations

import math
import platform

import mlx.core as mx

LOG2_E = math.log2(math.e)


def power_is_faster() -> bool:
    """Whether this device computes 2 ** x faster than exp(x)."""
    return mx.default_device().type == mx.DeviceType.cpu and platform.machine() in ("x86_64", "AMD64")


def exp(x: mx.array) -> mx.array:
    """e ** x, elementwise, for float32."""
    return mx.power(2.0, x * LOG2_E) if power_is_faster() else mx.exp(x)
