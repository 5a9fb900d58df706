"""Who gets the credit: from a step's rewards to the advantage of every completion and, where they differ, of every token.

Pure, in float64 on the host. Baselines of whole completions: advantages.py. What is left out: discounts and value models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.objective import Objective
from engine.types import Group
from engine.worker.advantages import SAME_REWARD, STD_EPSILON, advantages

Array = NDArray[np.float64]
OVERLONG = "overlong"  # the part under which soft overlong punishment is reported


def shaped(groups: Sequence[Group], objective: Objective, max_completion_tokens: int) -> list[Group]:
    """The groups with what length does to their rewards.

    soft_overlong  punishment(length) is added, as the part "overlong"                    DAPO 2503.14476 Eq. 13
    truncated      zero: a completion that was cut has the reward 0 (less that punishment) and no step rewards
    """
    out = []
    for group in groups:
        parts, steps = list(group.reward_parts), list(group.step_rewards)
        totals = [list(group.rewards), list(group.outcomes)]  # the latter is empty where there are no process rewards
        for member, rollout in enumerate(group.rollouts):
            if group.rewards[member] is None:
                continue
            cost = 0.0
            if objective.soft_overlong:
                cost = punishment(len(rollout.token_ids), max_completion_tokens, objective.soft_overlong)
                parts[member] = {**parts[member], OVERLONG: cost}
            zeroed = objective.truncated == "zero" and rollout.finish == "length"
            for total in totals:
                if total:
                    total[member] = (0.0 if zeroed else total[member] or 0.0) + cost
            if zeroed and steps:
                steps[member] = ()
        rewards, outcomes = map(tuple, totals)
        out.append(replace(group, reward_parts=tuple(parts), rewards=rewards, outcomes=outcomes, step_rewards=tuple(steps)))
    return out


def punishment(length: int, limit: int, share: float) -> float:
    """Soft overlong punishment of a completion of `length` tokens: 0 up to limit - cache, then falling linearly to -1 at `limit`,
    where cache = share x limit. DAPO 2503.14476 Eq. 13 (there 4,096 of 20,480 tokens: share 0.2)."""
    cache = share * limit
    return max(-1.0, min(0.0, (limit - cache - length) / cache))


def with_advantages(
    groups: Sequence[Group], objective: Objective, token_kl: Sequence[NDArray[np.floating]] | None = None
) -> list[Group]:
    """The groups with their advantages filled in.

    `token_kl` ([completions] of [C], old - ref, the k1 estimate; None: no KL in the reward) is charged to the reward: the sum
    over the completion, or for advantage "global" to each token what is still to come (REINFORCE++ 2501.03262).

    Process rewards (DeepSeekMath 2402.03300 Sec. 4.1.3): the values of all steps of the group are centred and scaled as
    `objective.advantage` does it with rewards, and a token's advantage is the sum over the steps that end at or after it.
    Rewards of whole completions are normalised apart from them, and added. A completion without a reward gets 0.
    """
    charged = None if token_kl is None else [objective.beta * np.asarray(kl, dtype=np.float64) for kl in token_kl]
    if objective.advantage == "global":
        return _whitened(groups, charged)
    sums = None if charged is None else [float(kl.sum()) for kl in charged]
    rewards, place = [], 0
    for group in groups:
        row: list[float | None] = []
        for outcome in group.outcomes or group.rewards:
            row.append(outcome if outcome is None or sums is None else outcome - sums[place])
            place += 1
        rewards.append(row)
    found = advantages(rewards, objective.advantage)
    pools = [_step_values(group) for group in groups]
    everything = np.concatenate([np.zeros(0), *pools])
    out = []
    for group, whole, pool in zip(groups, found, pools, strict=True):
        if not any(group.step_rewards):
            out.append(replace(group, advantages=tuple(whole), token_advantages=()))
            continue
        centre, scale = _step_scale(pool, everything, objective.advantage)
        tokens = []
        for value, rollout, reward, steps in zip(whole, group.rollouts, group.rewards, group.step_rewards, strict=True):
            normal = [] if reward is None else [(end, (one - centre) * scale) for end, one in steps]
            tokens.append(value + to_go(normal, len(rollout.token_ids)))
        out.append(_with_tokens(group, tokens))
    return out


def to_go(steps: Sequence[tuple[int, float]], length: int) -> Array:
    """For each of `length` tokens the sum of the values of the steps that end at or after it, [length]."""
    at_end = np.zeros(length)
    for end, value in steps:
        at_end[end] += value
    return np.cumsum(at_end[::-1])[::-1]


def _step_values(group: Group) -> Array:
    return np.array(
        [
            value
            for reward, steps in zip(group.rewards, group.step_rewards or [()] * len(group.rewards), strict=True)
            if reward is not None
            for _, value in steps
        ],
        dtype=np.float64,
    )


def _step_scale(pool: Array, everything: Array, mode: str) -> tuple[float, float]:
    """(centre, factor) for the step values of a group; factor 0 where they are all equal."""
    if len(pool) < 2 or np.ptp(pool) < SAME_REWARD:
        return 0.0, 0.0
    spread = {
        "group": lambda: float(np.std(pool, ddof=1)) + STD_EPSILON,
        "group_ddof0": lambda: float(np.std(pool)) + STD_EPSILON,
        "batch": lambda: float(np.std(everything, ddof=1)) + STD_EPSILON,
        "none": lambda: 1.0,
    }[mode]()
    return float(np.mean(pool)), 1 / spread


def _whitened(groups: Sequence[Group], charged: Sequence[Array] | None) -> list[Group]:
    """Returns to go, whitened over all tokens of the step: (R_it - mean) / (std + 1e-4), ddof 1. REINFORCE++ 2501.03262."""
    returns: list[list[Array | None]] = []
    place = 0
    for group in groups:
        row: list[Array | None] = []
        steps = group.step_rewards or ((),) * len(group.rollouts)
        for rollout, outcome, own in zip(group.rollouts, group.outcomes or group.rewards, steps, strict=True):
            length = len(rollout.token_ids)
            if outcome is None:
                row.append(None)
            else:
                cost = np.zeros(length) if charged is None else np.cumsum(charged[place][::-1])[::-1]
                row.append(outcome + to_go(own, length) - cost)
            place += 1
        returns.append(row)
    present = [value for row in returns for value in row if value is not None]
    every = np.concatenate([np.zeros(0), *present])
    signal = len(every) > 1 and np.ptp(every) >= SAME_REWARD
    mean, factor = (float(np.mean(every)), 1 / (float(np.std(every, ddof=1)) + STD_EPSILON)) if signal else (0.0, 0.0)
    return [
        _with_tokens(
            group,
            [
                np.zeros(len(rollout.token_ids)) if value is None else (value - mean) * factor
                for rollout, value in zip(group.rollouts, row, strict=True)
            ],
        )
        for group, row in zip(groups, returns, strict=True)
    ]


def _with_tokens(group: Group, tokens: Sequence[Array]) -> Group:
    """The group with token advantages, which are left out where every completion's are all the same."""
    means = tuple(float(value.mean()) if len(value) else 0.0 for value in tokens)
    if all(np.ptp(value) == 0 for value in tokens if len(value)):
        return replace(group, advantages=tuple(float(value[0]) if len(value) else 0.0 for value in tokens), token_advantages=())
    return replace(group, advantages=means, token_advantages=tuple(tuple(map(float, value)) for value in tokens))


def advantages_of(group: Group) -> Sequence[float | tuple[float, ...]]:
    """[G]: of each completion, or of each of its tokens where these differ."""
    return group.token_advantages or group.advantages


def top_entropy(values: Sequence[NDArray[np.floating]], share: float) -> float:
    """The entropy that the `share` of all tokens with the highest reach at least (2506.01939, Sec. 5: the batch's quantile)."""
    return float(np.quantile(np.concatenate([np.zeros(0), *values]), 1 - share))
