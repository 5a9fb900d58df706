"""The edges of the learning canaries: windows that are not full, values that are missing, warnings that come again, and figures
of healthy runs that look like sick ones. Here metrics are made by hand; the runs that provoke each canary: test_canaries.py."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from engine.types import StepMetrics
from engine.worker.canaries import REPEAT_STEPS, STEP_CANARIES, Canaries
from engine.worker.history import RECENT, History, Setting

HEALTHY: dict[str, Any] = {
    "loss": 0.1,
    "grad_norm": 0.5,
    "lr": 1e-5,
    "updates": 2,
    "tokens": 100,
    "reward": 0.4,
    "reward_std": 0.5,
    "reward_min": 0.0,
    "reward_max": 1.0,
    "parts_spread": {"right": 0.4, "form": 0.1},
    "length": 10.0,
    "truncated": 0.0,
    "zero_std_groups": 1,
    "groups": 4,
    "masked": 0,
    "entropy": 1.0,
    "kl": 0.01,
    "ratio": 1.0,
    "ratio_gap_first": 1e-7,
    "ratio_gap_later": 1e-3,
    "clip_low": 0.1,
    "clip_high": 0.1,
    "mismatch": 1e-6,
    "mismatch_kl": 1e-9,
    "moved": 1.0,
    "skipped": 0,
}
NOTHING = {
    name: None
    for name in HEALTHY
    if name not in ("loss", "grad_norm", "lr", "updates", "tokens", "parts_spread", "groups", "zero_std_groups")
}


def metrics(step: int, **changes: Any) -> StepMetrics:
    return StepMetrics(step=step, **{**HEALTHY, **changes})


def told(canaries: Canaries, *steps: StepMetrics) -> list[tuple[int, str]]:
    """(step, kind) of what the steps gave reason to warn of."""
    return [(one.step, finding.kind) for one in steps for finding in canaries.step(one)]


def test_a_healthy_history_is_silent() -> None:
    canaries = Canaries(exact=True)
    assert told(canaries, *(metrics(step) for step in range(1, 61))) == []
    assert len(canaries.history.recent) == 30 and len(canaries.history.start) == RECENT


@pytest.mark.parametrize(
    ("kind", "sick"),
    [
        ("weights-still", {"moved": 0.01}),
        ("truncated", {"truncated": 0.9}),
        ("clipped", {"clip_low": 0.3, "clip_high": 0.3}),
        ("no-contrast", {"zero_std_groups": 4}),
        ("ratio-still", {"ratio_gap_later": 1e-7}),
        ("reward-constant", {"reward_std": 0.0, "reward": 0.0, "reward_max": 0.0, "zero_std_groups": 4}),
    ],
)
def test_a_mean_needs_its_whole_window_and_every_value_of_it(kind: str, sick: dict[str, Any]) -> None:
    """Silent through four steps of five; with the fifth it fires. One step without the values begins the window anew, but for
    the two that look at the last five updates that measured something: those go on where they were."""
    canaries = Canaries(exact=True)
    assert told(canaries, *(metrics(step, **sick) for step in range(1, RECENT))) == []
    assert told(canaries, metrics(RECENT, **sick)) == [(RECENT, kind)]
    gap = {**dict.fromkeys(sick), "reward": 0.4, "zero_std_groups": 0, "reward_max": 1.0}
    canaries = Canaries(exact=True)
    steps = [metrics(step, **(gap if step == 3 else sick)) for step in range(1, 9)]
    first = RECENT + 1 if kind in ("weights-still", "ratio-still") else RECENT + 3
    assert told(canaries, *steps) == [(first, kind)]


def test_values_that_are_missing_or_not_finite_say_nothing() -> None:
    """A method that has none of them (supervised: no groups either), and a step whose figures are nan or infinite."""
    canaries = Canaries(exact=True)
    assert told(canaries, *(metrics(step, **NOTHING, groups=None, zero_std_groups=None) for step in range(1, 20))) == []
    for value in (math.nan, math.inf):
        broken = {name: value for name, given in HEALTHY.items() if isinstance(given, float) and name not in ("lr", "reward_min")}
        spread = {"right": value, "form": 0.1}
        canaries = Canaries(exact=True)
        steps = [metrics(step, **{**broken, "parts_spread": spread, "skipped": 2}) for step in range(1, 20)]
        assert told(canaries, *steps) == []
        assert math.isfinite(json.loads(json.dumps(canaries.history.as_dict()))["recent"][0]["lr"])


def test_a_warning_comes_again_only_after_fifty_steps() -> None:
    """Cut from step 1 on: at 5, 55 and 105. Healed from 60 to 100, it is told again at once, since its last warning is old."""
    canaries = Canaries(exact=True)
    steps = [metrics(step, truncated=0.9) for step in range(1, 2 * REPEAT_STEPS + 10)]
    assert told(canaries, *steps) == [(5, "truncated"), (55, "truncated"), (105, "truncated")]
    canaries = Canaries(exact=True)
    steps = [metrics(step, truncated=0.0 if 10 <= step < 70 else 0.9) for step in range(1, 80)]
    assert told(canaries, *steps) == [(5, "truncated"), (72, "truncated")]  # 0.54 of the window of 68 to 72
    steps = [metrics(step, truncated=0.0 if 10 <= step < 30 else 0.9) for step in range(1, 60)]
    assert told(Canaries(exact=True), *steps) == [(5, "truncated"), (55, "truncated")]


def test_the_history_survives_a_checkpoint() -> None:
    """Through JSON and back it is the same, every field filled, and what was told is not told again."""
    canaries = Canaries(exact=True)
    canaries.evaluated(0, 0.5, 0.01)
    told(canaries, *(metrics(step, truncated=0.9) for step in range(1, 8)))
    canaries.evaluated(7, 0.6, None)
    tree = json.loads(json.dumps(canaries.history.as_dict()))
    assert all(tree.values()) or {name for name, value in tree.items() if not value} == {"worst"}  # 0.0
    again = Canaries(exact=True, history=History.from_dict(tree))
    assert again.history == canaries.history and again.history.told == {"truncated": 5}
    later = [metrics(step, truncated=0.9) for step in range(8, 60)]
    assert told(again, *later) == told(canaries, *later) == [(55, "truncated")]


def test_a_schedules_last_steps_may_be_small() -> None:
    """Half a cosine to 0 over 40 steps with 16-bit weights: the share that moves falls with the rate. At a tenth of the peak and
    below nothing is said; a rate that is too small from the beginning is not excused."""
    rates = [0.5 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    steps = [metrics(step + 1, lr=1e-4 * rate, moved=0.3 * rate) for step, rate in enumerate(rates)]
    assert told(Canaries(exact=False), *steps) == []
    steps = [metrics(step + 1, lr=1e-4 * rate, moved=0.03 * rate) for step, rate in enumerate(rates)]
    assert told(Canaries(exact=False), *steps) == [(5, "weights-still")]


def test_rounding_that_is_no_fault() -> None:
    """16-bit models round by more: a gap of 0.01 is theirs, and a fault of a float32 model. One update's worth of rounding after
    an update is no movement."""
    rounding = {"mismatch": 0.01, "mismatch_kl": 0.001, "ratio_gap_first": 0.01}
    assert told(Canaries(exact=False), metrics(1, **rounding)) == []
    assert told(Canaries(exact=True), metrics(1, **rounding)) == [(1, "ratio-start"), (1, "sampler-gap")]
    assert told(Canaries(exact=False), metrics(1, mismatch=0.01, mismatch_kl=0.02)) == [(1, "sampler-gap")]
    still = [metrics(step, ratio_gap_first=2e-6, ratio_gap_later=3e-6) for step in range(1, 6)]
    assert told(Canaries(exact=True), *still) == [(5, "ratio-still")]
    hidden = [metrics(step, ratio_gap_first=0.01, ratio_gap_later=0.012) for step in range(1, 6)]
    assert told(Canaries(exact=False), *hidden) == []
    one_update_has_it_all = [metrics(step, zero_std_groups=3, ratio_gap_later=0.0) for step in range(1, 6)]
    assert told(Canaries(exact=True), *one_update_has_it_all) == []


def test_a_gradient_of_zero_without_any_signal_is_no_fault() -> None:
    flat = {"grad_norm": 0.0, "moved": None}
    assert told(Canaries(exact=True), metrics(1, **flat, zero_std_groups=4)) == []
    assert told(Canaries(exact=True), metrics(1, **flat, zero_std_groups=3)) == [(1, "gradient-zero")]
    assert told(Canaries(exact=True), metrics(1, **flat, skipped=1)) == []
    supervised = {**NOTHING, "groups": None, "zero_std_groups": None}
    assert told(Canaries(exact=True), metrics(1, **{**supervised, "grad_norm": 0.0})) == [(1, "gradient-zero")]


def test_groups_of_equal_rewards_teach_where_the_whole_batch_is_the_baseline() -> None:
    """objective.advantage: global, a group size of 1: every group is flat, and every one has an advantage."""
    steps = [metrics(step, zero_std_groups=4) for step in range(1, 20)]
    assert told(Canaries(exact=True, batch_baseline=True), *steps) == []
    assert told(Canaries(exact=True), *steps) == [(5, "no-contrast")]


def test_a_reward_that_is_learned_is_not_drowned() -> None:
    """A tenth of the weight for the form: it differs by 0.05 at first and by 0.001 once nearly all have it. Another, that was
    never louder than 0.005 beside 0.4, is drowned all along: 0.005 / 0.405 is 1.2%."""
    learned = [metrics(step, parts_spread={"right": 0.4, "form": max(0.05 / step, 0.001)}) for step in range(1, 80)]
    assert told(Canaries(exact=True), *learned) == []
    faint = {"right": 0.4, "form": 0.005}
    assert told(Canaries(exact=True), *(metrics(step, parts_spread=faint) for step in range(1, 6))) == [(5, "part-drowns")]
    for silent in (0.0, None):  # it never differs: nothing is lost
        steps = [metrics(step, parts_spread={"right": 0.4, "form": silent}) for step in range(1, 6)]
        assert told(Canaries(exact=True), *steps) == []
    overlong = [metrics(step, parts_spread={"right": 0.4, "overlong": 0.005}) for step in range(1, 6)]
    assert told(Canaries(exact=True), *overlong) == []


def test_the_kl_may_grow_and_have_one_rare_token_but_not_jump() -> None:
    """0.01 for ten steps, then 0.5: fifty times. One step of 400 among small ones is one token; 0.01 to 0.2 is learning."""
    quiet = [metrics(step, kl=0.01) for step in range(1, 11)]
    jump = [metrics(step, kl=0.5) for step in range(11, 14)]
    assert told(Canaries(exact=True), *quiet, *jump) == [(13, "kl-blow-up")]
    assert told(Canaries(exact=True), *quiet[:9], *(metrics(step, kl=0.5) for step in range(10, 13))) == []  # nine are too few
    assert told(Canaries(exact=True), *quiet, *(metrics(step, kl=0.25) for step in range(11, 14))) == []  # 25 times, but small
    assert told(Canaries(exact=True), *quiet, metrics(11, kl=400.0), *(metrics(step, kl=0.01) for step in range(12, 30))) == []
    assert told(Canaries(exact=True), *(metrics(step, kl=0.01 * 1.08**step) for step in range(1, 41))) == []
    assert told(Canaries(exact=True), *(metrics(step, kl=1.1) for step in range(1, 4))) == [(3, "kl-blow-up")]


def test_certainty_is_no_collapse_where_the_task_is_learned_or_groups_still_differ() -> None:
    """The entropy falls from 1 to 0.05 nats. With 18 of 20 groups flat it is a collapse at a reward of 0.4 of 1, and none at
    0.95; with 10 of 20 the completions still differ."""
    before = [metrics(step) for step in range(1, 6)]

    def after(flat: int, reward: float) -> list[tuple[int, str]]:
        sure = {"entropy": 0.05, "groups": 20, "zero_std_groups": flat, "reward": reward}
        return told(Canaries(exact=True), *before, *(metrics(step, **sure) for step in range(6, 11)))

    assert after(17, 0.4) == [(10, "entropy-collapse")]
    assert after(10, 0.4) == [] and after(17, 0.95) == []


def test_saturated_are_ten_steps_of_nearly_all_groups() -> None:
    """At 0.99 of the best reward: 39 of 40 groups flat says so with the tenth step; 36 of 40 still teach something."""
    for flat, expected in ((39, [(10, "reward-saturated")]), (36, [])):
        steps = [metrics(step, groups=40, zero_std_groups=flat, reward=0.99) for step in range(1, 13)]
        assert told(Canaries(exact=True), *steps) == expected


def test_longer_completions_that_earn_more_are_no_explosion() -> None:
    """From 10 to 25 tokens after step 5: 22 on average at step 9. More is what rises by over 0.05 of the range of rewards."""
    before = [metrics(step) for step in range(1, 6)]
    for reward, expected in ((0.42, [(9, "length-explosion")]), (0.5, [])):
        longer = [metrics(step, length=25.0, reward=reward) for step in range(6, 11)]
        assert told(Canaries(exact=True), *before, *longer) == expected


def evaluate(canaries: Canaries, *scores: float, every: int = 2, **row: Any) -> list[tuple[int, str]]:
    """Evaluations with the standard error 0.03, the first of the base, and training that improves by 0.1 from one to the next."""
    found = []
    for number, score in enumerate(scores):
        for step in range(every * (number - 1) + 1, every * number + 1):
            canaries.step(metrics(step, **{**row, "reward": 0.1 * number, "loss": 3 - 0.1 * number}))
        found += [(every * number, one.kind) for one in canaries.evaluated(every * number, score, 0.03)]
    return found


def test_overfitting_takes_two_evaluations_that_are_clearly_worse() -> None:
    """Clearly: by more than 2 sqrt(2) 0.03 = 0.085."""
    assert evaluate(Canaries(exact=True), 0.3, 0.6, 0.5, 0.5) == [(6, "overfit")]
    assert evaluate(Canaries(exact=True), 0.3, 0.6, 0.5, 0.52, 0.5) == []
    assert evaluate(Canaries(exact=True), 0.3, 0.6, 0.5) == []
    assert evaluate(Canaries(exact=True), 0.3, 0.6, 0.5, 0.7, 0.5, 0.5) == [(10, "overfit")]


def test_greedy_answers_below_the_base_are_no_overfitting() -> None:
    """The embedded model's own figures: greedy accuracy 0.14, 0.05, 0.05 and then 1.0, while the samples improve all along.
    Supervised training measures one loss on both: there the same scores count."""
    assert evaluate(Canaries(exact=True), 0.141, 0.047, 0.047, 1.0) == []
    supervised = {**NOTHING, "groups": None, "zero_std_groups": None}
    assert evaluate(Canaries(exact=True), -2.0, -2.1, -2.2, **supervised) == [(4, "overfit")]


def test_training_that_falls_too_is_no_overfitting() -> None:
    """Training's reward is that of the steps since the evaluation before: 0.6, then 0.5."""
    canaries = Canaries(exact=True)
    found = []
    for number, (score, train) in enumerate([(0.3, 0.4), (0.6, 0.6), (0.5, 0.55), (0.5, 0.5)]):
        canaries.step(metrics(number, reward=train))
        found += canaries.evaluated(number, score, 0.03)
    assert found == []


