"""What a step of rewards measured: its rollouts' rewards and lengths, its updates' statistics. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.objective import Objective
from engine.types import Group, StepMetrics
from engine.worker.credit import advantages_of
from engine.worker.rewarding import mean, part_means
from engine.worker.rollouts import teaches
from engine.worker.work import StepWork


def step_metrics(work: StepWork, objective: Objective, weights: Mapping[str, float]) -> StepMetrics:
    """The metrics of a finished step, without seconds.total and bytes. Rewards, lengths and shares cover every rollout of the
    step, those that dynamic sampling replaced included; the updates' figures the rollouts that were trained on."""
    sampled = [*work.groups, *work.discarded]
    rollouts = [rollout for group in sampled for rollout in group.rollouts]
    rewards = [reward for group in sampled for reward in group.rewards if reward is not None]
    tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    applied = [update for update in work.updates if update.applied]
    shown = applied or work.updates  # where none was applied, their figures say why
    total = {name: sum(update.stats[name] for update in shown) for name in shown[0].stats}
    first, later = work.updates[0].stats, [update.stats for update in shown if update is not work.updates[0]]
    moved = [update.moved for update in applied if update.moved is not None]
    in_loss = bool(objective.beta) and objective.kl_in == "loss"
    return StepMetrics(
        step=work.step,
        loss=float(np.mean([update.loss for update in shown])),
        grad_norm=float(np.mean([update.grad_norm for update in shown])),
        lr=work.updates[-1].lr,
        updates=len(work.updates),
        tokens=tokens,
        reward=mean(rewards),
        reward_std=float(np.std(rewards, ddof=1)) if len(rewards) > 1 else None,
        reward_min=min(rewards, default=None),
        reward_max=max(rewards, default=None),
        parts=part_means(sampled),
        parts_spread=parts_spread(sampled, weights),
        length=tokens / len(rollouts),
        truncated=mean([float(rollout.finish == "length") for rollout in rollouts]),
        zero_std_groups=sum(not teaches(group) for group in sampled),
        groups=len(sampled),
        excluded=sum(reward is None for group in sampled for reward in group.rewards),
        dropped=_dropped(work.groups, objective),
        masked=_masked(work.groups) if objective.truncated == "mask" else None,
        refills=work.refills if objective.dynamic_sampling else None,
        discarded=len(work.discarded) if objective.dynamic_sampling else None,
        entropy=-sum(sum(rollout.logprobs) for rollout in rollouts) / tokens,
        kl=_ratio(total["kl"], total["tokens"]) if in_loss else work.kl,
        ratio=_ratio(total["ratio"], total["units"]),
        ratio_gap_first=_ratio(first["ratio_gap"], first["units"]),
        ratio_gap_later=_ratio(sum(one["ratio_gap"] for one in later), sum(one["units"] for one in later)),
        clip_low=_ratio(total["clip_low"], total["units"]),
        clip_high=_ratio(total["clip_high"], total["units"]),
        # the first update's: the sampler's own policy, which later ones have moved on from
        mismatch=_ratio(first["mismatch"], first["tokens"]),
        mismatch_kl=_ratio(first["mismatch_kl"], first["tokens"]),
        tis=_ratio(total["tis"], total["tokens"]) if objective.tis != "off" else None,
        moved=min(moved) if moved else None,
        skipped=len(work.updates) - len(applied),
        seconds=work.seconds,
    )


def parts_spread(groups: Sequence[Group], weights: Mapping[str, float]) -> dict[str, float | None]:
    """By reward: |weight| x the deviation within groups, sqrt(mean over groups of the part's variance, ddof 0). That is what the
    part adds to the signal; a part's mean adds nothing. None where no group has two values of it."""
    names = dict.fromkeys(name for group in groups for part in group.reward_parts for name in part)
    found: dict[str, float | None] = {}
    for name in names:
        variances = []
        for group in groups:
            values = [value for part in group.reward_parts if (value := part.get(name)) is not None]
            if len(values) > 1:
                variances.append(float(np.var(values)))
        found[name] = abs(weights.get(name, 1.0)) * float(np.sqrt(np.mean(variances))) if variances else None
    return found


def _dropped(groups: Sequence[Group], objective: Objective) -> int:
    """Completions with a reward that are left out because their advantage is 0; masked ones are counted as such."""
    if objective.trains_all:
        return 0
    masks = objective.truncated == "mask"
    return sum(
        reward is not None and not np.any(advantage) and not (masks and rollout.finish == "length")
        for group in groups
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, advantages_of(group), strict=True)
    )


def _masked(groups: Sequence[Group]) -> int:
    return sum(
        reward is not None and rollout.finish == "length"
        for group in groups
        for reward, rollout in zip(group.rewards, group.rollouts, strict=True)
    )


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
