"""An objective's options through a real step: what they do to rows, weights, advantages and log-probabilities.

Rewards are step_bench's, fixed beforehand; log-probabilities, entropies and KL are worked out from plain forwards of single rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from engine.worker.batching import Row
from engine.worker.credit import advantages_of
from engine.worker.logprobs import score
from engine.worker.model import Policy
from engine.worker.step import RewardTask, step_completions
from engine.worker.work import StepWork

from .step_bench import (
    TEMPERATURE,
    Bench,
    completions,
    nudged,
    rows_of,
    take_update,
    trainer_of,
    watch,
)

ONE_UPDATE = {"objective__minibatches": 1, "objective__updates_per_rollout": 1}
FOUR_UPDATES = {"objective__minibatches": 4, "objective__updates_per_rollout": 1}


def counted_references(policy: Policy) -> list[int]:
    """Counts, in place, how often the policy is turned into its reference."""
    entries: list[int] = []
    inside = policy.reference

    @contextmanager
    def reference() -> Iterator[None]:
        entries.append(1)
        with inside():
            yield

    policy.reference = reference  # type: ignore[method-assign]
    return entries


@pytest.mark.parametrize(
    ("overrides", "per_step"),
    [
        ({"method": "grpo", "objective__beta": 0.0}, 0),
        ({"method": "dr_grpo"}, 0),
        ({"method": "gspo"}, 0),
        ({"method": "rloo", "objective__beta": 0.0}, 0),
        ({"method": "grpo", "objective__beta": 0.04}, 1),
        ({"method": "rloo", "objective__beta": 0.05}, 1),
        ({"method": "reinforce_pp", "objective__beta": 0.001}, 1),
    ],
)
def test_the_reference_runs_once_a_step_and_never_at_beta_zero(
    make_policy: Callable[..., Policy], bench: Bench, overrides: dict[str, Any], per_step: int
) -> None:
    """Through a whole step with four updates; under full training the second copy of the weights is not made either."""
    policy = make_policy("full")
    entries = counted_references(policy)
    task = bench.task(policy, **FOUR_UPDATES | overrides)
    trainer = trainer_of(task)
    work = task.begin(1, watch())
    for _ in range(4):
        take_update(task, trainer, work)
    assert len(entries) == per_step
    if not per_step:
        with pytest.raises(ValueError, match="keep_initial"), policy.reference():
            pass


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        ({"objective__beta": 0.0}, 18),
        ({"objective__beta": 0.05}, 23),
        ({"objective__beta": 0.0, "objective__entropy_bonus": 0.01}, 23),
        ({"method": "rloo", "objective__beta": 0.0}, 18),
    ],
)
def test_rows_without_an_advantage_stay_where_a_kl_or_a_bonus_moves_them(
    make_policy: Callable[..., Policy], bench: Bench, overrides: dict[str, Any], rows: int
) -> None:
    """24 completions, one without a reward; five have no advantage (a whole group, and one at its group's mean)."""
    task = bench.task(nudged(make_policy("lora")), **ONE_UPDATE | overrides)
    work = task.begin(1, watch())
    batches = task.batches(work)
    found = rows_of(batches)
    assert len(found) == rows
    silent = [index for index, (_, advantage, _) in found.items() if not any(advantage)]
    assert len(silent) == rows - 18
    # left out or not, they are counted: 1/(24 |o|) each
    assert all(weight == pytest.approx(1 / (24 * len(tokens)), rel=1e-6) for weight, _, tokens in found.values())
    if silent:
        kept = [replace(batch, weight=np.where(np.isin(batch.index, silent), batch.weight, 0)) for batch in batches]
        gradient = nn.value_and_grad(task.policy.model, lambda: sum((task.loss(one)[0] for one in kept), mx.zeros(())))()[1]
        assert max(float(mx.abs(value).max().item()) for _, value in tree_flatten(gradient)) > 1e-6


# --- tokens of high entropy


def plain_entropy(policy: Policy, row: Row) -> np.ndarray:
    """Of softmax(logits / T) at each completion token, by one unpadded forward, in nats."""
    logits = policy.model(mx.array([[*row.prompt, *row.tokens]]))[0, len(row.prompt) - 1 : -1].astype(mx.float32) / TEMPERATURE
    logp = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), dtype=np.float64)
    return -(np.exp(logp) * logp).sum(axis=-1)


