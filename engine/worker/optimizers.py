"""The optimizers by name, from mlx.optimizers. All of them follow one rate, which the schedule sets before every update.

State and arithmetic are float32 whatever type the weights have: in 16 bits Adam's second moment stops growing at a third of its
value (bfloat16), or its epsilon is 0 and 0 / 0 breaks the weights (float16). What is left out: momentum for SGD, and Adafactor's
own step sizes (relative to the step's number and to the size of the weights): the rate would not be `optim.learning_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from engine.config import OptimConfig
from engine.optim_rules import muon_names

_MUON_RMS = 0.2  # of Muon's step per unit of rate: that of a usual AdamW step


class _Wide(optim.Optimizer):
    """Holds its state and computes in float32, and gives the weights back in their own type."""

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        super().init_single(parameter.astype(mx.float32), state)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        updated: mx.array = super().apply_single(gradient.astype(mx.float32), parameter.astype(mx.float32), state)
        return updated.astype(parameter.dtype)


class _AdamW(_Wide, optim.AdamW):
    """arXiv 1711.05101, Alg. 2."""


class _Adam(_Wide, optim.Adam):
    """arXiv 1412.6980, Alg. 1."""


class _Adafactor(_Wide, optim.Adafactor):
    """arXiv 1804.04235, Alg. 4 and 5, without first moment."""


class _Lion(_Wide, optim.Lion):
    """arXiv 2302.06675, Alg. 2."""


class _SGD(_Wide, optim.SGD):
    """w - rate (g + decay w)."""

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        """Without momentum there is nothing to hold; mlx's own would allocate a copy of every weight."""


class _Muon(_Wide, optim.Muon):
    """Muon as a drop-in for AdamW (arXiv 2502.16982, Eq. 3 and 4): decay apart from the gradient, and steps of AdamW's size.

    mlx's step has singular values near sqrt(max(1, rows / columns)); times 0.2 sqrt(columns): 0.2 sqrt(max(rows, columns)),
    so that the root mean square of a step is near 0.2 x rate for a matrix of any shape.
    """

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        super().__init__(learning_rate, weight_decay=0.0)
        self.decay = weight_decay

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> mx.array:
        step = super().apply_single(gradient, mx.zeros(parameter.shape, mx.float32), state)  # [rows, columns]
        kept = parameter.astype(mx.float32) * (1 - self.learning_rate * self.decay)
        updated: mx.array = kept + _MUON_RMS * math.sqrt(parameter.shape[-1]) * step
        return updated.astype(parameter.dtype)


def make_optimizer(config: OptimConfig, trainable: Mapping[str, mx.array]) -> optim.Optimizer:
    """The optimizer of the config for the trainable arrays. Adam and AdamW correct the bias of their first steps.

    Muon updates the matrices that `muon_names` names, AdamW all others, both at `optim.learning_rate`: of the size that suits
    AdamW. Lion wants a rate 3 to 10 times smaller; its paper's betas are 0.9 and 0.99.
    """
    rate, decay, betas = config.learning_rate, config.weight_decay, list(config.betas)
    if config.name == "sgd":
        return _SGD(rate, weight_decay=decay)
    if config.name == "lion":
        return _Lion(rate, betas=betas, weight_decay=decay)
    if config.name == "adafactor":
        return _Adafactor(rate, weight_decay=decay, scale_parameter=False, relative_step=False)
    if config.name == "adam":
        return _Adam(rate, betas=betas, eps=config.eps, bias_correction=True)
    adamw = _AdamW(rate, betas=betas, eps=config.eps, weight_decay=decay, bias_correction=True)
    if config.name == "adamw":
        return adamw
    own = muon_names({name: value.shape for name, value in trainable.items()})
    return optim.MultiOptimizer([_Muon(rate, decay), adamw], [lambda path, _: path in own])
