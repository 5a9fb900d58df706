"""Log-probabilities and entropies of completion tokens: the trainer's side of every ratio.

The whole prompt is in the context, the head runs on the completion tokens that count and on nothing else, logits are divided
by the sampling temperature, and the softmax is in float32. Head and softmax run over chunks of
positions, one after another, so that no more than about one chunk of float32 logits is alive, forward or backward, and what
mlx starts ahead. A head that is not trained gives the gradient with the value (positions do not touch each other, so the
slope of each log-probability is one vector); a head that is trained has its logits computed again in the backward pass.
Prompts are computed once for all their completions where the family allows it (prefix.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import numpy as np

from engine.chunking import chunk_positions, padded_positions, whole_positions
from engine.worker import recompute, turns
from engine.worker.batching import Batch, Floats, Row, pack
from engine.worker.blocks import total
from engine.worker.heads import holding, mode, noise, read_by_head, vocabulary
from engine.worker.model import Policy

Columns = list[mx.array]  # log-probabilities [N] and, where asked for, entropies [N]; float32
_MOST = 1e4  # nats below the likeliest token, where p is 0: what stands for infinity in p log p


@dataclass(frozen=True, slots=True)
class _Ask:
    """What is wanted of each position."""

    temperature: float
    entropy: bool = False
    entropy_gradient: bool = False
    gradient: bool = True  # of the log-probabilities; False: nothing is prepared for a backward pass


def completion_logprobs(policy: Policy, batch: Batch, temperature: float) -> mx.array:
    """log softmax(logits / temperature) of each completion token, [B, C] float32; 0 where the mask is 0."""
    return _of_batch(policy, batch, _Ask(temperature))[0]


def completion_logprobs_and_entropy(
    policy: Policy, batch: Batch, temperature: float, entropy_gradient: bool
) -> tuple[mx.array, mx.array]:
    """The log-probability of each completion token and the entropy in nats of softmax(logits / temperature) at its position.

    Both [B, C] float32, 0 where the mask is 0. The entropy has a gradient only where `entropy_gradient` asks for it.
    """
    logp, entropy = _of_batch(policy, batch, _Ask(temperature, entropy=True, entropy_gradient=entropy_gradient))
    return logp, entropy


def chosen_logprobs(logits: mx.array, tokens: mx.array, temperature: float) -> mx.array:
    """log softmax(logits / temperature) at `tokens`: [..., V] and [...] -> [...], in float32."""
    flat = _softmax_columns(_scaled(logits, temperature).reshape(-1, logits.shape[-1]), tokens.reshape(-1), _Ask(temperature))[0]
    return flat.reshape(tokens.shape)


def score(policy: Policy, rows: Sequence[Row], temperature: float, micro_batch_rows: int) -> list[Floats]:
    """Log-probabilities of all rows without gradient, [C_i] for each, ordered by the rows' index (0 .. len-1)."""
    return _score(policy, rows, _Ask(temperature, gradient=False), micro_batch_rows)[0]


def score_with_entropy(
    policy: Policy, rows: Sequence[Row], temperature: float, micro_batch_rows: int
) -> tuple[list[Floats], list[Floats]]:
    """`score` and, in the same order and shape, the entropy in nats at each position."""
    logp, entropy = _score(policy, rows, _Ask(temperature, entropy=True, gradient=False), micro_batch_rows)
    return logp, entropy


def _score(policy: Policy, rows: Sequence[Row], ask: _Ask, micro_batch_rows: int) -> list[list[Floats]]:
    found = [[np.zeros(0, dtype=np.float32)] * len(rows) for _ in range(1 + ask.entropy)]
    lengths = {row.index: len(row.tokens) for row in rows}
    for batch in pack(rows, micro_batch_rows, sharing=policy.sharing):
        columns = _of_batch(policy, batch, ask)
        mx.eval(columns)  # together: they share their logits
        for out, column in zip(found, columns, strict=True):
            values = np.array(column)  # [B, C]
            for place, index in enumerate(batch.index):
                out[int(index)] = values[place, : lengths[int(index)]]
    return found