def test_an_evaluation_of_one_row_has_no_error_and_says_nothing() -> None:
    canaries = Canaries(exact=True)
    for number, score in enumerate([0.3, 1.0, 0.0, 0.0]):
        canaries.step(metrics(number, reward=0.1 * number))
        assert canaries.evaluated(number, score, None) == []


def test_they_cost_nothing() -> None:
    """Under a millisecond a step, all canaries with their window full (measured: 0.09 ms)."""
    canaries = Canaries(exact=True)
    steps = [metrics(step) for step in range(1, 1001)]
    start = time.process_time()
    told(canaries, *steps)
    assert (time.process_time() - start) / len(steps) < 1e-3


def test_each_canary_is_pure() -> None:
    """Asked twice it says the same, and changes nothing."""
    canaries = Canaries(exact=True)
    told(canaries, *(metrics(step, truncated=0.9, moved=0.0, kl=2.0) for step in range(1, 8)))
    before = json.dumps(canaries.history.as_dict())
    setting = Setting(exact=True, batch_baseline=False)
    first = [canary(canaries.history, setting) for canary in STEP_CANARIES]
    assert first == [canary(canaries.history, setting) for canary in STEP_CANARIES]
    assert [one.kind for one in first if one is not None] == ["weights-still", "kl-blow-up", "truncated"]
    assert json.dumps(canaries.history.as_dict()) == before
