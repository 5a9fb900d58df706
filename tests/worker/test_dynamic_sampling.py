"""Dynamic sampling (DAPO, arXiv 2503.14476, Sec. 3.2) through a real step: sampled, judged, replaced, counted.

Prompts have rewards that were fixed beforehand; most prompts' are the same for all members of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.types import Example, Group, StepMetrics
from engine.worker import keys
from engine.worker.model import Policy
from engine.worker.step import RewardTask
from engine.worker.work import StepWork

from .step_bench import Bench, Plan, nothing_learned, rows_of, text_of, watch

USEFUL = {1, 5, 8, 11, 13}  # of sixteen prompts


def data_of(count: int, useful: set[int]) -> list[Example]:
    """`count` prompts; the reward is 2, 0, 2, 0 for the useful ones, and 2 or 0 throughout for the others."""
    plans = []
    for number in range(count):
        right = (1.0, 0.0, 1.0, 0.0) if number in useful else (float(number % 2),) * 4
        plans.append(Plan(f"Question {number}", right, (None,) * 4, tuple(2 * value for value in right)))
    return [plan.example(line) for line, plan in enumerate(plans, start=1)]


def number_of(group: Group) -> int:
    return int(text_of(group).removeprefix("Question "))


def task_of(bench: Bench, policy: Policy, data: list[Example], **overrides: Any) -> RewardTask:
    shape = {"sampling__prompts_per_step": 4, "objective__minibatches": 1, "objective__updates_per_rollout": 1}
    return bench.task(policy, train=data, held_out=data, **shape | overrides)


def finished(task: RewardTask, work: StepWork) -> StepMetrics:
    """The metrics of the step, without training."""
    work.updates.append(nothing_learned())
    return task.metrics(work)


@pytest.mark.parametrize("allowed", [1, 10])
def test_groups_of_equal_rewards_are_replaced_by_others(make_policy: Callable[..., Policy], bench: Bench, allowed: int) -> None:
    """Five of sixteen prompts teach. Each step's course is worked out from the keys alone: draw four, and as long as fewer than
    four teach and another rollout is allowed, draw as many unused prompts as are missing. Ten extra rollouts always suffice
    here, one does not."""
    task = task_of(bench, make_policy("lora"), data_of(16, USEFUL), objective__dynamic_sampling=allowed)
    short = 0
    for step in range(1, 7):
        drawn, refills = keys.step_rows(16, 4, step, 0), 0
        while len(USEFUL & set(drawn)) < 4 and refills < allowed:
            refills += 1
            more = keys.refill_rows(16, drawn, 4 - len(USEFUL & set(drawn)), step, refills, 0)
            assert more and not set(more) & set(drawn)
            drawn += more
        work = task.begin(step, watch())
        kept, gone = [number_of(group) for group in work.groups], [number_of(group) for group in work.discarded]
        assert work.refills == refills
        assert len(kept) == 4 and sorted(kept + gone) == sorted(drawn)
        assert USEFUL & set(kept) == USEFUL & set(drawn)
        short += len(USEFUL & set(kept)) < 4
        for group in work.groups:
            assert any(group.advantages) == (number_of(group) in USEFUL)
    assert (short > 0) == (allowed == 1)


def test_the_normaliser_is_the_batch_that_was_asked_for(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """16 completions count in N, whether their groups teach or fill a place: 1/(16 |o|) each, and only the former are trained."""
    for allowed in (1, 10):
        task = task_of(bench, make_policy("lora"), data_of(16, USEFUL), objective__dynamic_sampling=allowed)
        work = task.begin(2, watch())
        teaching = sum(number_of(group) in USEFUL for group in work.groups)
        found = rows_of(task.batches(work))
        assert len(found) == 4 * teaching and (teaching == 4) == (allowed == 10)
        assert all(weight == pytest.approx(1 / (16 * len(tokens)), rel=1e-6) for weight, _, tokens in found.values())


def test_a_small_data_set_ends_the_search(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Six prompts, one of which teaches: at most one extra rollout of the two that are left, then nothing is unused; the places
    are filled by groups that teach nothing. With as many prompts as places there is no extra rollout at all."""
    task = task_of(bench, make_policy("lora"), data_of(6, {2}), objective__dynamic_sampling=10)
    work = task.begin(1, watch())
    kept, gone = [number_of(group) for group in work.groups], [number_of(group) for group in work.discarded]
    assert (work.refills, len(kept), len(gone)) == (1, 4, 2)
    assert sorted(kept + gone) == [0, 1, 2, 3, 4, 5] and 2 in kept
    four = task_of(bench, make_policy("lora"), data_of(4, {2}), objective__dynamic_sampling=10).begin(1, watch())
    assert (four.refills, len(four.groups), four.discarded) == (0, 4, [])
    nothing = task_of(bench, make_policy("lora"), data_of(6, set()), objective__dynamic_sampling=10)
    work = nothing.begin(1, watch())
    assert (work.refills, len(work.groups), len(work.discarded), nothing.batches(work)) == (1, 4, 2, [])