@pytest.mark.parametrize("overrides", [ONE_UPDATE, {"method": "gspo_token", "objective__minibatches": 1}])
def test_the_top_share_of_tokens_keeps_its_advantage_and_the_weights_stay(
    make_policy: Callable[..., Policy], bench: Bench, overrides: dict[str, Any]
) -> None:
    """A quarter of the n tokens of all completions that have a reward: floor((n - 1) / 4) + 1 tokens reach the 0.75 quantile,
    which lies at place 0.75 (n - 1) of the sorted entropies. The weights count the others still."""
    policy = nudged(make_policy("lora"))
    overrides = overrides | {"run__seed": 1}  # one whose quantile lies between two tokens, clearly
    everything = bench.task(policy, **overrides)
    task = bench.task(policy, **overrides | {"objective__entropy_quantile": 0.25})
    work, whole = task.begin(1, watch()), everything.begin(1, watch())
    assert [group.rollouts for group in work.groups] == [group.rollouts for group in whole.groups]
    rewards = [reward for group in work.groups for reward in group.rewards]
    entropy = {row.index: plain_entropy(policy, row) for row in completions(work)}
    counted = np.concatenate([value for index, value in entropy.items() if rewards[index] is not None])
    count = (len(counted) - 1) // 4 + 1
    least = np.sort(counted)[::-1][count - 1 : count + 1].mean()  # between the last that is in and the first that is not
    assert np.abs(counted - least).min() > 1e-5
    found, full = rows_of(task.batches(work)), rows_of(everything.batches(whole))
    for index, (weight, advantage, _) in full.items():
        expected = np.where(entropy[index] >= least, advantage, 0.0)
        if expected.any():
            assert found[index][0] == weight
            np.testing.assert_allclose(found[index][1], expected, rtol=1e-6)
        else:
            assert index not in found
    assert found and found.keys() <= full.keys()


# --- whose log-probabilities


def reported_off(work: StepWork, by: float) -> None:
    """The sampler's log-probabilities moved by `by` at every token."""
    work.groups = [
        replace(group, rollouts=tuple(replace(one, logprobs=tuple(v + by for v in one.logprobs)) for one in group.rollouts))
        for group in work.groups
    ]


@pytest.mark.parametrize("shape", [ONE_UPDATE, FOUR_UPDATES])
def test_old_may_be_what_the_sampler_reported(make_policy: Callable[..., Policy], bench: Bench, shape: dict[str, Any]) -> None:
    """Nothing is scored; the ratio is pi / sampler from the first update on, here with samplers that were 0.1 off."""
    task = bench.task(nudged(make_policy("lora")), **shape | {"objective__old": "sampler"})
    work = task.begin(1, watch())
    assert work.old is None and "score" not in work.seconds
    reported_off(work, -0.1)
    reported = [rollout.logprobs for group in work.groups for rollout in group.rollouts]
    for batch in task.batches(work):
        assert batch.old is not None
        for place, index in enumerate(batch.index.tolist()):
            np.testing.assert_allclose(batch.old[place, : len(reported[index])], reported[index], rtol=1e-6)
    stats = take_update(task, trainer_of(task), work).stats
    assert stats["ratio"] / stats["units"] == pytest.approx(math.exp(0.1), abs=1e-4)


def gradient(task: RewardTask, work: StepWork) -> dict[str, mx.array]:
    batches = task.batches(work)
    grads = nn.value_and_grad(task.policy.model, lambda: sum((task.loss(one)[0] for one in batches), mx.zeros(())))()[1]
    return dict(tree_flatten(grads))


