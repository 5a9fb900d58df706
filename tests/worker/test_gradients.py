"""The gradient that an update applies: against finite differences, and unchanged by how its rows are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from engine.config import AdapterConfig
from engine.methods import METHODS, Objective
from engine.worker.batching import Batch, Row, aggregation_weights, minibatches, pack
from engine.worker.logprobs import completion_logprobs, completion_logprobs_and_entropy, score
from engine.worker.losses import STATS, policy_loss
from engine.worker.model import Policy, load_policy

from .rows import nudge, prompts_of, rollout_rows

ROWS = {name: row.objective for name, row in METHODS.items() if row.objective is not None}
OBJECTIVES = {
    **ROWS,
    "grpo without kl": Objective(),
    "grpo with k2": Objective(beta=0.1, kl="k2"),
    "grpo with k3_ratio": Objective(beta=0.1, kl="k3_ratio"),
    "gspo with kl": Objective(ratio="sequence", beta=0.1),
    "entropy bonus": Objective(entropy_bonus=0.1),
    "sequence_sum": Objective(ratio="sequence_sum", aggregate="constant", beta=0.1),
    "token_truncate": Objective(tis="token_truncate", tis_cap=1.05),
    "sequence_mask": Objective(tis="sequence_mask", tis_cap=1.3, tis_floor=0.7, beta=0.1),
}
# With completions and tokens on both sides of every bound. GSPO's own epsilons are narrow enough to clip half of what it meets.
CLIPPED = {
    "grpo": Objective(),
    "dapo": ROWS["dapo"],
    "delta": Objective(delta=1.9),
    "gspo": ROWS["gspo"],
    "gspo_token": ROWS["gspo_token"],
    "cispo": replace(ROWS["cispo"], epsilon_high=0.28),
    "cispo with a lower bound": Objective(surrogate="cispo", aggregate="token_mean"),
    "rloo": ROWS["rloo"],
    "grpo with k3_ratio": Objective(beta=0.1, kl="k3_ratio"),
    "sequence_truncate": Objective(tis="sequence_truncate", tis_cap=1.05),
}
KINDS = (3, 0, 2, 3, 0, 2, 1, 1)  # of the eight rows' sequence ratios: clipped above, below, and not, by either advantage
FROZEN = {"cispo", "sequence_token"}  # what holds a factor constant under the gradient


@lru_cache(maxsize=4)
def sampled(policy: Policy) -> tuple[list[Row], list[np.ndarray]]:
    """Eight completions in two groups, and their log-probabilities. A policy's weights are always put back, so once is enough."""
    rows = rollout_rows(policy, prompts_of(policy, "What is 2+3?", "Hi"), 1.0)
    return rows, score(policy, rows, 1.0, 8)


def case(policy: Policy, objective: Objective, apart: float = 0.0) -> tuple[list[Row], list[np.ndarray], list[np.ndarray]]:
    """Rows with advantages and weights, old log-probabilities a little off the present ones, reference ones further off.

    With `apart` they are off by +-apart or a tenth of it, and by twice it now and then (for a sequence ratio: as a whole), so
    that no ratio is near a bound and there are some on either side. Advantages differ by token where the method makes such.
    """
    rows, now = sampled(policy)
    weights = aggregation_weights(objective.aggregate, [len(r.tokens) for r in rows], [r.group for r in rows], 24)
    spread = [1.0, -0.5, 0.0, -0.5]
    rows = [replace(row, advantage=spread[row.index % 4], weight=weight) for row, weight in zip(rows, weights, strict=True)]
    random = np.random.default_rng(0)
    off = [0.02 * random.standard_normal(lp.shape) for lp in now]
    if apart:
        kinds = apart * np.array([-1.0, -0.1, 0.1, 1.0, 2.0])
        whole = [kinds[KINDS[row.index]] / (len(row.tokens) if objective.ratio == "sequence_sum" else 1) for row in rows]
        off = [
            random.choice(kinds, lp.shape) if objective.ratio == "token" else np.full(lp.shape, one)
            for lp, one in zip(now, whole, strict=True)
        ]
    old = [(lp - gap).astype(np.float32) for lp, gap in zip(now, off, strict=True)]
    sampler = [(lp + 0.1 * random.standard_normal(lp.shape)).astype(np.float32) for lp in old]
    ref = [(lp + 0.2 * random.standard_normal(lp.shape)).astype(np.float32) for lp in now]
    rows = [replace(row, sampler=tuple(sampler[row.index].tolist())) for row in rows]
    if objective.advantage == "global" or objective.ratio == "sequence_token":
        slope = [row.advantage + 0.3 * np.cos(np.arange(len(row.tokens))) for row in rows]
        rows = [replace(row, advantage=tuple(own.tolist())) for row, own in zip(rows, slope, strict=True)]
    return rows, old, ref


