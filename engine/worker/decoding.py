"""How a model decodes rows together, found by trying it on the model itself: families differ, and new ones come.

Every prompt is prefilled alone (padded prefill gives eight families of mlx_lm a wrong state), the caches are merged, and rows
are decoded together, dropped as they stop; where the family allows it, over prompts that are held once for all their rows.
What is left out: models whose prompts would have to be prefilled together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

from engine.worker import shared_prompts
from engine.worker.shared_prompts import SharedPrompts
from engine.worker.trees import scalar

# batch: merged caches as mlx_lm has them. grouped: the mask gets one axis more. alone: one row after the other.
Mode = Literal["batch", "grouped", "alone"]
MODES: tuple[Mode, ...] = ("batch", "grouped", "alone")
EXACT_LIMIT, HALF_LIMIT = 1e-3, 0.1  # nats, mean over the probe's tokens; a wrong mask, offset or state is off by 0.6 to 19
_PROMPTS = ((1, 2, 3, 4, 5, 6, 7, 8), (9, 8, 7, 6, 5))
_FORCED = ((3, 5, 7, 9), (4, 1, 8, 6), (2, 9, 4, 7), (6, 3, 1, 5))  # what the rows go on with, whatever is likely
_OF_PROMPT = (0, 0, 1, 1)  # of each row
_DROPPED_AFTER, _LEFT = 2, (1, 2)  # decoded tokens, and the rows that go on
_LATE = 3  # the row that takes a freed place then
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
    refills: bool = False  # whether rows may take the places of those that stopped, beside rows that go on
    token_bytes: int = 0  # keys and values of a token in a layer that may hold a prompt once for all its rows; 0: none may

    @property
    def agrees(self) -> bool:
        """Whether that is no more than rounding."""
        return self.gap <= self.limit


def merged(caches: Sequence[Sequence[Any]], mode: Mode, shares: bool) -> list[Any]:
    """The caches of prompts that were prefilled alone, layer by layer as one batch, with a row for each prompt. Rows that are
    then made of one (`filter`) have a copy of it each or, with `shares`, hold it together: decode inside `attention` then."""
    return [_kind(parts[0], mode, shares).merge(list(parts)) for parts in zip(*caches, strict=True)]


def attention(model: nn.Module, shares: bool) -> AbstractContextManager[None]:
    """What decoding with `merged` caches happens in."""
    return shared_prompts.attention(model) if shares else nullcontext()


def _kind(part: Any, mode: Mode, shares: bool) -> Any:
    if type(part) is not KVCache:
        return type(part)
    return SharedPrompts if shares else GroupedMask if mode == "grouped" else KVCache


def find(model: nn.Module) -> Decoding:
    """The first mode whose log-probabilities are those of plain forwards; where none is, the nearest that runs."""
    plain, dtype = _plain(model)
    limit = HALF_LIMIT if dtype in (mx.float16, mx.bfloat16) else EXACT_LIMIT
    tried: list[Decoding] = []
    for mode, refills, shares in _trials(model):
        try:
            with attention(model, shares):
                gap = _gap(model, mode, plain, refills, shares)
                found = Decoding(mode, gap, limit, refills, _token_bytes(model) if shares else 0)
        except REFUSALS:
            continue
        if found.agrees:
            return found
        tried.append(found)
    return min(tried, key=lambda each: each.gap, default=Decoding("alone", float("inf"), limit))


def _token_bytes(model: nn.Module) -> int:
    """The most bytes that a layer without a window keeps of one token."""
    cache = make_prompt_cache(model)
    model(mx.array([_PROMPTS[0][:1]]), cache=cache)
    pairs = [(part.keys, part.values) for part in cache if type(part) is KVCache]
    return max(
        int(keys[:, :, :1].nbytes + values[:, :, :1].nbytes) for keys, values in pairs if keys is not None and values is not None
    )


def _trials(model: nn.Module) -> Iterator[tuple[Mode, bool, bool]]:
    """What is tried, the fastest first: mode, whether rows are refilled, whether prompts are shared."""
    if any(type(part) is KVCache for part in make_prompt_cache(model)):
        yield "batch", True, True
    yield from ((mode, refills, False) for mode in MODES for refills in ((False,) if mode == "alone" else (True, False)))


def _plain(model: nn.Module) -> tuple[list[mx.array], mx.Dtype]:
    """Log-probabilities [T, V] of each row in a plain forward (rows of one prompt are as long as each other), and their type."""
    found: list[mx.array] = []
    for prompt, ids in enumerate(_PROMPTS):
        rows = [[*ids, *own] for own, of in zip(_FORCED, _OF_PROMPT, strict=True) if of == prompt]
        logits = model(mx.array(rows))
        found.extend(_logprobs(logits))
    return found, logits.dtype


def _gap(model: nn.Module, mode: Mode, plain: Sequence[mx.array], refills: bool, shares: bool) -> float:
    """Mean difference of the forced tokens' log-probabilities, decoded as the sampler would."""
    together = [[row] for row in range(len(_FORCED))] if mode == "alone" else [list(range(len(_FORCED)))]
    gaps = [gap for rows in together for gap in _forced(model, rows, mode, plain, refills, shares)]
    return scalar(mx.mean(mx.stack(gaps)))


def _forced(
    model: nn.Module, rows: list[int], mode: Mode, plain: Sequence[mx.array], refills: bool, shares: bool
) -> list[mx.array]:
    first = [row for row in rows if not (refills and row == _LATE)]
    logits, cache = _begun(model, first, mode, shares)
    running = dict.fromkeys(first, 0)  # row: tokens it has
    gaps: list[mx.array] = []
    while running:
        logprobs = _logprobs(logits)
        for place, (row, position) in enumerate(running.items()):
            token, at = _FORCED[row][position], len(_PROMPTS[_OF_PROMPT[row]]) - 1 + position
            gaps.append(mx.abs(logprobs[place, token] - plain[row][at, token]))
        tokens = mx.array([[_FORCED[row][position]] for row, position in running.items()])
        running = {row: position + 1 for row, position in running.items()}
        if max(running.values()) == len(_FORCED[0]):
            break
        logits = model(tokens, cache=cache)[:, -1]
        if max(running.values()) == _DROPPED_AFTER and len(rows) > 1:
            keep = mx.array([place for place, row in enumerate(running) if row in _LEFT])
            for part in cache:
                part.filter(keep)
            logits, running = logits[keep], {row: position for row, position in running.items() if row in _LEFT}
            if refills:
                late, more = _begun(model, [_LATE], mode, shares)
                for part, other in zip(cache, more, strict=True):
                    part.extend(other)
                logits, running[_LATE] = mx.concatenate([logits, late]), 0
    return gaps


def _begun(model: nn.Module, rows: Sequence[int], mode: Mode, shares: bool) -> tuple[mx.array, list[Any]]:
    """Logits after the rows' prompts [B, V], each prompt read once, and the caches that hold them."""
    prompts = sorted({_OF_PROMPT[row] for row in rows})
    caches, ends = [], []
    for prompt in prompts:
        cache = make_prompt_cache(model)
        ends.append(model(mx.array([_PROMPTS[prompt]]), cache=cache)[:, -1])
        caches.append(cache)
    if mode == "alone":
        return ends[0], caches[0]
    together = merged(caches, mode, shares)
    each = mx.array([prompts.index(_OF_PROMPT[row]) for row in rows])
    for part in together:
        part.filter(each)
    return mx.concatenate(ends)[each], together


def _logprobs(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