def _of_batch(policy: Policy, batch: Batch, ask: _Ask) -> Columns:
    """[B, C] for each column: gather the positions that count into [N, D], compute, and put the values back."""
    counts = batch.mask > 0  # [B, C]
    targets = batch.completions[counts]  # [n]
    with recompute.saving(policy) if ask.gradient else nullcontext():
        if policy.shares(batch):
            states = policy.hidden_of_completions(batch)  # [B, C, D]
            places = np.flatnonzero(counts)
        else:
            tokens, positions = batch.sequences()
            states = policy.hidden(mx.array(tokens))  # [B, T, D]
            places = (tokens.shape[1] * np.arange(len(tokens), dtype=np.int32)[:, None] + positions)[counts]
    filling = (0, padded_positions(places.size) - places.size)  # some position more, whose values nobody reads
    hidden = states.flatten(0, 1)[mx.array(np.pad(places, filling))]  # [N, D]
    columns = _of_positions(policy, hidden, mx.array(np.pad(targets, filling)), ask)
    back = np.zeros(counts.shape, dtype=np.int32)
    back[counts] = np.arange(places.size)
    return [mx.where(mx.array(counts), column[mx.array(back)], 0.0) for column in columns]


def _of_positions(policy: Policy, hidden: mx.array, targets: mx.array, ask: _Ask) -> Columns:
    """[N, D] and [N] -> [N] for each column, by the leanest way that is right for this head."""
    width = vocabulary(policy, hidden)
    size = chunk_positions(width)
    if len(hidden) <= whole_positions(width):
        return _columns(policy, hidden, targets, ask)
    if not ask.gradient:
        return _in_turn(hidden, targets, size, lambda piece, chosen: _settled(_columns(policy, piece, chosen, ask)))
    arrays = read_by_head(policy, hidden) if policy.splits else {}
    if len(hidden) <= whole_positions(width, sum(array.nbytes for array in arrays.values())):
        return _columns(policy, hidden, targets, ask)
    if arrays or ask.entropy_gradient or not policy.splits:  # unparted, a position's slope would be as wide as its logits
        return _recomputed(policy, hidden, targets, ask, size, arrays)
    return _with_slopes(policy, hidden, targets, ask, size)


def _settled(columns: Columns) -> Columns:
    """Computed now, so that mlx starts nothing ahead; only where no gradient is recorded, which would keep everything."""
    mx.eval(columns)
    return columns


def _columns(policy: Policy, hidden: mx.array, targets: mx.array, ask: _Ask) -> Columns:
    """The values themselves: [n, D] and [n] -> [n] for each column."""
    return _softmax_columns(_scaled(policy.head(hidden[None])[0], ask.temperature), targets, ask)


def _scaled(logits: mx.array, temperature: float) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits if temperature == 1.0 else logits * (1 / temperature)


def _softmax_columns(logits: mx.array, tokens: mx.array, ask: _Ask) -> Columns:
    """log p(token), and the entropy H: [n, V] and [n] -> [n] for each column, with p = softmax(z), m = max z, q = max p:

        log p_y = z_y - m + log q       d log p_y / dz = onehot(y) - p
        H = sum p (m - z) - log q       dH / dz = - p (log p + H)

    Written so that nothing cancels and the exponential is taken once: it costs as much as the head's product on a CPU. The
    gradients are written out, since a derivation by mlx keeps several more arrays as large as the logits. What mlx's softmax
    adds up is not quite 1 on a CPU (see blocks.py), so p stands over its own sum s.
    """

    @mx.custom_function
    def differentiable(logits: mx.array) -> list[mx.array]:
        p = mx.softmax(logits, axis=-1)  # [n, V]
        s = total(p)  # [n, 1]
        top = logits.max(axis=-1, keepdims=True)  # [n, 1]
        log_q = mx.log(p.max(axis=-1) / s[:, 0])  # [n]
        columns = [(mx.take_along_axis(logits, tokens[:, None], axis=-1) - top)[:, 0] + log_q]
        if ask.entropy:
            columns.append(((p * mx.minimum(top - logits, _MOST)).sum(axis=-1) / s[:, 0]) - log_q)
        return [*columns, p, s]

    @differentiable.vjp
    def backward(logits: mx.array, cotangents: list[mx.array], found: list[mx.array]) -> mx.array:
        p, s, chosen = found[-2], found[-1], cotangents[0]
        factor = -chosen[:, None]  # [n, 1]
        if ask.entropy_gradient:
            top, entropy = logits.max(axis=-1, keepdims=True), found[1][:, None]
            logp = mx.maximum(logits - top, -_MOST) + mx.log(p.max(axis=-1, keepdims=True) / s)  # [n, V]
            factor = factor - (logp + entropy) * cotangents[1][:, None]
        return (p * (factor / s)).at[mx.arange(len(tokens)), tokens].add(chosen)

    return cast(Columns, differentiable(logits))[: 1 + ask.entropy]