@pytest.mark.parametrize("shape", [ONE_UPDATE, FOUR_UPDATES])
@pytest.mark.parametrize(
    ("tis", "cap", "by", "factor"),
    [
        ("token_truncate", 1.05, -0.1, 1.05),
        ("token_truncate", 3.0, -0.1, math.exp(0.1)),
        ("token_truncate", 3.0, 0.1, math.exp(-0.1)),
        ("token_mask", 1.05, -0.1, 0.0),
        ("token_mask", 3.0, -0.1, math.exp(0.1)),
        ("sequence_truncate", 1.0, -0.1, 1.0),
        ("sequence_mask", 1.01, -0.1, 0.0),
    ],
)
def test_the_importance_weight_is_trainer_over_sampler(
    make_policy: Callable[..., Policy], bench: Bench, tis: str, cap: float, by: float, factor: float, shape: dict[str, Any]
) -> None:
    """Samplers that reported 0.1 less than they should: each token's weight is e^0.1 = 1.105, capped or zeroed; a completion's at
    least that. The gradient of the first update is the one without a weight, times the factor."""
    policy = nudged(make_policy("lora"))
    plain, weighted = (bench.task(policy, **shape | more) for more in ({}, {"objective__tis": tis, "objective__tis_cap": cap}))
    works = [task.begin(1, watch()) for task in (plain, weighted)]
    for work in works:
        reported_off(work, by)
    expected, found = gradient(plain, works[0]), gradient(weighted, works[1])
    size = max(float(mx.abs(value).max().item()) for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(np.array(found[name]), factor * np.array(value), rtol=0, atol=2e-4 * size)
    stats = take_update(weighted, trainer_of(weighted), works[1]).stats
    assert stats["tis"] / stats["tokens"] == pytest.approx(factor, abs=1e-4)
    assert stats["mismatch"] / stats["tokens"] == pytest.approx(0.1, abs=1e-4)
    assert weighted.metrics(works[1]).tis == pytest.approx(factor, abs=1e-4)


# --- the KL in the reward


def token_kl(task: RewardTask, work: StepWork) -> list[np.ndarray]:
    """old - ref of each completion, scored apart from the step."""
    rows = step_completions(work.groups)
    old = score(task.policy, rows, TEMPERATURE, 2)
    with task.policy.reference():
        ref = score(task.policy, rows, TEMPERATURE, 2)
    return [a.astype(np.float64) - b for a, b in zip(old, ref, strict=True)]


@pytest.mark.parametrize("old", ["trainer", "sampler"])
@pytest.mark.parametrize("shape", [ONE_UPDATE, FOUR_UPDATES])
def test_rloo_charges_the_kl_of_the_whole_completion(
    make_policy: Callable[..., Policy], bench: Bench, shape: dict[str, Any], old: str
) -> None:
    """A_i = R_i - mean of the other R, R = reward - 0.05 sum_t (old - ref), from scores taken apart; none in the loss."""
    task = bench.task(nudged(make_policy("lora")), **shape | {"method": "rloo", "objective__beta": 0.05, "objective__old": old})
    work = task.begin(1, watch())
    assert work.ref is None and all(batch.ref is None for batch in task.batches(work))
    kl = token_kl(task, work)
    place = 0
    for group in work.groups:
        charged = [None if r is None else r - 0.05 * kl[place + i].sum() for i, r in enumerate(group.rewards)]
        place += len(charged)
        for member, own in enumerate(charged):
            others = [value for i, value in enumerate(charged) if i != member and value is not None]
            expected = 0.0 if own is None else own - sum(others) / len(others)
            assert group.advantages[member] == pytest.approx(expected, abs=1e-5)
        assert group.token_advantages == ()
    everything = np.concatenate(kl)
    assert np.abs(everything).mean() > 0.01
    assert work.kl == pytest.approx(everything.mean(), abs=1e-5)
    take_update(task, trainer_of(task), work)
    assert task.metrics(work).kl == work.kl


def test_reinforce_pp_charges_each_token_the_kl_to_come(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Returns r - 0.5 sum_{s >= t} (old - ref)_s of every token that has a reward, whitened over all of them."""
    task = bench.task(nudged(make_policy("lora")), **ONE_UPDATE | {"method": "reinforce_pp", "objective__beta": 0.5})
    work = task.begin(1, watch())
    kl, returns = iter(token_kl(task, work)), []
    for group in work.groups:
        for reward in group.rewards:
            own = next(kl)
            returns.append(None if reward is None else reward - 0.5 * np.cumsum(own[::-1])[::-1])
    every = np.concatenate([one for one in returns if one is not None])
    found = [advantage for group in work.groups for advantage in advantages_of(group)]
    for value, advantage in zip(returns, found, strict=True):
        if value is None:
            assert not np.any(advantage)
        else:
            np.testing.assert_allclose(advantage, (value - every.mean()) / (every.std(ddof=1) + 1e-4), rtol=0, atol=1e-5)
    batches = rows_of(task.batches(work))
    assert len(batches) == 23
    for index, (_, advantage, _) in batches.items():
        np.testing.assert_allclose(advantage, found[index], rtol=1e-6)


# --- a reference that moves


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_after_a_sync_the_kl_starts_from_zero_again(make_policy: Callable[..., Policy], bench: Bench, kind: str) -> None:
    """Every 2 steps: the KL of the first update is 0 in steps 1 (nothing has moved), 3 and 5, and not in steps 2 and 4."""
    task = bench.task(make_policy(kind), **FOUR_UPDATES | {"objective__beta": 0.05, "objective__ref_sync_every": 2})
    trainer = trainer_of(task, learning_rate=2e-2)
    first = []
    for step in range(1, 6):
        work = task.begin(step, watch())
        for _ in range(4):
            take_update(task, trainer, work)
        first.append(work.updates[0].stats["kl"] / work.updates[0].stats["tokens"])
        assert work.updates[3].stats["kl"] / work.updates[3].stats["tokens"] > 1e-5
    assert [value > 1e-5 for value in first] == [False, True, False, True, False]
    assert max(first[0], first[2], first[4]) < 1e-8


def test_a_synced_reference_is_the_policy_of_that_moment(make_policy: Callable[..., Policy], bench: Bench) -> None:
    """Half way for full training: reference = 0.5 policy + 0.5 reference, once at step 3 and again at step 5."""
    policy = make_policy("full")
    overrides = {"objective__beta": 0.05, "objective__ref_sync_every": 2, "objective__ref_sync_mix": 0.5}
    task = bench.task(policy, **ONE_UPDATE | overrides | {"adapter__type": "full"})
    trainer = trainer_of(task, learning_rate=2e-2)
    reference = {name: np.array(value) for name, value in policy.trainable().items()}
    for step in range(1, 6):
        if step in (3, 5):
            reference = {name: 0.5 * reference[name] + 0.5 * np.array(value) for name, value in policy.trainable().items()}
        work = task.begin(step, watch())
        with policy.reference():
            for name, value in policy.trainable().items():
                np.testing.assert_allclose(np.array(value), reference[name], rtol=0, atol=1e-6)
        take_update(task, trainer, work)
