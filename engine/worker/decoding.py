"""How a model decodes rows together, found by trying it on the model itself: families differ, and new ones come.

Every prompt is prefilled alone (padded prefill gives eight families of mlx_lm a wrong state), the caches are merged, and rows
are decoded together, dropped as they stop. What is left out: models whose prompts would have to be prefilled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from engine.worker.trees import scalar

# batch: merged caches as mlx_lm has them. grouped: the mask gets one axis more. alone: one row after the other.
Mode = Literal["batch", "grouped", "alone"]
MODES: tuple[Mode, ...] = ("batch", "grouped", "alone")
EXACT_LIMIT, HALF_LIMIT = 1e-3, 0.1  # nats, mean over the probe's tokens; a wrong mask, offset or state is off by 0.6 to 19
_PROMPTS = ((1, 2, 3, 4, 5, 6, 7, 8), (9, 8, 7, 6, 5))
_FORCED = ((3, 5, 7, 9, 2), (4, 1, 8, 6, 5), (2, 9, 4, 7, 1), (6, 3, 1, 5, 8))  # what the rows go on with, whatever is likely
_OF_PROMPT = (0, 0, 1, 1)  # of each row
_DROPPED_AFTER, _LEFT = 3, (1, 2)  # decoded tokens, and the rows that go on
# what a cache or a family raises where rows cannot be together; a shape that does not fit is a ValueError
REFUSALS = (ValueError, TypeError, AttributeError, NotImplementedError, IndexError, KeyError, RuntimeError)


class GroupedMask(BatchKVCache):
    """For attention that keeps the query heads of one key head on an axis of their own (gemma2): [B, 1, 1, N, T]."""

    def make_mask(self, N: int, return_array: bool = False, **options: Any) -> mx.array:
        mask: mx.array = super().make_mask(N, return_array=return_array, **options)
        return mask[:, :, None]


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the probe found."""

    mode: Mode
    gap: float  # mean |log-prob of the mode - that of one plain forward|, nats
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether that is no more than rounding."""
        return self.gap <= self.limit


def merged(caches: Sequence[Sequence[Any]], mode: Mode) -> list[Any]:
    """The caches of prompts that were prefilled alone, layer by layer as one batch."""
    return [_kind(parts[0], mode).merge(list(parts)) for parts in zip(*caches, strict=True)]


def _kind(part: Any, mode: Mode) -> Any:
    return GroupedMask if mode == "grouped" and type(part) is KVCache else type(part)


def find(model: nn.Module) -> Decoding:
    """The first mode whose log-probabilities are those of plain forwards; where none is, the nearest that runs."""
    halves = {mx.float16, mx.bfloat16}
    plain = [_logprobs(model(mx.array([[*_PROMPTS[prompt], *own]]))[0]) for prompt, own in zip(_OF_PROMPT, _FORCED, strict=True)]
    limit = HALF_LIMIT if model(mx.array([_PROMPTS[0]])).dtype in halves else EXACT_LIMIT
    tried: list[Decoding] = []
    for mode in MODES:
        try:
            found = Decoding(mode, _gap(model, mode, plain), limit)
        except REFUSALS:
            continue
        if found.agrees:
            return found
        tried.append(found)
    return min(tried, key=lambda each: each.gap, default=Decoding("alone", float("inf"), limit))


def _gap(model: nn.Module, mode: Mode, plain: Sequence[mx.array]) -> float:
    """Mean difference of the forced tokens' log-probabilities, decoded as the sampler would."""
    if mode == "alone":
        rows = [[place] for place in range(len(_FORCED))]
        gaps = [gap for row in rows for gap in _forced(model, row, mode, plain)]
    else:
        gaps = _forced(model, list(range(len(_FORCED))), mode, plain)
    return scalar(mx.mean(mx.stack(gaps)))


def _forced(model: nn.Module, rows: list[int], mode: Mode, plain: Sequence[mx.array]) -> list[mx.array]:
    prompts = sorted({_OF_PROMPT[row] for row in rows})
    caches, ends = [], []
    for prompt in prompts:
        cache = make_prompt_cache(model)
        ends.append(model(mx.array([_PROMPTS[prompt]]), cache=cache)[:, -1])
        caches.append(cache)
    each = mx.array([prompts.index(_OF_PROMPT[row]) for row in rows])
    logits = mx.concatenate(ends)[each]
    together = caches[0]
    if mode != "alone":
        together = merged(caches, mode)
        for part in together:
            part.filter(each)
    gaps = []
    for position in range(len(_FORCED[0])):
        logprobs = _logprobs(logits)
        for place, row in enumerate(rows):
            token, at = _FORCED[row][position], len(_PROMPTS[_OF_PROMPT[row]]) - 1 + position
            gaps.append(mx.abs(logprobs[place, token] - plain[row][at, token]))
        if position + 1 == _DROPPED_AFTER and len(rows) > 1:
            keep = mx.array([place for place, row in enumerate(rows) if row in _LEFT])
            for part in together:
                part.filter(keep)
            rows = [row for row in rows if row in _LEFT]
        if position + 1 < len(_FORCED[0]):
            tokens = mx.array([[_FORCED[row][position]] for row in rows])
            logits = model(tokens, cache=together)[:, -1]
    return gaps


def _logprobs(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