def losses(policy: Policy, objective: Objective, batches: Sequence[Batch]) -> tuple[mx.array, mx.array]:
    """Loss and statistics, summed over the batches."""
    total, sums = mx.zeros(()), mx.zeros(len(STATS))
    for batch in batches:
        logp, entropy = completion_logprobs(policy, batch, 1.0), None
        if objective.entropy_bonus:
            logp, entropy = completion_logprobs_and_entropy(policy, batch, 1.0, True)
        value, stats = policy_loss(
            logp,
            objective=objective,
            mask=mx.array(batch.mask),
            advantage=mx.array(batch.advantage),
            weight=mx.array(batch.weight),
            old=mx.array(batch.old),
            sampler=mx.array(batch.sampler),
            ref=mx.array(batch.ref),
            entropy=entropy,
        )
        total, sums = total + value, sums + stats
    return total, sums


def total_loss(policy: Policy, objective: Objective, batches: Sequence[Batch]) -> mx.array:
    return losses(policy, objective, batches)[0]


def frozen_loss(policy: Policy, objective: Objective, batches: Sequence[Batch], start: Sequence[mx.array]) -> mx.array:
    """The antiderivative of a loss that holds a factor constant under the gradient, by the formula: the factor is taken at the
    log-probabilities `start` and stays. cispo: -w clip(r0) A logp. sequence_token: r = s0 pi / pi0 in -w min(r A, clip(r) A)."""
    low = 0.0 if objective.epsilon_low is None else 1 - objective.epsilon_low
    total = mx.zeros(())
    for batch, logp0 in zip(batches, start, strict=True):
        mask, advantage, old = mx.array(batch.mask), mx.array(batch.advantage), mx.array(batch.old)
        logp = completion_logprobs(policy, batch, 1.0)
        if objective.surrogate == "cispo":
            term = mx.clip(mx.exp(logp0 - old), low, 1 + objective.epsilon_high) * advantage * logp
        else:
            sequence = mx.exp((mask * (logp0 - old)).sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True))
            ratio = sequence * mx.exp(logp - logp0)
            term = mx.minimum(ratio * advantage, mx.clip(ratio, low, 1 + objective.epsilon_high) * advantage)
        total = total - (mx.array(batch.weight)[:, None] * mask * term).sum()
    return total


