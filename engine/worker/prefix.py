"""Each prompt computed once for all of its completions, forward and backward: what a group shares need not be repeated.

The prompts of a batch are run once, each layer's cache is captured, and the completions go on from it; gradients flow into the
prompt through it. The first completion token is predicted from the prompt's last hidden state. Exact: the same function of the
same tokens (PrefixGrouper, arXiv 2506.05433, for attention; recurrent state is carried likewise). Which families can is found
by trying it at load. What is left out: prompts of unequal length in one batch where layers carry recurrent state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import ArraysCache, CacheList, ConcatenateKVCache, KVCache, RotatingKVCache, make_prompt_cache

from engine.worker.batching import Batch, Sharing
from engine.worker.decoding import EXACT_LIMIT, HALF_LIMIT, REFUSALS
from engine.worker.trees import scalar

# (token ids [B, T], caches) -> hidden states [B, T, D], or logits where the head cannot be parted
Run = Callable[[mx.array, Any], mx.array]
_PROMPTS = {"any": ((1, 2, 3, 4, 5, 6, 7, 8), (9, 8, 7, 6, 5)), "equal": ((1, 2, 3, 4, 5, 6, 7, 8), (9, 8, 7, 6, 5, 4, 3, 2))}
_COMPLETIONS = ((3, 5, 7), (4, 1, 8), (2, 9, 4), (6, 3, 1))
_OF_PROMPT = (0, 1, 1, 0)


class LentCache(ConcatenateKVCache):
    """Keys and values of prompts of one length, lent to the completions behind them: what attention asks of a cache.

    Row b goes on from prompt `rows[b]`. Each layer repeats its prompts for their rows when it needs them, and keeps nothing: a
    layer that is computed again (recompute.py) holds one copy until then.
    """

    def __init__(self, keys: mx.array, values: mx.array, rows: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: mx.array = keys  # [U, heads, P, head_dim]
        self.values: mx.array = values
        self.offset: Any = keys.shape[2]  # positions of the first completion tokens: a number or [B]
        self.rows = rows  # [B]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Prompt and completion joined: [B, heads, P + C, head_dim]."""
        return mx.concatenate([self.keys[self.rows], keys], axis=2), mx.concatenate([self.values[self.rows], values], axis=2)


class PrefixCache(LentCache):
    """The same for prompts of unequal length. Row b has `lengths[b]` prompt tokens; its completion goes on at that position.
    Prompt keys beyond that are padding."""

    def __init__(self, keys: mx.array, values: mx.array, rows: mx.array, lengths: mx.array, is_grouped: bool) -> None:
        super().__init__(keys, values, rows)
        self.offset = self.lengths = lengths  # [B]
        self.is_grouped = is_grouped  # the mask gets one axis more: see decoding.GroupedMask

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Who may look at whom, [B, 1, N, P + N]."""
        new, own = mx.arange(N), mx.arange(self.keys.shape[2])
        within = own < self.lengths[:, None, None, None]  # [B, 1, 1, P]
        behind = mx.broadcast_to(new[None] <= new[:, None], (len(self.lengths), 1, N, N))
        if window_size is not None:
            reach = self.lengths[:, None, None, None] + new[:, None] - own  # [B, 1, N, P]
            within = within & (reach < window_size)
            behind = behind & (new[:, None] - new[None] < window_size)
        mask = mx.concatenate([mx.broadcast_to(within, (*behind.shape[:3], own.size)), behind], axis=-1)
        return mask[:, :, None] if self.is_grouped else mask


def hidden_of_completions(run: Run, model: nn.Module, batch: Batch, is_grouped: bool) -> mx.array:
    """The hidden states that predict each completion token, [B, C, D]; prompts are computed once each."""
    lengths = mx.array(batch.prompt_lengths)  # [U]
    rows = mx.array(batch.prompt_row)  # [B]
    captured = [_capturing(part) for part in make_prompt_cache(model)]
    prompts = run(mx.array(batch.prompts), captured)  # [U, P, D]
    last = prompts[mx.arange(len(batch.prompts)), lengths - 1][rows][:, None]  # [B, 1, D]
    is_even = len(set(batch.prompt_lengths.tolist())) == 1
    going_on = [_going_on(part, rows, None if is_even else lengths[rows], is_grouped) for part in captured]
    if batch.completions.shape[1] == 1:
        return last
    return mx.concatenate([last, run(mx.array(batch.completions[:, :-1]), going_on)], axis=1)


def _capturing(part: Any) -> Any:
    """An empty cache that keeps what a layer gives it, differentiably."""
    if isinstance(part, CacheList):
        return CacheList(*(_capturing(each) for each in part.caches))
    if type(part) in (KVCache, RotatingKVCache):
        return ConcatenateKVCache()
    if type(part) is ArraysCache:
        return ArraysCache(len(part.cache))
    raise TypeError(f"{type(part).__name__} cannot be captured")


def _going_on(part: Any, rows: mx.array, lengths: mx.array | None, is_grouped: bool) -> Any:
    """What the completions start from: the captured state of each row's prompt. `lengths` [B] where prompts are unequal."""
    if isinstance(part, CacheList):
        return CacheList(*(_going_on(each, rows, lengths, is_grouped) for each in part.caches))
    if isinstance(part, ConcatenateKVCache):
        if part.keys is None or part.values is None:  # a layer that keeps nothing of its own
            return ConcatenateKVCache()
        if lengths is not None or is_grouped:
            own = mx.full(rows.shape, part.keys.shape[2]) if lengths is None else lengths
            return PrefixCache(part.keys, part.values, rows, own, is_grouped)
        return LentCache(part.keys, part.values, rows)
    if lengths is not None:
        raise ValueError("recurrent state of prompts of unequal length")
    made = ArraysCache(len(part.cache))
    made.cache = [None if array is None else array[rows] for array in part.cache]
    return made


