"""Log-probabilities of completion tokens: the trainer's side of every ratio.

The whole prompt is in the context, the head runs on completion positions only, logits are divided by the sampling
temperature, and the softmax is in float32 (algorithms: traps 1, 13, 14). What is left out: the prompt is still computed for
each of its completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from engine.worker.batching import Batch, Floats, Row, pack
from engine.worker.model import Policy


def completion_logprobs(policy: Policy, batch: Batch, temperature: float) -> mx.array:
    """log softmax(logits / temperature) of each completion token, [B, C] float32; unspecified where the mask is 0."""
    tokens, positions = batch.sequences()
    hidden = policy.hidden(mx.array(tokens))  # [B, T, D]
    hidden = mx.take_along_axis(hidden, mx.array(positions)[..., None], axis=1)  # [B, C, D]
    return chosen_logprobs(policy.head(hidden), mx.array(batch.completions), temperature)


def chosen_logprobs(logits: mx.array, tokens: mx.array, temperature: float) -> mx.array:
    """log softmax(logits / temperature) at `tokens`: [..., V] and [...] -> [...], in float32."""
    logits = logits.astype(mx.float32)
    if temperature != 1.0:
        logits = logits * (1 / temperature)
    return mx.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - mx.logsumexp(logits, axis=-1)


def score(policy: Policy, rows: Sequence[Row], temperature: float, micro_batch_rows: int) -> list[Floats]:
    """Log-probabilities of all rows without gradient, [C_i] for each, ordered by the rows' index (0 .. len-1)."""
    found: list[Floats] = [np.zeros(0, dtype=np.float32)] * len(rows)
    lengths = {row.index: len(row.tokens) for row in rows}
    for batch in pack(rows, micro_batch_rows):
        values = np.array(completion_logprobs(policy, batch, temperature))  # [B, C]
        for place, index in enumerate(batch.index):
            found[int(index)] = values[place, : lengths[int(index)]]
    return found
