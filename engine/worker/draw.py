"""One token of each row and its log-probability, from one pass over the logits.

Inverse transform sampling: the exponentials that the log-probability's normaliser needs are also what a token is drawn from, with
two uniform numbers for a row: one chooses a block of the vocabulary, the other a token inside it. In two stages, sums stay
exact to float32's last bits, so that rare tokens keep their share in vocabularies of any size. (The Gumbel trick of
mx.random.categorical takes a random number and two logarithms for every entry on top.)
"""

from __future__ import annotations

import mlx.core as mx

from engine.worker.blocks import in_blocks, total
from engine.worker.exponential import exp


def draw(logits: mx.array, row_keys: mx.array, temperature: float, greedy: bool) -> tuple[mx.array, mx.array]:
    """A token of each row and its log-probability in float32, of softmax(logits / temperature): [B, V], [B, 2] -> [B], [B].

    `greedy`: the likeliest token instead of a drawn one.
    """
    logits = logits.astype(mx.float32)
    if temperature != 1:
        logits = logits * (1 / temperature)
    most = mx.max(logits, axis=-1, keepdims=True)
    weights = exp(logits - most)  # [B, V]
    if greedy:
        token, whole = mx.argmax(logits, axis=-1), total(weights)
    else:
        token, whole = _drawn(in_blocks(weights), mx.vmap(_two_uniform)(row_keys))
    chosen = mx.take_along_axis(logits, token[:, None], axis=-1)
    return token, (chosen - most - mx.log(whole))[:, 0]


def _drawn(weights: mx.array, uniform: mx.array) -> tuple[mx.array, mx.array]:
    """A place of each row, and the sum of its weights: [B, blocks, block], [B, 2] -> [B], [B, 1]."""
    block, whole = _chosen(weights.sum(axis=-1), uniform[:, :1])
    place, _ = _chosen(mx.take_along_axis(weights, block[:, :, None], axis=1)[:, 0], uniform[:, 1:])
    return (block * weights.shape[-1] + place)[:, 0], whole


def _two_uniform(key: mx.array) -> mx.array:
    return mx.random.uniform(shape=(2,), key=key)


def _chosen(weights: mx.array, uniform: mx.array) -> tuple[mx.array, mx.array]:
    """An index [B, 1] with the probability of its weight [B, N], and the sum of the weights [B, 1]. Never one of weight 0: the
    first whose running sum is beyond the point, and where rounding puts the point on the sum itself, the last that counts."""
    sums = mx.cumsum(weights, axis=-1)
    whole = sums[:, -1:]
    passed = (sums <= uniform * whole).sum(axis=-1, keepdims=True)
    last = (sums < whole).sum(axis=-1, keepdims=True)
    return mx.minimum(passed, last), whole
