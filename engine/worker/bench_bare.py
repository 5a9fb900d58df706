"""The floor that rollouts and updates are held against: mlx_lm's plain forward passes, and nothing around them.

No rows that stop, no keys of their own, no text, no shared prompt, no chunks, no optimizer: what a loop of twenty lines does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache

from engine.errors import InputError
from engine.worker.batching import Batch, Ints
from engine.worker.bench_timing import Clock

# (log-probabilities [B, C], entropies [B, C] or None, the rows that they are of) -> the loss
LossOf = Callable[[mx.array, mx.array | None, slice], mx.array]


def rollout(model: nn.Module, prompts: Ints, max_tokens: int, clock: Clock) -> None:
    """`max_tokens` tokens of every row after prompts [B, P]: `prefill` until each row has its first, then `decode`."""
    clock.now("prefill")
    cache = make_prompt_cache(model)
    logits = model(mx.array(prompts), cache=cache)[:, -1]  # [B, V]
    for position in range(max_tokens):
        token = mx.random.categorical(logits)  # [B]
        logp = mx.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
        if position + 1 < max_tokens:
            logits = model(token[:, None], cache=cache)[:, -1]
            mx.async_eval(token, logp, logits)
        token.tolist()
        logp.tolist()
        if position == 0:
            clock.now("decode")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one update side by side: every prompt as long as the others, every completion too."""

    prompts: Ints  # [B, P] each repeated for every completion of it
    completions: Ints  # [B, C]

    def __len__(self) -> int:
        return len(self.prompts)


def rows_of(batches: Sequence[Batch]) -> Rows:
    """The rows of the micro-batches one after the other. Raises InputError where their lengths differ: the floor does not pad."""
    lengths = {int(length) for batch in batches for length in batch.prompt_lengths}
    widths = {int(row) for batch in batches for row in (batch.mask > 0).sum(axis=1)}
    if len(lengths) != 1 or len(widths) != 1:
        remedy = "take another --prompt-tokens, or another model"
        raise InputError("this model's tokenizer makes rows of unequal lengths", where="bench", remedy=remedy)
    length, width = lengths.pop(), widths.pop()
    prompts = np.concatenate([batch.prompts[batch.prompt_row][:, :length] for batch in batches])
    return Rows(prompts, np.concatenate([batch.completions[:, :width] for batch in batches]))


def value_and_grad(model: nn.Module, rows: Rows, at_once: int, loss_of: LossOf, entropy: bool = False) -> tuple[mx.array, Any]:
    """The loss and its gradient: whole rows, the head at every position, log-probabilities in float32. `at_once` rows are in one
    pass; where that is not all, the passes are summed."""
    total, gradient = mx.zeros(()), None
    for start in range(0, len(rows), at_once):
        part = slice(start, min(start + at_once, len(rows)))
        value, slope = _one_pass(model, rows.prompts[part], rows.completions[part], loss_of, entropy, part)
        total, gradient = total + value, slope if gradient is None else tree_map(mx.add, gradient, slope)
        mx.eval(total, gradient)
    return total, gradient


def _one_pass(
    model: nn.Module, prompts: Ints, completions: Ints, loss_of: LossOf, entropy: bool, part: slice
) -> tuple[mx.array, Any]:
    inputs = mx.array(np.concatenate([prompts, completions], axis=1))  # [B, P + C]
    targets = mx.array(completions)[..., None]  # [B, C, 1]

    def loss(model: nn.Module) -> mx.array:
        logits = model(inputs[:, :-1])[:, prompts.shape[1] - 1 :].astype(mx.float32)  # [B, C, V]
        total = mx.logsumexp(logits, axis=-1)  # [B, C]
        logp = mx.take_along_axis(logits, targets, axis=-1)[..., 0] - total
        spread = None
        if entropy:
            spread = total - (mx.softmax(logits, axis=-1) * logits).sum(axis=-1)
        return loss_of(logp, spread, part)

    return cast("tuple[mx.array, Any]", nn.value_and_grad(model, loss)(model))
