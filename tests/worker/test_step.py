"""A step of training by rewards: rows and weights, old and reference log-probabilities, ratios and gradients, against loops
written from the formulas in tests/golden/README.md and plain forwards of single rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from engine.worker import step as step_module
from engine.worker.model import Policy

from .rows import nudge, plain
from .step_bench import (
    REWARDS,
    TEMPERATURE,
    TRAIN,
    Bench,
    assert_same_gradient,
    coming_groups,
    completions,
    naive_advantages,
    naive_terms,
    nothing_learned,
    nudged,
    rows_of,
    take_update,
    text_of,
    trainer_of,
    watch,
)

OBJECTIVES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo with kl": {"objective__beta": 0.05},
    "dr_grpo": {"method": "dr_grpo"},
    "dr_grpo with kl": {"method": "dr_grpo", "objective__beta": 0.05},
    "token_mean": {"objective__aggregate": "token_mean"},
    "token_mean with kl": {"objective__aggregate": "token_mean", "objective__beta": 0.05},
    "group_token_mean": {"objective__aggregate": "group_token_mean"},
    "seq_sum": {"objective__aggregate": "seq_sum"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_update_has_its_rows_and_weights(make_policy: Callable[..., Policy], bench: Bench, name: str) -> None:
    """Six groups in 4 mini-batches (2, 2, 1, 1), twice. In all groups 24 completions count in N; 23 have a reward, and 18 an
    advantage: not the one excluded, not the four without variance, not the one at its group's mean."""
    task = bench.task(make_policy("lora"), **OBJECTIVES[name])
    assert task.updates_per_step == 8
    work = task.begin(1, watch())
    assert len({len(row.tokens) for row in completions(work)}) > 4
    passes: list[list[int]] = [[], []]
    for update in range(8):
        chosen = coming_groups(work)
        expected = naive_terms(work, chosen, task)
        found = rows_of(task.batches(work))
        assert found.keys() == expected.keys()
        for index, (weight, advantages, tokens) in found.items():
            term = expected[index]
            assert weight == pytest.approx(term.weight, rel=1e-6)
            assert advantages == pytest.approx([term.advantage] * len(term.row.tokens), rel=1e-6)
            assert tokens == list(term.row.tokens)
        passes[update // 4] += found
        work.updates.append(nothing_learned())
    for number in passes:
        assert len(set(number)) == len(number) == (23 if "kl" in name else 18)
    assert passes[0] != passes[1]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_old_is_the_policy_and_ref_the_base_model_at_the_temperature(
    make_policy: Callable[..., Policy], bench: Bench, kind: str
) -> None:
    """After training has moved the policy, `old` is its own log-probability at T = 0.6 and `ref` the untrained model's. Of the
    row without a reward, which no update takes, neither is computed; the first update is its own old policy."""
    base, policy = make_policy("full"), make_policy(kind)
    task = bench.task(policy, objective__beta=0.05)
    nudge(policy)
    work = task.begin(1, watch())
    assert work.old is not None and work.ref is not None and len(work.old) == len(work.ref) == 24
    apart, unscored = 0.0, 0
    judged = [pair for group in work.groups for pair in zip(group.rollouts, group.rewards, strict=True)]
    for row, (rollout, reward) in zip(completions(work), judged, strict=True):
        if reward is None:
            unscored += 1
            assert not work.old[row.index].any() and not work.ref[row.index].any()
            continue
        now = plain(policy, row, TEMPERATURE)
        np.testing.assert_allclose(work.old[row.index], now, rtol=0, atol=1e-5)
        np.testing.assert_allclose(work.ref[row.index], plain(base, row, TEMPERATURE), rtol=0, atol=1e-5)
        np.testing.assert_allclose(rollout.logprobs, now, rtol=0, atol=1e-4)
        apart = max(apart, float(np.abs(work.old[row.index] - work.ref[row.index]).max()))
    assert apart > 0.01 and unscored == 1
    assert all(batch.old is None and batch.ref is not None for batch in task.batches(work))
    work.updates.append(nothing_learned())
    for batch in task.batches(work):
        assert batch.old is not None and batch.ref is not None
        for place, index in enumerate(batch.index.tolist()):
            width = len(work.old[index])
            assert np.array_equal(batch.old[place, :width], work.old[index])
            assert np.array_equal(batch.ref[place, :width], work.ref[index])


def test_the_ratio_is_taken_against_the_rollout_through_all_updates(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Before every one of 8 updates the mean ratio, both clipped shares and the KL of its rows are worked out from plain
    forwards: the first is 1 with nothing clipped, later ones are not, and `old` and `ref` stay as they were."""
    base, policy = make_policy("full"), nudged(make_policy("lora"))
    task = bench.task(policy, objective__beta=0.05, objective__epsilon_low=0.02, objective__epsilon_high=0.03)
    trainer = trainer_of(task)
    work = task.begin(1, watch())
    assert work.old is not None and work.ref is not None
    old = [plain(policy, row, TEMPERATURE) for row in completions(work)]
    ref = [plain(base, row, TEMPERATURE) for row in completions(work)]
    kept = [value.copy() for value in (*work.old, *work.ref)]
    clipped = 0.0
    for update in range(8):
        ratios, below, above, kl = [], 0, 0, []
        for index, term in naive_terms(work, coming_groups(work), task).items():
            now = plain(policy, term.row, TEMPERATURE)
            for new, was, reference in zip(now, old[index], ref[index], strict=True):
                ratios.append(math.exp(new - was))
                below += ratios[-1] < 0.98 and term.advantage < 0
                above += ratios[-1] > 1.03 and term.advantage > 0
                kl.append(math.exp(reference - new) - (reference - new) - 1)
        stats = take_update(task, trainer, work).stats
        assert stats["units"] == stats["tokens"] == len(ratios)
        assert stats["ratio"] / len(ratios) == pytest.approx(mean(ratios), abs=1e-5)
        assert (stats["clip_low"], stats["clip_high"]) == pytest.approx((below, above), abs=1.01)  # one may sit on the bound
        assert stats["kl"] / len(kl) == pytest.approx(mean(kl), abs=1e-5) and mean(kl) > 1e-3
        if update == 0:
            assert stats["ratio"] / len(ratios) == pytest.approx(1, abs=1e-5) and below == above == 0
        else:
            assert max(abs(ratio - 1) for ratio in ratios) > 0.01
        clipped += stats["clip_low"] + stats["clip_high"]
    assert clipped > 20
    assert all(np.array_equal(a, b) for a, b in zip((*work.old, *work.ref), kept, strict=True))
    metrics = task.metrics(work)
    assert metrics.kl is not None and metrics.kl > 1e-3 and metrics.ratio is not None
    assert metrics.mismatch is not None and metrics.mismatch < 1e-4


def test_at_rate_zero_the_ratio_stays_one(make_policy: Callable[..., Policy], bench: Bench) -> None:
    task = bench.task(nudged(make_policy("lora")), objective__beta=0.05)
    trainer = trainer_of(task, learning_rate=0.0)
    work = task.begin(1, watch())
    for _ in range(8):
        stats = take_update(task, trainer, work).stats
        assert stats["ratio"] / stats["units"] == pytest.approx(1, abs=1e-5)
        assert stats["clip_low"] == stats["clip_high"] == 0


@pytest.mark.parametrize(("minibatch_count", "beta"), [(1, 0.0), (1, 0.05), (4, 0.0), (4, 0.05)])
def test_nothing_is_scored_that_no_update_needs(
    make_policy: Callable[..., Policy],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    minibatch_count: int,
    beta: float,
) -> None:
    """`old` where there are several updates, of the rows that the second to the last of them take; `ref` where beta > 0, of all
    rows that are trained: 23 of 24 have a reward. Without a KL those of advantage 0 are not trained either."""
    calls: list[int] = []
    score = step_module.score
    monkeypatch.setattr(step_module, "score", lambda policy, rows, *rest: calls.append(len(rows)) or score(policy, rows, *rest))
    shape = {"objective__minibatches": minibatch_count, "objective__updates_per_rollout": 1, "objective__beta": beta}
    task = bench.task(make_policy("lora"), **shape)
    work = task.begin(1, watch())
    assert (work.old is not None, work.ref is not None) == (minibatch_count > 1, beta > 0)
    assert ("score" in work.seconds) == bool(calls)
    taken: list[list[int]] = []  # rows of each update
    for _ in range(minibatch_count):
        taken.append([int(index) for batch in task.batches(work) for index in batch.index])
        work.updates.append(nothing_learned())
    later = sum(map(len, taken[1:]))
    assert calls == [later] * (minibatch_count > 1) + [23] * (beta > 0) and 0 <= later < sum(map(len, taken)) <= 23
    if work.old is not None:
        assert {row for row, values in enumerate(work.old) if values.any()} == {row for rows in taken[1:] for row in rows}


def test_prompts_over_the_limit_are_left_out_and_ids_stay_places(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Of seven rows the second is too long: the six others make one epoch, each with its own plan's rewards."""
    task = bench.task(make_policy("lora"))
    work = task.begin(1, watch())
    assert sorted(group.prompt.id for group in work.groups) == [0, 2, 3, 4, 5, 6]
    for group in work.groups:
        assert group.prompt.text == f"<|user|>{TRAIN[group.prompt.id].messages[0].content}<|end|><|assistant|>"
        assert group.rewards == REWARDS[text_of(group)]
        assert group.advantages == pytest.approx(naive_advantages(group.rewards, "group"))
    rows = task.samples(work)
    assert [row["reward"] for row in rows] == [reward for group in work.groups for reward in group.rewards]
    assert [tuple(row["token_ids"]) for row in rows] == [row.tokens for row in completions(work)]


LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"objective__beta": 0.05},
    "dr_grpo": {"method": "dr_grpo"},
    "gspo": {"method": "gspo", "objective__beta": 0.05, "objective__epsilon_low": 0.01, "objective__epsilon_high": 0.01},
    "cispo": {"objective__surrogate": "cispo", "objective__aggregate": "token_mean"},
    "two-sided": {"objective__delta": 1.04, "objective__aggregate": "token_mean"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_formulas(make_policy: Callable[..., Policy], bench: Bench, name: str) -> None:
    """In the second pass, so that ratios differ from 1 and some are clipped: row by row, one unpadded forward each, with
    loss = sum_it w_it (l_it + beta k_it)."""
    base, policy = make_policy("full"), nudged(make_policy("lora"))
    task = bench.task(policy, **{"objective__epsilon_low": 0.02, "objective__epsilon_high": 0.03} | LOSSES[name])
    objective = task.config.resolved_objective()
    assert objective.epsilon_low is not None
    trainer = trainer_of(task)
    work = task.begin(1, watch())
    old = [mx.array(plain(policy, row, TEMPERATURE).astype(np.float32)) for row in completions(work)]
    ref = [mx.array(plain(base, row, TEMPERATURE).astype(np.float32)) for row in completions(work)]
    while len(work.updates) < 4:
        take_update(task, trainer, work)
    terms = naive_terms(work, coming_groups(work), task)
    clipped = 0

    def naive_loss() -> mx.array:
        nonlocal clipped
        total = mx.zeros(())
        for index, term in terms.items():
            sequence, first = [*term.row.prompt, *term.row.tokens], len(term.row.prompt)
            logits = policy.model(mx.array([sequence]))[0] / TEMPERATURE  # [T, V]
            rows = [logits[first - 1 + t, token] - mx.logsumexp(logits[first - 1 + t]) for t, token in enumerate(term.row.tokens)]
            logp, a = mx.stack(rows), term.advantage  # [C]
            r = mx.exp(logp - old[index])
            if objective.ratio == "sequence":
                r = mx.exp(mx.mean(logp - old[index])) * mx.ones_like(logp)
            low, high = 1 - objective.epsilon_low, 1 + objective.epsilon_high
            clipped += int(((r < low) | (r > high)).sum().item())
            if objective.surrogate == "cispo":
                surrogate = -mx.stop_gradient(mx.clip(r, low, high)) * a * logp
            else:
                free = r if objective.delta is None else mx.minimum(r, objective.delta)
                surrogate = -mx.minimum(free * a, mx.clip(r, low, high) * a)
            d = ref[index] - logp
            total = total + term.weight * (surrogate + objective.beta * (mx.exp(d) - d - 1)).sum()
        return total

    def task_loss() -> mx.array:
        return sum((task.loss(batch)[0] for batch in task.batches(work)), mx.zeros(()))

    expected_value, expected = nn.value_and_grad(policy.model, naive_loss)()
    value, found = nn.value_and_grad(policy.model, task_loss)()
    assert clipped > 3
    assert value.item() == pytest.approx(expected_value.item(), abs=1e-5)
    assert_same_gradient(found, expected)
