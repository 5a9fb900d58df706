"""From rewards to advantages, in float64 on the host.

What is left out, and why: no running baseline and no value model; the group is the baseline in every mode here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.objective import Advantage

STD_EPSILON = 1e-4  # added to the standard deviation outside the root, as TRL does (the papers fix none)
SAME_REWARD = 1e-8  # rewards that differ by less are one value: dividing their noise would make it an advantage


def advantages(rewards: Sequence[Sequence[float | None]], mode: Advantage) -> list[list[float]]:
    """One advantage per completion: `rewards` [groups][G] -> [groups][G].

    A None reward is excluded: it moves no baseline and its own advantage is 0. A group with fewer than two rewards, or
    whose rewards are all equal, gets exactly 0 in every mode.

    group        (r - mean) / (std + 1e-4), std with ddof 1     DeepSeekMath 2402.03300, Sec. 4.1.2
    group_ddof0  the same with ddof 0
    none         r - mean                                       Dr. GRPO 2503.20783, Sec. 3.1
    batch        (r - mean) / (std of all raw rewards + 1e-4)   Lite PPO 2508.08221
    rloo         r - mean of the other rewards                  RLOO 2402.14740

    `global` has no group baseline and needs every completion's length: credit.with_advantages.
    """
    if mode == "global":
        raise ValueError("advantages over the whole batch are credit.with_advantages's affair")
    valid = [[r for r in group if r is not None] for group in rewards]
    everything = [r for group in valid for r in group]
    batch_std = float(np.std(everything, ddof=1)) if len(everything) > 1 else 0.0
    return [_group(group, present, mode, batch_std) for group, present in zip(rewards, valid, strict=True)]


def has_signal(rewards: Sequence[float | None]) -> bool:
    """Whether a group's rewards differ at all, so that its advantages are not all zero."""
    present = [r for r in rewards if r is not None]
    return len(present) > 1 and max(present) - min(present) >= SAME_REWARD


def _group(group: Sequence[float | None], present: list[float], mode: Advantage, batch_std: float) -> list[float]:
    if not has_signal(group):
        return [0.0] * len(group)
    count, mean = len(present), float(np.mean(present))
    scale = {
        "group": lambda: 1 / (float(np.std(present, ddof=1)) + STD_EPSILON),
        "group_ddof0": lambda: 1 / (float(np.std(present)) + STD_EPSILON),
        "none": lambda: 1.0,
        "batch": lambda: 1 / (batch_std + STD_EPSILON),
        "rloo": lambda: count / (count - 1),
    }[mode]()
    return [0.0 if r is None else (r - mean) * scale for r in group]
