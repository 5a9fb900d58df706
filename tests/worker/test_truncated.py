"""Completions that were cut at the limit: kept, counted zero, or masked; through a real step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.types import Finish, Group, Prompt, Rollout
from engine.worker.credit import with_advantages
from engine.worker.model import Policy
from engine.worker.work import StepWork

from .step_bench import REWARDS, Bench, nothing_learned, rows_of, text_of, watch

ONE_UPDATE = {"objective__minibatches": 1, "objective__updates_per_rollout": 1}
LENGTHS = ((2, 4, 3, 1), (4, 2, 1, 4), (4, 4, 4, 4))
CUT = ((1,), (0, 3), (0, 1, 2, 3))
GIVEN = ((1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0))


def cut_groups() -> list[Group]:
    groups = []
    for number, (lengths, cut, rewards) in enumerate(zip(LENGTHS, CUT, GIVEN, strict=True)):
        ends: list[Finish] = ["length" if member in cut else "stop" for member in range(4)]
        rollouts = [Rollout((65,) * n, (-1.0,) * n, end, "A" * n) for n, end in zip(lengths, ends, strict=True)]
        parts = tuple({"right": reward} for reward in rewards)
        groups.append(Group(Prompt(number, (256, number), "", None), tuple(rollouts), parts, rewards))
    return groups


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("aggregate", ["seq_mean", "constant", "token_mean", "group_token_mean", "seq_sum"])
def test_masked_completions_leave_the_token_counts_and_stay_in_n(
    make_policy: Callable[..., Policy], bench: Bench, aggregate: str, beta: float
) -> None:
    """Three groups of 4 completions, of 2 4* 3 1, 4* 2 1 4* and 4* 4* 4* 4* tokens, the starred cut: N = 12, L = 12, and of 37
    tokens 6 + 3 + 0 are left.

    seq_mean 1/(12 |o|); constant 1/(12 x 12); token_mean 1/9; group_token_mean 1/(3 x 6) and 1/(3 x 3), the third group counts
    and has nothing; seq_sum 1/12. Rewards 1 0 0 1 and 1 0 0 0: means 1/2 and 1/4, of all four, the cut ones too.
    """
    overrides = {"objective__aggregate": aggregate, "objective__beta": beta, "objective__truncated": "mask"}
    task = bench.task(make_policy("lora"), **ONE_UPDATE | overrides | {"objective__advantage": "none"})
    groups = with_advantages(cut_groups(), task.objective)
    ref = [np.full(n, -1.0, dtype=np.float32) for lengths in LENGTHS for n in lengths] if beta else None
    work = StepWork(1, groups, ref=ref)
    expected = {0: (2, 0.5), 2: (3, -0.5), 3: (1, 0.5), 5: (2, -0.25), 6: (1, -0.25)}
    found = rows_of(task.batches(work))
    assert found.keys() == expected.keys()
    for index, (tokens, advantage) in expected.items():
        weight = {
            "seq_mean": 1 / (12 * tokens),
            "constant": 1 / 144,
            "token_mean": 1 / 9,
            "group_token_mean": 1 / 18 if index < 4 else 1 / 9,
            "seq_sum": 1 / 12,
        }[aggregate]
        assert found[index][0] == pytest.approx(weight, rel=1e-6)
        assert found[index][1] == pytest.approx([advantage] * tokens)
    work.updates.append(nothing_learned())
    assert task.metrics(work).masked == 7


@pytest.mark.parametrize("truncated", ["keep", "zero"])
def test_completions_that_are_not_masked_count_like_any_other(
    make_policy: Callable[..., Policy], bench: Bench, truncated: str
) -> None:
    """All 10 + 11 + 16 = 37 tokens are in the mean; every row here has an advantage."""
    overrides = {"objective__aggregate": "token_mean", "objective__truncated": truncated}
    task = bench.task(make_policy("lora"), **ONE_UPDATE | overrides)
    work = StepWork(1, with_advantages(cut_groups(), task.objective))
    found = rows_of(task.batches(work))
    assert len(found) == 12
    assert all(weight == pytest.approx(1 / 37, rel=1e-6) for weight, _, _ in found.values())
    work.updates.append(nothing_learned())
    assert task.metrics(work).masked is None


def test_zeroed_and_shortened_rewards_reach_the_advantages(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """In a sampled step: a cut completion has the reward 0; over the last half of 12 tokens all lose (|o| - 6) / 6."""
    overrides = {"objective__truncated": "zero", "objective__soft_overlong": 0.5, "objective__advantage": "none"}
    task = bench.task(make_policy("lora"), **ONE_UPDATE | overrides)
    work = task.begin(1, watch())
    seen = set()
    for group in work.groups:
        expected = []
        for rollout, planned in zip(group.rollouts, REWARDS[text_of(group)], strict=True):
            cost = min(0.0, (6 - len(rollout.token_ids)) / 6)
            seen.add((rollout.finish, cost < 0))
            expected.append(None if planned is None else (0.0 if rollout.finish == "length" else planned) + cost)
        present = [value for value in expected if value is not None]
        assert group.rewards == pytest.approx(tuple(expected))
        means = [0.0 if value is None else value - sum(present) / len(present) for value in expected]
        assert group.advantages == pytest.approx(means, abs=1e-9)
    assert seen == {("stop", False), ("stop", True), ("length", True)}
