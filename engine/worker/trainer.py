"""One optimizer update: micro-batches, accumulated gradients, clipping, the schedule. Knows neither rewards nor rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_reduce

from engine.config import OptimConfig
from engine.worker import keys
from engine.worker.batching import Batch
from engine.worker.losses import STATS
from engine.worker.model import Policy
from engine.worker.trees import flat, floats, scalar

# (batch) -> loss (scalar sum) and statistics; called inside the differentiated function, so it must run the model itself.
Loss = Callable[[Batch], tuple[mx.array, mx.array]]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one update measured: the loss, the gradient's norm before clipping, the rate and the sums that STATS names."""

    loss: float
    grad_norm: float
    lr: float
    stats: dict[str, float]
    applied: bool  # False: the gradient was not finite, and weights and optimizer were left as they were


def make_optimizer(config: OptimConfig) -> optim.Optimizer:
    """The optimizer by name. Adam and AdamW correct the bias of their first steps."""
    if config.name == "sgd":
        return optim.SGD(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    betas = list(config.betas)
    if config.name == "adam":
        return optim.Adam(learning_rate=config.learning_rate, betas=betas, eps=config.eps, bias_correction=True)
    return optim.AdamW(
        learning_rate=config.learning_rate, betas=betas, eps=config.eps, weight_decay=config.weight_decay, bias_correction=True
    )


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """The rate of update `update` (from 0) of `total`: linear warm-up, then constant, linear to 0, or half a cosine to 0."""
    warmup = math.ceil(config.warmup * total)
    if update < warmup:
        return config.learning_rate * (update + 1) / warmup
    progress = (update - warmup) / max(total - warmup, 1)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[config.schedule]
    return config.learning_rate * factor


class Trainer:
    """The optimizer with its state, and the one way to change weights."""

    def __init__(self, policy: Policy, config: OptimConfig, total_updates: int, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.total_updates = total_updates
        self.seed = seed
        self.optimizer = make_optimizer(config)
        self.optimizer.init(policy.model.trainable_parameters())

    def update(self, number: int, batches: Sequence[Batch], loss: Loss) -> UpdateResult:
        """Apply update `number` (from 0, over the whole run): the gradient of the batches' summed losses.

        Without batches (no completion has an advantage) the gradient is exactly zero and the optimizer still steps, as it
        would have done with all rows computed.
        """
        rate = learning_rate(self.config, number, self.total_updates)
        value_and_grad = nn.value_and_grad(self.policy.model, loss)
        gradient = tree_map(mx.zeros_like, self.policy.model.trainable_parameters())
        total, stats = mx.zeros(()), mx.zeros(len(STATS))
        for place, batch in enumerate(batches):
            if self.policy.adapter.dropout:
                mx.random.seed(keys.key32(self.seed, number, place, "dropout"))
            (value, sums), part = value_and_grad(batch)
            gradient = part if place == 0 else tree_map(mx.add, gradient, part)
            total, stats = total + value, stats + sums
            mx.eval(gradient, total, stats)
        norm = mx.sqrt(tree_reduce(lambda sum_, g: sum_ + mx.square(g.astype(mx.float32)).sum(), gradient, mx.zeros(())))
        grad_norm, loss_value = scalar(norm), scalar(total)
        applied = math.isfinite(grad_norm) and math.isfinite(loss_value)
        if applied:
            if grad_norm > self.config.max_grad_norm:
                scale = self.config.max_grad_norm / grad_norm
                gradient = tree_map(lambda g: g * scale, gradient)
            self.optimizer.learning_rate = rate
            self.optimizer.update(self.policy.model, gradient)
            mx.eval(self.policy.model.trainable_parameters(), self.optimizer.state)
        sums_by_name = dict(zip(STATS, floats(stats), strict=True))
        return UpdateResult(loss_value, grad_norm, rate, sums_by_name, applied)

    def state(self) -> dict[str, mx.array]:
        """The optimizer's arrays by name (moments, step, rate)."""
        return flat(self.optimizer.state)
