"""The gradient that an update applies: against finite differences, and unchanged by how its rows are split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from engine.methods import METHODS, Objective
from engine.worker.batching import Batch, Row, aggregation_weights, minibatches, pack
from engine.worker.logprobs import completion_logprobs, score
from engine.worker.losses import policy_loss
from engine.worker.model import Policy

from .rows import nudge, prompts_of, rollout_rows

OBJECTIVES = {
    "grpo": Objective(),
    "grpo with kl": Objective(beta=0.1),
    "grpo with k2": Objective(beta=0.1, kl="k2"),
    "dr_grpo": METHODS["dr_grpo"].objective,
    "gspo": METHODS["gspo"].objective,
}


def case(policy: Policy, objective: Objective) -> tuple[list[Row], list[np.ndarray], list[np.ndarray]]:
    """Rows with advantages and weights, old log-probabilities a little off the present ones, reference ones further off."""
    rows = rollout_rows(policy, prompts_of(policy, "What is 2+3?", "Hi"), 1.0)
    weights = aggregation_weights(objective.aggregate, [len(r.tokens) for r in rows], [r.group for r in rows], 24)
    spread = [1.0, -0.5, 0.0, -0.5]
    rows = [replace(row, advantage=spread[row.index % 4], weight=weight) for row, weight in zip(rows, weights, strict=True)]
    random = np.random.default_rng(0)
    now = score(policy, rows, 1.0, 8)
    old = [(lp + 0.02 * random.standard_normal(lp.shape)).astype(np.float32) for lp in now]
    ref = [(lp + 0.2 * random.standard_normal(lp.shape)).astype(np.float32) for lp in now]
    return rows, old, ref


def total_loss(policy: Policy, objective: Objective, batches: Sequence[Batch]) -> mx.array:
    loss = mx.zeros(())
    for batch in batches:
        loss = (
            loss
            + policy_loss(
                completion_logprobs(policy, batch, 1.0),
                objective=objective,
                mask=mx.array(batch.mask),
                advantage=mx.array(batch.advantage),
                weight=mx.array(batch.weight),
                old=mx.array(batch.old),
                ref=mx.array(batch.ref),
            )[0]
        )
    return loss


def gradient(policy: Policy, objective: Objective, batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    _, grads = nn.value_and_grad(policy.model, lambda: total_loss(policy, objective, batches))()
    return {name: np.array(value) for name, value in tree_flatten(grads)}


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_agrees_with_central_differences(make_policy: Callable[..., Policy], name: str, kind: str) -> None:
    """|(f(x + h u) - f(x - h u)) / 2h - g . u| <= 1e-3 |g| on 8 random unit directions, h = 1e-2.

    DoRA holds its weight norm constant under the gradient (arXiv 2402.09353, Sec. 4.3), so there only the magnitude is moved.
    """
    objective = OBJECTIVES[name]
    if objective.ratio == "sequence":
        objective = replace(objective, epsilon_low=0.2, epsilon_high=0.2)  # its own clip is a kink within h
    policy = make_policy(kind)
    nudge(policy)
    rows, old, ref = case(policy, objective)
    batches = pack(rows, 16, old=old, ref=ref)
    grads = gradient(policy, objective, batches)
    start = {key: value for key, value in policy.trainable().items() if kind != "dora" or key.endswith(".m")}
    norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    assert norm > 1e-3
    random = np.random.default_rng(1)
    for _ in range(8):
        direction = {key: random.standard_normal(value.shape) for key, value in start.items()}
        length = np.sqrt(sum(float((u**2).sum()) for u in direction.values()))
        slope = sum(float((grads[key] * u).sum()) for key, u in direction.items()) / length
        values = []
        for h in (1e-2, -1e-2):
            moved = [(key, value + mx.array((h / length * direction[key]).astype(np.float32))) for key, value in start.items()]
            policy.model.load_weights(moved, strict=False)
            values.append(float(total_loss(policy, objective, batches).item()))
        policy.model.load_weights(list(start.items()), strict=False)
        assert abs((values[0] - values[1]) / 2e-2 - slope) <= 1e-3 * norm


@pytest.mark.parametrize("name", OBJECTIVES)
def test_splitting_into_micro_batches_changes_nothing(make_policy: Callable[..., Policy], name: str) -> None:
    policy, objective = make_policy("full"), OBJECTIVES[name]
    rows, old, ref = case(policy, objective)
    whole = gradient(policy, objective, pack(rows, 16, old=old, ref=ref))
    for size in (1, 3):
        parts = gradient(policy, objective, pack(rows, size, old=old, ref=ref))
        for key, value in whole.items():
            np.testing.assert_allclose(parts[key], value, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "gspo"])
def test_leaving_out_rows_without_advantage_changes_nothing(make_policy: Callable[..., Policy], name: str) -> None:
    policy, objective = make_policy("lora"), OBJECTIVES[name]
    nudge(policy)
    rows, old, ref = case(policy, objective)
    whole = gradient(policy, objective, pack(rows, 16, old=old, ref=ref))
    kept = [row for row in rows if row.advantage]
    assert len(kept) < len(rows)
    fewer = gradient(policy, objective, pack(kept, 16, old=old, ref=ref))
    for key, value in whole.items():
        np.testing.assert_allclose(fewer[key], value, rtol=0, atol=1e-6)


def test_gspo_is_grpo_on_policy(make_policy: Callable[..., Policy]) -> None:
    """With old equal to the present policy the sequence ratio and the token ratios are all 1: same loss, same gradient."""
    policy = make_policy("lora")
    nudge(policy)
    rows, _, ref = case(policy, OBJECTIVES["grpo"])
    old = score(policy, rows, 1.0, 16)
    batches = pack(rows, 16, old=old, ref=ref)
    a, b = gradient(policy, OBJECTIVES["grpo"], batches), gradient(policy, OBJECTIVES["gspo"], batches)
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
