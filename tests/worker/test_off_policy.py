"""Several updates on one rollout: where GSPO and GRPO part, and that on the first update they do not.

Real rollouts, rewards fixed beforehand, real updates (RewardTask and Trainer) on a tiny policy. What is compared is the gradient
of the same groups at the same weights, with one part of the objective exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from engine.objective import Objective
from engine.worker.model import Policy
from engine.worker.step import RewardTask
from engine.worker.work import StepWork

from .step_bench import Bench, nudged, take_update, trainer_of, watch

FOUR = {"objective__minibatches": 4, "objective__updates_per_rollout": 1}


def gradient(task: RewardTask, work: StepWork, objective: Objective) -> dict[str, mx.array]:
    """Of the coming update, under another objective."""
    kept = task.objective
    task.objective = objective
    try:
        batches = task.batches(work)
        grads = nn.value_and_grad(task.policy.model, lambda: sum((task.loss(one)[0] for one in batches), mx.zeros(())))()[1]
        return dict(tree_flatten(grads))
    finally:
        task.objective = kept


def norm(arrays: dict[str, mx.array]) -> float:
    return math.sqrt(sum(float(mx.square(value).sum().item()) for value in arrays.values()))


def apart(one: dict[str, mx.array], other: dict[str, mx.array]) -> float:
    """|one - other| / |one|."""
    return norm({name: value - other[name] for name, value in one.items()}) / norm(one)


def grpo_of(gspo: Objective) -> Objective:
    return replace(gspo, ratio="token", epsilon_low=0.2, epsilon_high=0.2)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_gspo_and_grpo_part_after_the_first_of_four_mini_batches(
    make_policy: Callable[..., Policy], bench: Bench, kind: str
) -> None:
    """Before the first update the policy is the rollout's: one gradient, to 1e-5 (`old` was scored in other batches, so ratios
    are 1 but for rounding). Before each later one they differ by more than 1e-3, and not by GSPO's narrow clip alone: with
    GRPO's epsilons they differ too."""
    task = bench.task(nudged(make_policy(kind)), **FOUR | {"method": "gspo"})
    gspo, trainer = task.objective, trainer_of(task)
    wide = replace(gspo, epsilon_low=0.2, epsilon_high=0.2)
    work = task.begin(1, watch())
    distances = []
    while len(work.updates) < 4:
        grpo = gradient(task, work, grpo_of(gspo))
        assert norm(grpo) > 1e-3
        distances.append((apart(grpo, gradient(task, work, gspo)), apart(grpo, gradient(task, work, wide))))
        take_update(task, trainer, work)
    assert max(distances[0]) < 1e-5
    assert min(min(pair) for pair in distances[1:]) > 1e-3


@pytest.mark.parametrize("method", ["gspo", "gspo_token"])
def test_on_the_policy_they_are_one_algorithm(make_policy: Callable[..., Policy], bench: Bench, method: str) -> None:
    """One update: `old` is the policy itself, nothing is scored, and the gradients are equal to 1e-6. The update, too."""
    task = bench.task(nudged(make_policy("lora")), **FOUR | {"method": method, "objective__minibatches": 1})
    work = task.begin(1, watch())
    assert work.old is None
    assert apart(gradient(task, work, grpo_of(task.objective)), gradient(task, work, task.objective)) < 1e-6
    result = take_update(task, trainer_of(task), work)
    assert result.stats["clip_low"] == result.stats["clip_high"] == result.stats["ratio_gap"] == 0
    metrics = task.metrics(work)
    assert (metrics.ratio, metrics.ratio_gap_first, metrics.ratio_gap_later) == (pytest.approx(1), 0, None)


def run(make_policy: Callable[..., Policy], bench: Bench, **overrides: Any) -> StepWork:
    """A whole step, and its metrics' agreement with the updates."""
    task = bench.task(nudged(make_policy("lora")), **FOUR | overrides)
    trainer = trainer_of(task)
    work = task.begin(1, watch())
    while len(work.updates) < task.updates_per_step:
        take_update(task, trainer, work)
    metrics = task.metrics(work)
    units = sum(update.stats["units"] for update in work.updates)
    for side in ("clip_low", "clip_high"):
        assert getattr(metrics, side) == pytest.approx(sum(update.stats[side] for update in work.updates) / units)
    return work


@pytest.mark.parametrize("method", ["gspo", "gspo_token"])
def test_the_papers_epsilons_clip_on_both_sides(make_policy: Callable[..., Policy], bench: Bench, method: str) -> None:
    """3e-4 and 4e-4 are far narrower than what an update at this rate moves: of later mini-batches a good part is clipped, above
    and below, of the first nothing; at epsilon 10 nothing is, ever."""
    work = run(make_policy, bench, method=method)
    first, *later = [update.stats for update in work.updates]
    assert first["clip_low"] == first["clip_high"] == 0
    units = sum(stats["units"] for stats in later)
    for side in ("clip_low", "clip_high"):
        assert 0.05 * units < sum(stats[side] for stats in later) < 0.95 * units
    assert sum(stats["ratio_gap"] for stats in later) / units > 4e-4
    idle = run(make_policy, bench, method=method, objective__epsilon_low=10.0, objective__epsilon_high=10.0)
    assert all(update.stats["clip_low"] == update.stats["clip_high"] == 0 for update in idle.updates)


def test_cispo_keeps_the_gradient_that_the_clip_takes(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Same groups, same narrow bounds: a clipped token is silent under clip, and weighs its bound under cispo."""
    narrow = {"objective__epsilon_low": 0.005, "objective__epsilon_high": 0.005, "objective__beta": 0.0}
    task = bench.task(nudged(make_policy("lora")), **FOUR | narrow)
    trainer = trainer_of(task)
    work = task.begin(1, watch())
    cispo = replace(task.objective, surrogate="cispo")
    assert apart(gradient(task, work, task.objective), gradient(task, work, cispo)) < 1e-5
    take_update(task, trainer, work)
    assert apart(gradient(task, work, task.objective), gradient(task, work, cispo)) > 0.05