def _in_turn(hidden: mx.array, targets: mx.array, size: int, compute: Callable[[mx.array, mx.array], Columns]) -> Columns:
    """`compute` on each chunk, joined; no chunk begins before the one before it is done, whatever order mlx would choose."""
    parts: list[Columns] = []
    for start in range(0, len(hidden), size):
        piece = hidden[start : start + size]
        if parts:
            (piece,) = mx.depends([piece], parts[-1])
        parts.append(compute(piece, targets[start : start + size]))
        turns.piece(parts[-1])
    return [mx.concatenate(list(column)) for column in zip(*parts, strict=True)]


def _with_slopes(policy: Policy, hidden: mx.array, targets: mx.array, ask: _Ask, size: int) -> Columns:
    """A head without trained arrays: d logp / d hidden [N, D] is taken in the forward pass, while the logits are there."""

    def compute(piece: mx.array, chosen: mx.array) -> Columns:
        seeds = [mx.ones(len(piece)), *[mx.zeros(len(piece))] * ask.entropy]
        columns, (slope,) = mx.vjp(lambda h: _columns(policy, h, chosen, ask), [piece], seeds)
        return [*columns, slope]

    still = mx.stop_gradient(hidden)
    logp, *rest, slope = _in_turn(still, targets, size, compute)
    # adds exactly 0 to the value and `slope` to the gradient
    return [logp + ((hidden - still).astype(mx.float32) * slope).sum(axis=-1), *rest]


def _recomputed(
    policy: Policy, hidden: mx.array, targets: mx.array, ask: _Ask, size: int, arrays: dict[str, mx.array]
) -> Columns:
    """Any head: the backward pass computes each chunk's logits again. mlx gives gradients to explicit arguments alone, so
    `arrays`, the trained ones that the head reads, are among them."""
    training, drawn = policy.model.training, noise()

    @mx.custom_function
    def run(arrays: dict[str, mx.array], hidden: mx.array) -> Columns:
        with holding(policy, arrays):
            return _in_turn(hidden, targets, size, lambda piece, chosen: _columns(policy, piece, chosen, ask))

    @run.vjp
    def backward(
        primals: tuple[dict[str, mx.array], mx.array], cotangents: Columns, _: Columns
    ) -> tuple[dict[str, mx.array], mx.array]:
        arrays, hidden = primals
        sums: list[mx.array] = []
        slopes: list[mx.array] = []
        before = cotangents  # what has to be there before a chunk may begin
        with mode(policy, training, drawn):
            for start in range(0, len(hidden), size):
                here = slice(start, start + size)
                (piece,) = mx.depends([hidden[here]], before)

                def compute(*inputs: mx.array, here: slice = here) -> Columns:
                    with holding(policy, dict(zip(arrays, inputs[:-1], strict=True))):
                        return _columns(policy, inputs[-1], targets[here], ask)

                _, (*parts, slope) = mx.vjp(compute, [*arrays.values(), piece], [cotangent[here] for cotangent in cotangents])
                sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
                slopes.append(slope)
                before = [*sums, slope]
                turns.piece(before)
        return dict(zip(arrays, sums, strict=True)), mx.concatenate(slopes)

    return cast(Columns, run(arrays, hidden))