def find(run: Run, model: nn.Module, is_grouped: bool) -> Sharing:
    """Which prompts may share a batch: `any`, those of `equal` length, or `none`, since the family's caches do not allow it or
    do not give what plain rows give."""
    for sharing in ("any", "equal"):
        prompts, batch = _PROMPTS[sharing], probe(sharing)
        plain: dict[int, mx.array] = {}  # of each row [T, D]: rows of one prompt are as long as each other, and run together
        for number, prompt in enumerate(prompts):
            own = [row for row, of in enumerate(_OF_PROMPT) if of == number]
            plain.update(zip(own, run(mx.array([[*prompt, *_COMPLETIONS[row]] for row in own]), None), strict=True))
        try:
            found = hidden_of_completions(run, model, batch, is_grouped)
            gaps = []
            for row, of in enumerate(_OF_PROMPT):
                start = len(prompts[of]) - 1
                wanted = plain[row][start : start + found.shape[1]].astype(mx.float32)
                gaps.append(mx.abs(found[row].astype(mx.float32) - wanted).mean() / mx.abs(wanted).mean())
            gap = scalar(mx.mean(mx.stack(gaps)))
        except REFUSALS:
            continue
        if gap <= (HALF_LIMIT if found.dtype in (mx.float16, mx.bfloat16) else EXACT_LIMIT):
            return "any" if sharing == "any" else "equal"
    return "none"


def probe(sharing: str) -> Batch:
    """A few tokens of two prompts, whose lengths differ (`any`) or do not (`equal`), and of two completions each."""
    prompts = _PROMPTS[sharing]
    width = max(map(len, prompts))
    rows = len(_COMPLETIONS)
    return Batch(
        prompts=np.array([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], dtype=np.int32),
        prompt_lengths=np.array([len(prompt) for prompt in prompts], dtype=np.int32),
        prompt_row=np.array(_OF_PROMPT, dtype=np.int32),
        completions=np.array(_COMPLETIONS, dtype=np.int32),
        mask=np.ones((rows, len(_COMPLETIONS[0])), dtype=np.float32),
        advantage=np.zeros((rows, len(_COMPLETIONS[0])), dtype=np.float32),
        weight=np.zeros(rows, dtype=np.float32),
        index=np.arange(rows, dtype=np.int32),
    )
