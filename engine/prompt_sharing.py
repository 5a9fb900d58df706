"""When the completions of one prompt hold its keys and values together while they decode, and when each has a copy.

Together they take less memory and read less; a layer then takes some ten small operations instead of one fused kernel. On a CPU
there is no fused kernel, and sharing is faster for every size that was measured (`droid-tune bench rollout`). On a GPU it is done
where what need not be read for one token is more than what those operations cost; that bound is reasoned, not measured.
"""

from __future__ import annotations

from typing import Literal

Asked = Literal["auto"] | bool
GPU_BYTES = 16 * 1024**2  # of a layer: at 400 GB/s read in 42 microseconds, the time of some ten small kernels


def shares_prompts(asked: Asked, on_cpu: bool, saved_bytes: int) -> bool:
    """Whether prompts are shared where the model allows it. `saved_bytes`: of the keys and values of one layer that are then
    neither held nor read."""
    if asked != "auto":
        return asked
    return saved_bytes > 0 if on_cpu else saved_bytes >= GPU_BYTES


def saved_bytes(prompt_tokens: int, group_size: int, token_bytes: int) -> int:
    """Of one layer: the copies of prompts that completions after the first need not have. `token_bytes`: keys and values of a
    token in that layer."""
    return (group_size - 1) * prompt_tokens * token_bytes
