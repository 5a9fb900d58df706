"""Decoding over keys and values of prompts that are held once for all of their completions.

A row attends to its prompt's keys and to its own, with one softmax over both. The rows of a prompt do the first part together:
its keys are read once for all of them, and kept once (Hydragen, arXiv 2402.05099, Sec. 3.1).
Models call mlx_lm's `scaled_dot_product_attention`, which knows this cache inside `attention`.
What is left out: layers with a window or with recurrent state, which keep a cache for each row, and families that compute
attention by themselves; decoding.py finds out by trying.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache

from engine.memory_cache import SHARED_STEP
from engine.worker.exponential import exp

_NAME = "scaled_dot_product_attention"


class SharedPrompts:
    """What attention asks of a cache, for the rows of one batch that decode one token at a time.

    keys and values of the prompts [U, heads, P, head_dim], padded on the right; of the rows' own tokens [B, heads, n, head_dim],
    padded on the left, since rows begin at different times.
    """

    def __init__(self, keys: mx.array, values: mx.array, lengths: Sequence[int], rows: Sequence[int]) -> None:
        self.prompt_keys, self.prompt_values = keys, values
        self.lengths = list(lengths)  # [U] of the prompts
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.taken = 0  # tokens in the rows' own part
        self._place(list(rows), [0] * len(rows))

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> Self:
        """One row for each prompt that was prefilled by itself."""
        lengths = [int(part.offset) for part in caches]
        width = max(lengths)
        keys, values = ([_padded(own, size, width) for own, size in zip(each, lengths, strict=True)] for each in _held(caches))
        return cls(mx.concatenate(keys), mx.concatenate(values), lengths, range(len(caches)))

    def _place(self, rows: list[int], starts: list[int]) -> None:
        """`rows`: the prompt of each row; `starts`: the tokens that had been taken when it began."""
        self.rows, self.starts = rows, starts
        self.offset = mx.array([self.lengths[of] - start for of, start in zip(rows, starts, strict=True)]) + self.taken  # [B]
        counts = Counter(rows)
        self.each = max(counts.values())  # rows that a prompt has at most
        order = sorted(range(len(rows)), key=rows.__getitem__)
        self.slots: mx.array | None = None  # [U x each]: the row in each slot of a prompt; a slot without one holds any row
        self.slot_of_row: mx.array | None = None  # [B]
        if order != list(range(len(rows))) or set(counts.values()) != {self.each} or len(counts) != len(self.lengths):
            slots, slot_of_row = [0] * (len(self.lengths) * self.each), [0] * len(rows)
            filled: Counter[int] = Counter()
            for row in order:
                slot = rows[row] * self.each + filled[rows[row]]
                filled[rows[row]] += 1
                slots[slot], slot_of_row[row] = row, slot
            self.slots, self.slot_of_row = mx.array(slots), mx.array(slot_of_row)
        width = self.prompt_keys.shape[2]
        self.prompt_mask = self.own_from = None
        if min(self.lengths) < width:
            self.prompt_mask = (mx.arange(width) < mx.array(self.lengths)[:, None])[:, None, None]  # [U, 1, 1, P]
        if any(starts):
            self.own_from = mx.array(starts)[:, None, None, None]  # [B, 1, 1, 1]

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None, **_: Any) -> None:
        """None: what a row may look at is known here. Raises ValueError where that would not be all."""
        if N != 1 or return_array or window_size is not None:
            raise ValueError("prompts are shared by rows that decode one token at a time, without a window")

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The rows' own keys and values with one token more; the prompts' are joined in `attend`."""
        if keys.shape[2] != 1:
            raise ValueError("prompts are shared by rows that decode one token at a time")
        if self.keys is None or self.values is None:
            self.keys, self.values = _room(keys), _room(values)
        elif self.taken == self.keys.shape[2]:
            self.keys = mx.concatenate([self.keys, _room(keys)], axis=2)
            self.values = mx.concatenate([self.values, _room(values)], axis=2)
        self.keys[..., self.taken : self.taken + 1, :] = keys
        self.values[..., self.taken : self.taken + 1, :] = values
        self.taken += 1
        self.offset = self.offset + 1
        return self.keys[..., : self.taken, :], self.values[..., : self.taken, :]

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None = None
    ) -> mx.array:
        """Attention of one new token of each row to its prompt and to its own tokens: [B, query heads, 1, head_dim].

        keys, values: [B, heads, n, head_dim], the rows' own. sinks: [query heads], scores that take weight and give nothing.
        """
        rows, query_heads, _, width = queries.shape
        heads = keys.shape[1]
        queries = (queries * scale).reshape(rows, heads, query_heads // heads, width)
        far = self._by_prompt(queries) @ self.prompt_keys.swapaxes(-1, -2)  # [U, heads, slots, P]
        near = queries @ keys.swapaxes(-1, -2)  # [B, heads, query heads of each, n]
        if self.prompt_mask is not None:
            far = mx.where(self.prompt_mask, far, -mx.inf)
        if self.own_from is not None:
            near = mx.where(mx.arange(self.taken) >= self.own_from, near, -mx.inf)
        top, total, found = _softmax_part(near, values)
        far_top, far_total, far_found = (self._by_row(part) for part in _softmax_part(far, self.prompt_values))
        most = mx.maximum(top, far_top)
        if sinks is not None:
            own = sinks.reshape(1, heads, -1, 1).astype(mx.float32)
            most = mx.maximum(most, own)
        near_share, far_share = exp(top - most), exp(far_top - most)
        total = total * near_share + far_total * far_share
        if sinks is not None:
            total = total + exp(own - most)
        found = (found * near_share + far_found * far_share) / total
        return found.astype(queries.dtype).reshape(rows, query_heads, 1, values.shape[3])

    def _by_prompt(self, x: mx.array) -> mx.array:
        """[B, heads, query heads of each, any] -> [U, heads, slots x query heads of each, any]."""
        if self.slots is not None:
            x = x[self.slots]
        _, heads, group, width = x.shape
        x = x.reshape(len(self.lengths), self.each, heads, group, width).transpose(0, 2, 1, 3, 4)
        return x.reshape(len(self.lengths), heads, self.each * group, width)

    def _by_row(self, x: mx.array) -> mx.array:
        """The way back."""
        prompts, heads, both, width = x.shape
        group = both // self.each
        x = x.reshape(prompts, heads, self.each, group, width).transpose(0, 2, 1, 3, 4)
        x = x.reshape(prompts * self.each, heads, group, width)
        return x if self.slot_of_row is None else x[self.slot_of_row]

    # As mlx_lm's batch caches: rows leave and begin.

    def filter(self, batch_indices: mx.array) -> None:
        """Keep these rows, in this order, some perhaps more than once; prompts without a row are let go."""
        chosen: list[int] = batch_indices.tolist()  # type: ignore[assignment]
        if self.keys is not None and self.values is not None and chosen != list(range(len(self.rows))):
            self.keys, self.values = self.keys[batch_indices], self.values[batch_indices]
        rows, starts = [self.rows[row] for row in chosen], [self.starts[row] for row in chosen]
        needed = sorted(set(rows))
        if len(needed) < len(self.lengths):
            kept = mx.array(needed)
            self.prompt_keys, self.prompt_values = self.prompt_keys[kept], self.prompt_values[kept]
            self.lengths = [self.lengths[of] for of in needed]
            rows = [needed.index(of) for of in rows]
        first = min(starts)
        if first and self.keys is not None and self.values is not None:  # nobody has tokens before that
            self.keys, self.values = self.keys[..., first:, :], self.values[..., first:, :]
            self.taken -= first
            starts = [start - first for start in starts]
        self._place(rows, starts)

    def extend(self, other: SharedPrompts) -> None:
        """Rows behind these that have taken no token yet, with prompts of their own. Raises ValueError for others."""
        if other.taken:
            raise ValueError("rows begin before their first token")
        width = max(self.prompt_keys.shape[2], other.prompt_keys.shape[2])
        mine, theirs = ([_padded(x, x.shape[2], width) for x in (part.prompt_keys, part.prompt_values)] for part in (self, other))
        self.prompt_keys, self.prompt_values = (mx.concatenate([*pair]) for pair in zip(mine, theirs, strict=True))
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (
                mx.concatenate([own, mx.zeros((len(other.rows), *own.shape[1:]), own.dtype)]) for own in (self.keys, self.values)
            )
        rows = self.rows + [of + len(self.lengths) for of in other.rows]
        self.lengths = self.lengths + other.lengths
        self._place(rows, self.starts + [self.taken] * len(other.rows))


@contextmanager
def attention(model: nn.Module) -> Iterator[None]:
    """Inside, the model's layers take `SharedPrompts` for a cache; with every other cache they do what they did."""
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    own = [module for module in modules if getattr(module, _NAME, None) is base.scaled_dot_product_attention]
    for module in own:
        setattr(module, _NAME, _attention)
    try:
        yield
    finally:
        for module in own:
            setattr(module, _NAME, base.scaled_dot_product_attention)


def _attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    if not isinstance(cache, SharedPrompts):
        return base.scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)
    if mask is not None:
        raise ValueError("prompts are not shared where the layer has a mask of its own")
    return cache.attend(queries, keys, values, scale, sinks)


