"""One optimizer update: micro-batches, accumulated gradients, clipping, the schedule. Knows neither rewards nor rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_reduce

from engine.config import OptimConfig
from engine.worker import keys, turns
from engine.worker.batching import Batch
from engine.worker.blame import rows_to_blame
from engine.worker.losses import STATS
from engine.worker.model import Policy
from engine.worker.optimizers import make_optimizer
from engine.worker.trees import flat, floats, scalar

# (batch) -> loss (scalar sum) and statistics; called inside the differentiated function, so it must run the model itself.
Loss = Callable[[Batch], tuple[mx.array, mx.array]]
WATCHED_BYTES = 64 * 2**20  # of old weights that are held to see whether an update moves them


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one update measured: the loss, the gradient's norm before clipping, the rate and the sums that STATS names."""

    loss: float
    grad_norm: float
    lr: float
    stats: dict[str, float]
    applied: bool  # False: the gradient was not finite, and weights and optimizer were left as they were
    moved: float | None = None  # share of the watched trainable numbers that changed; None: not applied, or a gradient of 0


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """The rate of update `update` (from 0) of `total`: linear warm-up, then constant, linear to 0, or half a cosine to 0."""
    warmup = math.ceil(config.warmup * total)
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    progress = (update - warmup) / max(total - warmup, 1)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[config.schedule]
    return config.learning_rate * factor


def clipped(gradient: Any, norm: float, limit: float) -> Any:
    """The gradient scaled down to the norm `limit`, where its norm is larger."""
    return tree_map(lambda g: g * (limit / norm), gradient) if norm > limit else gradient


def strides(arrays: Mapping[str, mx.array], limit: int) -> dict[str, int]:
    """Which numbers of each array to watch, every one or every n-th, so that they take `limit` bytes at most in all: an equal
    share for each array, so that no part of the model goes unseen."""
    share = max(limit // max(len(arrays), 1), 1)
    return {name: max(-(-array.nbytes // share), 1) for name, array in arrays.items()}


class Trainer:
    """The optimizer with its state, and the one way to change weights."""

    def __init__(self, policy: Policy, config: OptimConfig, total_updates: int, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.total_updates = total_updates
        self.seed = seed
        self.optimizer = make_optimizer(config, policy.trainable())
        self.optimizer.init(policy.model.trainable_parameters())
        self._strides = strides(policy.trainable(), WATCHED_BYTES)

    def update(self, number: int, batches: Sequence[Batch], loss: Loss) -> UpdateResult:
        """Apply update `number` (from 0, over the whole run): the gradient of the batches' summed losses.

        Without batches (no completion has an advantage) the gradient is exactly zero and the optimizer still steps, as it
        would have done with all rows computed.
        """
        rate = learning_rate(self.config, number, self.total_updates)
        gradient = tree_map(mx.zeros_like, self.policy.model.trainable_parameters())
        total, stats = mx.zeros(()), mx.zeros(len(STATS))
        for place, batch in enumerate(batches):
            value, sums, part = self._gradient(number, place, batch, loss)
            gradient = part if place == 0 else tree_map(mx.add, gradient, part)
            total, stats = total + value, stats + sums
            mx.eval(gradient, total, stats)
        grad_norm, loss_value = scalar(_norm(gradient)), scalar(total)
        applied = math.isfinite(grad_norm) and math.isfinite(loss_value)
        moved = None
        if applied:
            before = self._watched() if grad_norm else None
            self.optimizer.learning_rate = rate
            self.optimizer.update(self.policy.model, clipped(gradient, grad_norm, self.config.max_grad_norm))
            mx.eval(self.policy.model.trainable_parameters(), self.optimizer.state)
            moved = None if before is None else _share_changed(before, self._watched())
        sums_by_name = dict(zip(STATS, floats(stats), strict=True))
        return UpdateResult(loss_value, grad_norm, rate, sums_by_name, applied, moved)

    def not_computed(self, number: int) -> UpdateResult:
        """The result of update `number` where what it needs is not finite: nothing is changed."""
        nan = float("nan")
        return UpdateResult(nan, nan, learning_rate(self.config, number, self.total_updates), dict.fromkeys(STATS, 0.0), False)

    def blame(self, number: int, batches: Sequence[Batch], loss: Loss) -> list[int]:
        """Indices of the rows that made update `number` not finite, computed anew from the weights that it left as they were."""

        def is_finite(place: int, batch: Batch) -> bool:
            value, _, gradient = self._gradient(number, place, batch, loss)
            return bool(mx.isfinite(value + _norm(gradient)).item())

        return rows_to_blame(batches, is_finite)

    def weights_are_finite(self) -> bool:
        """Whether every trainable number is: where one is not, an earlier update broke the weights."""
        return bool(mx.all(mx.stack([mx.isfinite(value).all() for value in self.policy.trainable().values()])).item())

    def state(self) -> dict[str, mx.array]:
        """The optimizer's arrays by name (moments, step, rate)."""
        return flat(self.optimizer.state)

    def _gradient(self, number: int, place: int, batch: Batch, loss: Loss) -> tuple[mx.array, mx.array, Any]:
        """Loss, statistics and gradient of micro-batch `place` of update `number`, not yet evaluated."""
        if self.policy.adapter.dropout:
            mx.random.seed(keys.key32(self.seed, number, place, "dropout"))
        (value, sums), gradient = turns.computed(lambda: nn.value_and_grad(self.policy.model, loss)(batch))
        return value, sums, gradient

    def _watched(self) -> list[mx.array]:
        """The watched numbers as they are now, apart from the arrays they were taken from (an array that is watched whole is
        itself held)."""
        arrays = self.policy.trainable()
        found = [mx.contiguous(arrays[name].reshape(-1)[::stride]) for name, stride in self._strides.items()]
        mx.eval(found)
        return found


def _norm(gradient: Any) -> mx.array:
    """Of all arrays together."""
    return mx.sqrt(tree_reduce(lambda total, g: total + _squares(g), gradient, mx.zeros(())))


def _squares(array: mx.array) -> mx.array:
    """The sum of squares in float32, axis by axis: one long sum on a CPU loses a fifth of a 65-million-number matrix."""
    found = mx.square(array.astype(mx.float32))
    while found.ndim:
        found = found.sum(axis=-1)
    return found


def _share_changed(before: Sequence[mx.array], after: Sequence[mx.array]) -> float:
    changed = mx.stack([mx.not_equal(old, new).sum() for old, new in zip(before, after, strict=True)]).sum()
    return scalar(changed) / sum(old.size for old in before)