def gradient(policy: Policy, objective: Objective, batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    _, grads = nn.value_and_grad(policy.model, lambda: total_loss(policy, objective, batches))()
    return {name: np.array(value) for name, value in tree_flatten(grads)}


@pytest.fixture(scope="module")
def nudged(blank_folder: Path) -> dict[str, Policy]:
    """One policy of each kind, its weights moved; a test that moves them puts them back."""
    made = {}
    for kind in ("lora", "dora", "full"):
        adapter = AdapterConfig.model_validate({"type": kind, "rank": 4, "scale": 4.0})
        made[kind] = load_policy(blank_folder, adapter, seed=0)
        nudge(made[kind])
    return made


def assert_slopes(policy: Policy, objective: Objective, batches: Sequence[Batch], directions: int = 3) -> None:
    """|(f(x + h u) - f(x - h u)) / 2h - g . u| <= 1e-3 |g| on random unit directions u, h = 1e-2, g from autograd.

    f is the loss itself, for losses with a constant factor `frozen_loss`. DoRA holds its weight norm constant under the gradient
    (arXiv 2402.09353, Sec. 4.3), so there only the magnitude is moved.
    """
    grads = gradient(policy, objective, batches)
    now = [mx.stop_gradient(completion_logprobs(policy, batch, 1.0)) for batch in batches]
    mx.eval(now)
    frozen = objective.surrogate in FROZEN or objective.ratio in FROZEN
    f = (lambda: frozen_loss(policy, objective, batches, now)) if frozen else (lambda: total_loss(policy, objective, batches))
    start = {key: value for key, value in policy.trainable().items() if policy.adapter.type != "dora" or key.endswith(".m")}
    norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    assert norm > 1e-2
    random = np.random.default_rng(1)
    for _ in range(directions):
        direction = {key: random.standard_normal(value.shape) for key, value in start.items()}
        length = np.sqrt(sum(float((u**2).sum()) for u in direction.values()))
        slope = sum(float((grads[key] * u).sum()) for key, u in direction.items()) / length
        values = []
        for h in (1e-2, -1e-2):
            moved = [(key, value + mx.array((h / length * direction[key]).astype(np.float32))) for key, value in start.items()]
            policy.model.load_weights(moved, strict=False)
            values.append(float(f().item()))
        policy.model.load_weights(list(start.items()), strict=False)
        assert abs((values[0] - values[1]) / 2e-2 - slope) <= 1e-3 * norm


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_agrees_with_central_differences(nudged: dict[str, Policy], name: str, kind: str) -> None:
    """A little off the policy, as a later mini-batch is: within every bound (GSPO's own clip would be a kink within h)."""
    objective = OBJECTIVES[name]
    if objective.ratio in ("sequence", "sequence_token"):
        objective = replace(objective, epsilon_low=0.2, epsilon_high=0.2)
    rows, old, ref = case(nudged[kind], objective)
    assert_slopes(nudged[kind], objective, pack(rows, 16, old=old, ref=ref))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", CLIPPED)
def test_gradient_agrees_with_central_differences_where_ratios_are_clipped(
    nudged: dict[str, Policy], name: str, kind: str
) -> None:
    """log r of about +-0.5, +-0.05 and 1 (GSPO +-0.1, +-0.01): shares are clipped below and above, and others are not."""
    objective = CLIPPED[name]
    narrow = objective.epsilon_high < 1e-2
    rows, old, ref = case(nudged[kind], objective, apart=0.1 if narrow else 0.5)
    batches = pack(rows, 16, old=old, ref=ref)
    stats = dict(zip(STATS, losses(nudged[kind], objective, batches)[1].tolist(), strict=True))
    assert stats["clip_high"] > 0.05 * stats["units"]
    assert stats["clip_low"] > 0.05 * stats["units"] or objective.epsilon_low is None
    assert stats["clip_low"] + stats["clip_high"] < 0.9 * stats["units"]
    assert_slopes(nudged[kind], objective, batches)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_splitting_into_micro_batches_changes_nothing(nudged: dict[str, Policy], name: str) -> None:
    """No number by more than 1e-6 of the gradient's norm: about 1 for a mean over tokens, 24 for a sum over them."""
    policy, objective = nudged["full"], OBJECTIVES[name]
    rows, old, ref = case(policy, objective)
    whole = gradient(policy, objective, pack(rows, 16, old=old, ref=ref))
    norm = np.sqrt(sum(float((value**2).sum()) for value in whole.values()))
    for size in (1, 3):
        parts = gradient(policy, objective, pack(rows, size, old=old, ref=ref))
        for key, value in whole.items():
            np.testing.assert_allclose(parts[key], value, rtol=0, atol=1e-6 * norm)


@pytest.mark.parametrize("name", ["grpo without kl", "dr_grpo", "gspo", "dapo", "cispo", "rloo"])
def test_leaving_out_rows_without_advantage_changes_nothing(nudged: dict[str, Policy], name: str) -> None:
    policy, objective = nudged["lora"], OBJECTIVES[name]
    rows, old, ref = case(policy, objective)
    whole = gradient(policy, objective, pack(rows, 16, old=old, ref=ref))
    kept = [row for row in rows if row.advantage]
    assert len(kept) < len(rows)
    fewer = gradient(policy, objective, pack(kept, 16, old=old, ref=ref))
    for key, value in whole.items():
        np.testing.assert_allclose(fewer[key], value, rtol=0, atol=2e-6)  # other micro-batches: rounding


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_gspo_is_grpo_on_policy(nudged: dict[str, Policy], name: str) -> None:
    """With old equal to the present policy the sequence ratio and the token ratios are all 1: same loss, same gradient."""
    policy = nudged["lora"]
    rows, _, ref = case(policy, OBJECTIVES[name])
    old = score(policy, rows, 1.0, 16)
    batches = pack(rows, 16, old=old, ref=ref)
    a, b = gradient(policy, OBJECTIVES["grpo without kl"], batches), gradient(policy, OBJECTIVES[name], batches)
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=0, atol=1e-7)


def test_minibatches_are_whole_groups_each_once_and_keyed() -> None:
    parts = minibatches(10, 4, seed=0, step=3, number=0)
    assert sorted(i for part in parts for i in part) == list(range(10))
    assert [len(part) for part in parts] == [3, 3, 2, 2]
    assert parts == minibatches(10, 4, seed=0, step=3, number=0)
    assert parts != minibatches(10, 4, seed=0, step=4, number=0)
    assert parts != minibatches(10, 4, seed=0, step=3, number=1)


def test_sequences_join_prompt_and_completion_without_a_gap() -> None:
    """Prompts [1 2 3] and [4], completions [7 8] and [9]: rows 1 2 3 7 8 and 4 9; the first completion token is predicted at
    the prompt's last place, 2 and 0."""
    (batch,) = pack([Row(0, (1, 2, 3), (7, 8)), Row(1, (4,), (9,))], 8)
    tokens, positions = batch.sequences()
    by_index = {int(i): place for place, i in enumerate(batch.index)}
    assert tokens[by_index[0]][:5].tolist() == [1, 2, 3, 7, 8]
    assert tokens[by_index[1]][:2].tolist() == [4, 9]
    assert positions[by_index[0]][:2].tolist() == [2, 3]
    assert positions[by_index[1]][0] == 0
    assert batch.mask[by_index[0]].sum() == 2 and batch.mask[by_index[1]].sum() == 1
