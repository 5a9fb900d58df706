"""One update for the benchmark: ours, and the same loss by the bare loop, with how far their gradients are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from engine import hardware
from engine.chunking import FLOAT32
from engine.config import RunConfig
from engine.errors import InputError
from engine.memory import Plan
from engine.worker import bench_bare
from engine.worker.batching import Batch
from engine.worker.losses import policy_loss, supervised_loss
from engine.worker.model import Policy
from engine.worker.step import RewardTask
from engine.worker.supervised import SupervisedTask
from engine.worker.trees import flat, scalar

_LOGITS_COPIES = 4  # of the floor's float32 logits that are alive at once


class BareUpdate:
    """The update that these micro-batches make, by the floor."""

    def __init__(self, policy: Policy, task: RewardTask | SupervisedTask, batches: Sequence[Batch]) -> None:
        self.policy = policy
        self.rows = bench_bare.rows_of(batches)
        self.objective = None if isinstance(task, SupervisedTask) else task.objective
        self.at_once = rows_at_once(task.config, len(self.rows), self.rows.prompts.shape[1] + self.rows.completions.shape[1])
        width = self.rows.completions.shape[1]
        names = ("mask", "advantage", "old", "sampler", "ref", "token_weight")
        self._columns = {name: _joined([getattr(batch, name) for batch in batches], width) for name in names}  # [B, C] each
        self._weight = mx.array(np.concatenate([batch.weight for batch in batches]))  # [B]

    def value_and_grad(self) -> tuple[mx.array, Any]:
        """The loss and its gradient, computed."""
        wants_entropy = self.objective is not None and bool(self.objective.entropy_bonus)
        return bench_bare.value_and_grad(self.policy.model, self.rows, self.at_once, self._loss, wants_entropy)

    def _loss(self, logp: mx.array, entropy: mx.array | None, part: slice) -> mx.array:
        columns = {name: None if column is None else column[part] for name, column in self._columns.items()}
        mask, weight = columns["mask"], self._weight[part]
        assert mask is not None and columns["advantage"] is not None
        if self.objective is None:
            return supervised_loss(logp, mask=mask, weight=weight, token_weight=columns["token_weight"])[0]
        return policy_loss(
            logp,
            objective=self.objective,
            mask=mask,
            advantage=columns["advantage"],
            weight=weight,
            old=columns["old"],
            sampler=columns["sampler"],
            ref=columns["ref"],
            entropy=entropy,
        )[0]


def gradient_difference(policy: Policy, task: RewardTask | SupervisedTask, batches: Sequence[Batch], bare: BareUpdate) -> float:
    """|ours - bare| / |bare|, norms over all trained numbers."""
    ours: Any = None
    for batch in batches:
        _, part = nn.value_and_grad(policy.model, task.loss)(batch)
        ours = part if ours is None else tree_map(mx.add, ours, part)
        mx.eval(ours)
    floor = bare.value_and_grad()[1]
    apart = tree_map(mx.subtract, ours, floor)
    return _norm(apart) / _norm(floor)


def require_all(updates: Sequence[Sequence[Batch]], rows: int) -> None:
    """InputError unless the updates train so many rows: those that are left out would count as speed."""
    trained = sum(len(batch.index) for batches in updates for batch in batches)
    if trained != rows:
        what = f"{trained} of {rows} rows are trained: the others would count as speed"
        raise InputError(what, where="bench", remedy="take another --method")


def rows_at_once(config: RunConfig, rows: int, width: int) -> int:
    """How many rows the floor takes in one pass: all of them, unless its logits and activations would not fit into this
    machine's memory."""
    known = hardware.facts()
    plan = Plan(config, known.backend)
    if plan.shape is None:
        return rows
    limit, logits = hardware.memory_limit_bytes(known), _LOGITS_COPIES * FLOAT32 * width * plan.shape.vocabulary
    while rows > 1 and plan.held + plan.activations(rows) + rows * logits > limit:
        rows = -(-rows // 2)
    return rows


def _joined(parts: Sequence[Any], width: int) -> mx.array | None:
    present = [part[:, :width] for part in parts if part is not None]
    return mx.array(np.concatenate(present)) if len(present) == len(parts) else None


def _norm(tree: Any) -> float:
    return scalar(mx.sqrt(mx.stack([mx.square(value.astype(mx.float32)).sum() for value in flat(tree).values()]).sum()))