def _softmax_part(scores: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """A part of a softmax over [..., n] keys that others go on with: its largest score [..., 1], the sum of exp(score - that)
    [..., 1], and the values [..., n, any] weighted with these, summed [..., any]; float32 but for the product."""
    scores = scores.astype(mx.float32)
    top = scores.max(axis=-1, keepdims=True)
    weights = exp(scores - top)
    return top, weights.sum(axis=-1, keepdims=True), weights.astype(values.dtype) @ values


def _held(caches: Sequence[KVCache]) -> tuple[list[mx.array], list[mx.array]]:
    """Keys and values, whole steps of both. Raises ValueError where a layer keeps nothing of its own."""
    keys = [part.keys for part in caches if part.keys is not None]
    values = [part.values for part in caches if part.values is not None]
    if len(keys) < len(caches) or len(values) < len(caches):
        raise ValueError("a layer without keys of its own")
    return keys, values


def _padded(x: mx.array, size: int, width: int) -> mx.array:
    """The first `size` positions of [any, heads, positions, head_dim], with zeros up to `width`."""
    x = x[..., :size, :]
    return x if size == width else mx.pad(x, [(0, 0), (0, 0), (0, width - size), (0, 0)])


def _room(x: mx.array) -> mx.array:
    rows, heads, _, width = x.shape
    return mx.zeros((rows, heads, SHARED_STEP, width), x.dtype)
