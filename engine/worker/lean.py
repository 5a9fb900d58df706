"""Low-rank adapters for sampling: the same function in fewer operations, set in place of mlx_lm's modules while rows are drawn.

mlx_lm's modules compute for training. Nothing is trained during a rollout, so what depends on the weights alone is computed once
for all of its tokens: the factors' scale, and of DoRA the norms of the adapted weights (arXiv 2402.09353, Eq. 5), which its
module takes anew for every token. No weight is merged: there is no second copy of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from engine.worker.trees import nested


class LeanLinear(nn.Module):
    """factor x linear(x) + (x A) B + shift, with the scale (and of DoRA the factor) inside B; without `factor` it is 1."""

    def __init__(self, linear: nn.Module, a: mx.array, b: mx.array, factor: mx.array | None, shift: mx.array | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self.a, self.b = a, b  # [inputs, rank], [rank, outputs]
        self.factor, self.shift = factor, shift  # [outputs] each

    def __call__(self, x: mx.array) -> mx.array:
        base: mx.array = self.linear(x)
        if self.factor is not None:
            base = base * self.factor
        if self.shift is not None:
            base = base + self.shift
        low = x @ self.a
        if low.dtype == base.dtype:
            return mx.addmm(base, low, self.b)
        return base + (low @ self.b).astype(base.dtype)


@contextmanager
def adapters(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did, faster; its trainable arrays must not be changed meanwhile.

    Expert stacks and adapted embeddings stay as mlx_lm has them.
    """
    own = {name: module for name, module in model.named_modules() if type(module) in (LoRALinear, DoRALinear)}
    if not own or model.training:  # dropout is for mlx_lm's modules
        yield
        return
    model.update_modules(nested({name: _lean(module) for name, module in own.items()}))
    try:
        yield
    finally:
        model.update_modules(nested(own))


def _lean(module: Any) -> LeanLinear:
    b = module.scale * module.lora_b
    if type(module) is LoRALinear:
        mx.eval(b)
        return LeanLinear(module.linear, module.lora_a, b, None, None)
    weight = module._dequantized_weight()
    norm = mx.linalg.norm(weight + (module.scale * module.lora_b.T) @ module.lora_a.T, axis=1)
    factor = module.m / norm  # [outputs]
    b = b * factor
    factor = factor.astype(weight.dtype)
    shift = None
    if "bias" in module.linear:  # the magnitude scales what comes before the bias, which linear(x) has added already
        shift = (1 - factor) * module.linear.bias
    mx.eval([b, factor] + ([] if shift is None else [shift]))  # now, so that one weight's norm is under way at a time
    return LeanLinear(module.linear, module.lora_a, b, factor, shift)
