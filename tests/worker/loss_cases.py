"""Random batches for properties of the policy loss, and the loss with its gradient by the product's own function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.methods import METHODS, Objective
from engine.worker.batching import aggregation_weights
from engine.worker.losses import STATS, policy_loss

Array = NDArray[np.float32]
LIMIT = 9  # completion tokens
ARRAYS = ("logp", "old", "ref", "sampler", "entropy", "mask", "advantage")

ROWS = {name: row.objective for name, row in METHODS.items() if row.objective is not None}
# Every form of the loss, the methods' rows first; two-sided clipping, importance weights, KLs and the entropy bonus after them.
FORMS: dict[str, Objective] = {
    **ROWS,
    "k2": Objective(beta=0.1, kl="k2"),
    "k3_ratio": Objective(beta=0.1, kl="k3_ratio"),
    "delta": Objective(delta=1.6, aggregate="token_mean"),
    "sequence, delta": Objective(ratio="sequence", delta=1.3),
    "sequence_sum, kl in the loss": Objective(ratio="sequence_sum", beta=0.1),
    "group_token_mean": Objective(aggregate="group_token_mean"),
    "seq_sum": Objective(aggregate="seq_sum"),
    "cispo with a lower bound": Objective(surrogate="cispo", epsilon_low=0.2, epsilon_high=0.28),
    "entropy bonus": Objective(entropy_bonus=0.05),
    "token_truncate": Objective(tis="token_truncate", tis_cap=1.1),
    "token_mask": Objective(tis="token_mask", tis_cap=1.2, tis_floor=0.8),
    "sequence_truncate": Objective(tis="sequence_truncate", tis_cap=1.2, ratio="sequence"),
    "sequence_mask": Objective(tis="sequence_mask", tis_cap=2.0, tis_floor=0.5, beta=0.1),
}


@dataclass(frozen=True)
class Case:
    """One update's completions. `lengths` and `groups` cover all of its rows, arrays are [B, C]."""

    logp: Array
    old: Array | None
    ref: Array
    sampler: Array
    entropy: Array
    mask: Array
    advantage: Array
    lengths: tuple[int, ...]
    groups: tuple[int, ...]

    def weights(self, aggregate: Any) -> Array:
        return np.array(aggregation_weights(aggregate, self.lengths, self.groups, LIMIT), dtype=np.float32)

    def take(self, rows: Sequence[int]) -> Case:
        """These rows of the arrays; `lengths` and `groups` stay those of the whole update."""
        return self.changed(lambda array: array[list(rows)])

    def changed(self, change: Any) -> Case:
        """With `change` made to every array."""
        return replace(self, **{name: change(value) for name in ARRAYS if (value := getattr(self, name)) is not None})


@st.composite
def cases(draw: st.DrawFn, lengths: st.SearchStrategy[list[int]] | None = None, per_token: bool = False) -> Case:
    """1 to 6 completions of 0 to 9 tokens: old, sampler and reference a good way off the policy, advantages 0 now and then."""
    found = draw(st.lists(st.integers(0, LIMIT), min_size=1, max_size=6) if lengths is None else lengths)
    shape = (len(found), max(1, max(found)))
    groups = draw(st.lists(st.integers(0, 2), min_size=shape[0], max_size=shape[0]))
    sign = draw(st.lists(st.sampled_from([-1.5, -1.0, 0.0, 0.5, 2.0]), min_size=shape[0], max_size=shape[0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logp = random.uniform(-5, -0.01, shape)
    advantage = np.array(sign)[:, None] * (random.uniform(-1, 1, shape) if per_token else np.ones(shape))
    mask = np.arange(shape[1])[None] < np.array(found)[:, None]
    off = lambda scale: logp + scale * random.standard_normal(shape)  # noqa: E731
    arrays = (logp, off(0.3), off(0.6), off(0.3), random.uniform(0, 3, shape), mask, advantage)
    return Case(*(np.where(mask, array, 0).astype(np.float32) for array in arrays), tuple(found), tuple(groups))


def evaluate(
    case: Case, objective: Objective, weight: Array | None = None, *, by: str = "logp"
) -> tuple[float, Array, dict[str, float]]:
    """Loss, d loss / d `by` [B, C] and statistics; weights are the objective's own unless given."""
    weight = case.weights(objective.aggregate) if weight is None else weight
    given = {name: mx.array(value) for name in ARRAYS if (value := getattr(case, name)) is not None}

    def loss(array: mx.array) -> tuple[mx.array, mx.array]:
        arguments = {**given, by: array}
        return policy_loss(arguments.pop("logp"), objective=objective, weight=mx.array(weight), **arguments)

    (value, stats), gradient = mx.value_and_grad(loss)(given[by])
    return float(value.item()), np.array(gradient), dict(zip(STATS, stats.tolist(), strict=True))


def assert_same(found: tuple[float, Array, Any], expected: tuple[float, Array, Any]) -> None:
    """Loss and gradient within float32's rounding of sums: 2e-6 + 1e-5 of the value."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=2e-6)
