"""How a GGUF file stretches rotary embeddings, in the words of config.json.

Files of Llama 3.1 and later carry no parameters but the result: a divisor for each frequency. The parameters are those that
give these divisors; where none do, the file is refused. Left out: longrope, which none of the families has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engine.gguf.header import GgufHeader

DIVISORS = "rope_freqs.weight"  # the tensor
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of every Llama 3
_TOLERANCE = 1e-4  # relative; the divisors are float32


def scaling(header: GgufHeader, base: float, divisors: Sequence[float] | None) -> dict[str, Any] | None:
    """config.json's rope_scaling; None for none. `divisors` are the numbers of the tensor DIVISORS. Raises InputError."""
    prefix = f"{header.architecture}.rope.scaling"
    kind = header.text(f"{prefix}.type", "none")
    if kind == "none" and f"{header.architecture}.rope.scale_linear" in header.metadata:  # what files of 2023 say
        kind, factor = "linear", header.number(f"{header.architecture}.rope.scale_linear")
    else:
        factor = 1.0 if kind == "none" else header.number(f"{prefix}.factor")
    if kind not in ("none", "linear", "yarn"):
        raise header.refuse(f"scales rotary embeddings by {kind!r}; linear, yarn and llama3 are read", "take another model")
    if kind != "none" and header.number(f"{prefix}.attn_factor", 1.0) != 1.0:
        raise header.refuse("scales attention by rope.scaling.attn_factor, which mlx_lm does not", "take another model")
    if divisors is not None:
        if kind != "none":
            raise header.refuse(f"has {DIVISORS} and {kind} scaling too", "convert the model again with a current converter")
        return _llama3(header, base, divisors)
    if kind == "linear" and factor != 1.0:
        return {"type": "linear", "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        found = {"type": "yarn", "rope_type": "yarn", "factor": factor}
        found["original_max_position_embeddings"] = header.integer(f"{prefix}.original_context_length")
        for name in ("beta_fast", "beta_slow"):
            if f"{prefix}.yarn_{name}" in header.metadata:
                found[name] = header.number(f"{prefix}.yarn_{name}")
        return found
    return None


def _llama3(header: GgufHeader, base: float, divisors: Sequence[float]) -> dict[str, Any] | None:
    largest = max(divisors, default=1.0)
    if all(divisor == 1.0 for divisor in divisors):
        return None
    factor = float(round(largest)) if largest >= 1.0 and math.isfinite(largest) else 1.0
    found = {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    expected = llama3_divisors(2 * len(divisors), base, factor)
    if any(not math.isclose(own, other, rel_tol=_TOLERANCE) for own, other in zip(divisors, expected, strict=True)):
        raise header.refuse(f"{DIVISORS} holds no scaling that is known (that of Llama 3 is)", "take another model")
    return found


def llama3_divisors(head_dim: int, base: float, factor: float) -> list[float]:
    """What each frequency is divided by, as transformers computes it for Llama 3 (modeling_rope_utils.py)."""
    low, high, original = (float(value) for value in _LLAMA3.values())
    found = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (index / head_dim)
        if wavelength < original / high:
            found.append(1.0)
        elif wavelength > original / low:
            found.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found
