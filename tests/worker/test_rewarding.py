"""The judge, a step's metrics and an evaluation, with a real reward process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import mlx.core as mx
import pytest

from engine.errors import InputError
from engine.objective import Objective
from engine.types import Group, Prompt, Rollout
from engine.worker import step as step_module
from engine.worker.credit import with_advantages
from engine.worker.losses import STATS
from engine.worker.model import Policy
from engine.worker.trainer import UpdateResult
from engine.worker.work import StepWork
from tests.support.live import events, finish, small_config

from .step_bench import (
    LIMIT,
    PLANS,
    Bench,
    Plan,
    naive_advantages,
    nudged,
    watch,
)


def judged(bench: Bench, plans: Sequence[Plan], mode: Any = "none", step: int = 3) -> list[Group]:
    """The plans' groups, with the advantages that the mode makes of their rewards."""
    prompts = [Prompt(place, (1,), plan.text, None) for place, plan in enumerate(plans)]
    rollouts = [[Rollout((65 + member,), (-1.0,), "stop", f"{plan.text} {member}") for member in range(4)] for plan in plans]
    groups = bench.judge.groups(prompts, [plan.example() for plan in plans], rollouts, step)
    return with_advantages(groups, Objective(advantage=mode))


def test_the_judge_weights_and_sums_what_applies(bench: Bench) -> None:
    """2 right - 0.5 long, a part that is None left out, no reward where both are; groups and members keep their order."""
    groups = judged(bench, PLANS)
    assert bench.warnings == []
    for number, (group, plan) in enumerate(zip(groups, PLANS, strict=True)):
        assert group.prompt.id == number
        assert [rollout.text for rollout in group.rollouts] == [f"{plan.text} {member}" for member in range(4)]
        assert group.reward_parts == tuple({"right": a, "long": b} for a, b in zip(plan.right, plan.long, strict=True))
        assert group.rewards == plan.rewards
        assert group.advantages == pytest.approx(naive_advantages(plan.rewards, "none"))
    (scaled, *_) = judged(bench, PLANS, "group")
    assert scaled.advantages == pytest.approx([value / (math.sqrt(5 / 3) + 1e-4) for value in (1.5, -1.5, 0.5, -0.5)])


def test_a_completion_whose_reward_fails_is_warned_about_and_excluded(bench: Bench) -> None:
    """`right` gives text for the second completion of the second group: row 5 of 8. Its group's baseline is that of the
    others, (2 + 0 + 1) / 3 = 1; its other part stands in the parts, not in a reward."""
    broken = Plan("Odd", (1, "a lot", 0, 1), (0, 3, 0, 2), (2, None, 0, 1))  # type: ignore[arg-type]
    groups = judged(bench, [PLANS[0], broken])
    assert groups[0].rewards == PLANS[0].rewards
    assert groups[1].rewards == (2, None, 0, 1) and groups[1].advantages == pytest.approx((1, 0, -1, 0))
    assert groups[1].reward_parts[1] == {"right": None, "long": 3}
    (warning,) = bench.warnings
    assert warning["kind"] == "reward-failed" and warning["rows"] == [5]
    assert "right" in warning["message"] and "1 of 8" in warning["message"]


@pytest.mark.parametrize("value", ["a lot", "raise"])
def test_a_reward_that_fails_everywhere_ends_the_step(bench: Bench, value: str) -> None:
    """Whether it raises or gives no number: an InputError that names it, and the traceback in the warning."""
    plan = Plan("Odd", (value,) * 4, (0, 3, 0, 2), (None,) * 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"right failed on every completion of step 3"):
        judged(bench, [plan])
    (warning,) = bench.warnings
    assert warning["kind"] == "reward-failed" and "4 of 4" in warning["message"]
    assert ("the judge is out" in warning["traceback"] and "rewards.py" in warning["traceback"]) == (value == "raise")