def test_the_same_step_gathers_the_same_twice(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """To the bit, in another task with the same weights and without the steps before; the prompts' order of the epochs is that of
    a run without dynamic sampling, and a refill's rollouts are not the ones that a step's own draw would give."""
    first = task_of(bench, make_policy("lora"), data_of(16, USEFUL), objective__dynamic_sampling=3)
    again = task_of(bench, make_policy("lora"), data_of(16, USEFUL), objective__dynamic_sampling=3)
    plain = task_of(bench, make_policy("lora"), data_of(16, USEFUL))
    first.begin(1, watch())
    one, other, without = first.begin(2, watch()), again.begin(2, watch()), plain.begin(2, watch())
    assert (one.groups, one.discarded, one.refills) == (other.groups, other.discarded, other.refills)
    assert one.refills > 0
    own = {number_of(group): group for group in without.groups}
    sampled = {number_of(group): group for group in (*one.groups, *one.discarded)}
    assert len(sampled) == len(one.groups) + len(one.discarded)  # no prompt twice
    assert all(sampled[number].rollouts == group.rollouts for number, group in own.items())


def test_without_it_equal_groups_stay(make_policy: Callable[..., Policy], bench: Bench) -> None:
    task = task_of(bench, make_policy("lora"), data_of(16, USEFUL))
    work = task.begin(1, watch())
    assert (len(work.groups), work.discarded, work.refills) == (4, [], 0)
    metrics = finished(task, work)
    assert (metrics.refills, metrics.discarded, metrics.groups) == (None, None, 4)


def test_what_was_sampled_is_counted_and_what_was_replaced_is_marked(make_policy: Callable[..., Policy], bench: Bench) -> None:
    task = task_of(bench, make_policy("lora"), data_of(16, USEFUL), objective__dynamic_sampling=10)
    work = task.begin(1, watch())
    metrics, rows = finished(task, work), task.samples(work)
    everything = [*work.groups, *work.discarded]
    assert metrics.refills == work.refills > 0 and metrics.discarded == len(work.discarded) > 0
    assert metrics.groups == len(everything) and metrics.zero_std_groups == len(work.discarded)
    assert metrics.tokens == sum(len(rollout.token_ids) for group in everything for rollout in group.rollouts)
    assert [row.get("discarded", False) for row in rows] == [False] * 16 + [True] * 4 * len(work.discarded)
    assert StepWork.from_dict(work.as_dict()) == work  # a checkpoint between two updates holds them too


def test_equal_answers_are_replaced_though_overlong_punishment_parts_them(
    make_policy: Callable[..., Policy], bench: Bench
) -> None:
    """All right and of different lengths: DAPO Eq. 11 looks at the answers alone. Where no prompt is left to take their places,
    such groups stay, and their lengths teach."""
    overrides = {"objective__dynamic_sampling": 2, "objective__soft_overlong": 0.9}
    work = task_of(bench, make_policy("lora"), data_of(16, set()), **overrides).begin(1, watch())
    assert work.refills == 2 and len(work.discarded) > 0
    assert all(len(set(group.rewards)) > 1 and any(group.advantages) for group in work.groups)


def test_a_reward_that_fails_on_a_refill_does_not_end_the_run(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Eight prompts: the four that step 1 draws have equal rewards, and the reward has no number for the four others. They are
    sampled as a refill, warned about and discarded; the drawn ones keep their places."""
    drawn = set(keys.step_rows(8, 4, 1, 0))
    right = [(1.0,) * 4 if number in drawn else ("a lot",) * 4 for number in range(8)]
    plans = [Plan(f"Question {n}", values, (None,) * 4, (None,) * 4) for n, values in enumerate(right)]  # type: ignore[arg-type]
    task = task_of(bench, make_policy("lora"), [plan.example() for plan in plans], objective__dynamic_sampling=1)
    work = task.begin(1, watch())
    assert {number_of(group) for group in work.groups} == drawn and work.refills == 1
    assert [warning["kind"] for warning in bench.warnings] == ["reward-failed"]