def test_metrics_of_a_step(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Rewards 2, -1 | 1, 1 | none, 3.  Mean 6 / 5 = 1.2; squared deviations .64 + 4.84 + .04 + .04 + 3.24 = 8.8, so the
    deviation is sqrt(8.8 / 4) = 1.48324. The second group has no variance, the third only one reward: 2 without signal.
    Tokens 1 + 2 + 3 + 4 + 5 + 5 = 20, so length 20 / 6; two of six cut: 1/3. Log-probabilities sum to -(1 + 2 + 3 + 4) 0.5
    - 10 x 1.5 = -20: entropy 20 / 20 = 1. `right` applies to five: (1 + 0 + 1 + 1 + 2) / 5 = 1; `long` to none.
    Updates: ratio (10.5 + 9.9) / 20 = 1.02, clipped below 1/20, above 3/20, KL 3 / 20; of the first alone the mismatch 0.2 / 10,
    its KL 0.1 / 10 and the ratio's gap 0.5 / 10; of the second alone the gap 0.3 / 10. Spread of `right` in groups:
    variances 1/4 and 0 (of the third only one value is there), so 2 x sqrt(1/8). The second group's two completions
    have no advantage, nor has the third's one with a reward: with the other excluded, three are dropped where no KL needs them.
    """

    def rollout(length: int, logprob: float, cut: bool = False) -> Rollout:
        return Rollout((65,) * length, (logprob,) * length, "length" if cut else "stop", "A" * length)

    def group(rollouts: tuple[Rollout, ...], right: tuple[float | None, ...], rewards: tuple[float | None, ...]) -> Group:
        parts = tuple({"right": value, "long": None} for value in right)
        return Group(Prompt(0, (1,), "", None), rollouts, parts, rewards, tuple(naive_advantages(rewards, "group")))

    groups = [
        group((rollout(1, -0.5), rollout(2, -0.5)), (1, 0), (2, -1)),
        group((rollout(3, -0.5), rollout(4, -0.5)), (1, 1), (1, 1)),
        group((rollout(5, -1.5, cut=True), rollout(5, -1.5, cut=True)), (None, 2), (None, 3)),
    ]
    updates = [
        UpdateResult(0.5, 2.0, 1e-3, dict(zip(STATS, (10, 10.5, 0.5, 1, 0, 10, 1.0, 0.2, 0.1, 10, 0), strict=True)), True, 0.5),
        UpdateResult(0.1, 1.0, 5e-4, dict(zip(STATS, (10, 9.9, 0.3, 0, 3, 10, 2.0, 9.0, 8.0, 10, 0), strict=True)), True, 0.25),
    ]
    work = StepWork(7, groups=groups, updates=updates, seconds={"rollout": 1.5})
    found = bench.task(make_policy("lora"), objective__beta=0.05).metrics(work)
    assert (found.step, found.updates, found.tokens, found.groups) == (7, 2, 20, 3)
    assert (found.loss, found.grad_norm, found.lr) == pytest.approx((0.3, 1.5, 5e-4))
    assert (found.reward, found.reward_std) == pytest.approx((1.2, math.sqrt(2.2)))
    assert (found.length, found.truncated, found.entropy) == pytest.approx((20 / 6, 1 / 3, 1.0))
    assert (found.zero_std_groups, found.excluded) == (2, 1)
    assert found.parts == {"right": 1.0, "long": None}
    assert (found.ratio, found.clip_low, found.clip_high) == pytest.approx((1.02, 0.05, 0.15))
    assert (found.kl, found.mismatch, found.mismatch_kl) == pytest.approx((0.15, 0.02, 0.01))
    assert (found.ratio_gap_first, found.ratio_gap_later) == pytest.approx((0.05, 0.03))
    assert (found.reward_min, found.reward_max, found.moved, found.skipped) == (-1, 3, 0.25, 0)
    assert found.parts_spread == {"right": pytest.approx(2 * math.sqrt(1 / 8)), "long": None}
    assert found.dropped == 0 and bench.task(make_policy("lora")).metrics(work).dropped == 3
    assert found.masked is found.refills is found.discarded is found.tis is None
    assert found.seconds == {"rollout": 1.5}
    assert bench.task(make_policy("lora")).metrics(work).kl is None


def test_evaluation_is_greedy_in_one_batch(
    make_policy: Callable[..., Policy], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards 2, none and -1: the score is their mean 0.5, and the sums 2 + 0 - 1 over the counts 1 + 0 + 1 give it again."""
    policy = nudged(make_policy("lora"))
    held_out = [
        Plan("What is 2+3?", (1,), (None,), (2,)).example(),
        Plan("Hi", (None,), (None,), (None,)).example(),
        Plan("And then?", (0,), (2,), (-1,)).example(),
    ]
    task = bench.task(policy, held_out=held_out)
    calls: list[int] = []
    sample = step_module.sample
    monkeypatch.setattr(
        step_module,
        "sample",
        lambda policy, prompts, *rest, **more: calls.append(len(prompts)) or sample(policy, prompts, *rest, **more),
    )
    found = task.evaluate(5, watch())
    assert calls == [3]
    assert found.score == found.metrics["reward"] == 0.5
    assert (found.rows, found.counts, found.metrics["n"]) == ((2, 0, -1), (1, 0, 1), 2)
    assert found.metrics["parts"] == {"right": 0.5, "long": 2.0}
    lengths, cut = [], []
    for row, example in zip(found.samples, held_out, strict=True):
        _, tokens, _ = policy.render(example.messages)
        start = len(tokens)
        while len(tokens) < start + LIMIT and (len(tokens) == start or tokens[-1] not in policy.stop_ids):
            tokens.append(int(mx.argmax(policy.model(mx.array([tokens]))[0, -1]).item()))
        assert row["token_ids"] == tokens[start:] and row["step"] == 5
        lengths.append(len(tokens) - start)
        cut.append(tokens[-1] not in policy.stop_ids)
    assert (found.metrics["length"], found.metrics["truncated"]) == pytest.approx((mean(lengths), mean(cut)))
    assert task.evaluate(6, watch()).rows == found.rows


def test_an_evaluation_without_any_reward_is_worse_than_every_other(make_policy: Callable[..., Policy], bench: Bench) -> None:
    nothing = Plan("Hi", (None,), (None,), (None,)).example()
    found = bench.task(make_policy("lora"), held_out=[nothing]).evaluate(0, watch())
    assert (found.score, found.rows, found.counts) == (-math.inf, (0,), (0,))
    assert (found.metrics["reward"], found.metrics["n"]) == (None, 0)


@pytest.mark.usefixtures("warm_workers")
async def test_the_rate_follows_the_updates_of_the_whole_run(tmp_path: Path) -> None:
    """Three steps of 2 mini-batches x 2 passes: 12 updates, the first 3 of them warm-up (a quarter). A step reports its last
    update's rate, numbers 3, 7 and 11: (number - 3) / 9 of the way down to 0, so 1e-3 x (1, 5/9, 1/9)."""
    config = small_config(
        "grpo",
        objective__minibatches=2,
        objective__updates_per_rollout=2,
        sampling__max_completion_tokens=8,
        optim__learning_rate=1e-3,
        optim__schedule="linear",
        optim__warmup=0.25,
        run__eval_rows=2,
        run__eval_every=3,
    )
    run, state = await finish(tmp_path, config)
    assert state.state == "finished", state.failure
    steps = [event.fields["metrics"] for event in events(run) if event.type == "step"]
    assert [metrics["updates"] for metrics in steps] == [4, 4, 4]
    assert [metrics["lr"] for metrics in steps] == pytest.approx([1e-3, 1e-3 * 5 / 9, 1e-3 / 9])
