"""What attention alone costs an update: the calls of mlx's attention that its micro-batches make, timed by themselves.

Attention's square grows with the length by its nature; what is left of an update should not. The calls are recorded where the
model makes them, so shapes, masks and layers are the update's own; each is timed forward and backward on random numbers. What
is left out: attention that a family writes out itself, and a layer through which no gradient passes costs less than is said.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from engine.worker.batching import Batch
from engine.worker.bench_timing import Clock, Part

Array = tuple[tuple[int, ...], mx.Dtype]  # what an array is, without its numbers


@dataclass(frozen=True, slots=True)
class Call:
    """One call of attention."""

    queries: Array  # [B, heads, Q, head_dim]
    keys: Array  # [B, kv_heads, K, head_dim]
    values: Array
    scale: float
    mask: Array | str | None
    sinks: Array | None


def calls(loss: Callable[[Batch], Any], batches: Sequence[Batch]) -> Counter[Call]:
    """How often the forward passes of these micro-batches make each call. Their graphs are built, and nothing is computed."""
    found: Counter[Call] = Counter()
    with _recorded(found):
        for batch in batches:
            loss(batch)
    return found


def cost(found: Counter[Call], repeats: int, recomputes: bool) -> Part:
    """Seconds of all these calls, forward and backward, each kind the median of `repeats`; the forward pass twice where layers
    are computed again."""
    seconds = cpu_seconds = 0.0
    peak = 0
    for call, times in found.items():
        passes = _timed(call, repeats, recomputes)
        seconds += times * statistics.median(one.seconds for one in passes)
        cpu_seconds += times * statistics.median(one.cpu_seconds for one in passes)
        peak = max(peak, *(one.peak_bytes for one in passes))
    return Part(seconds, cpu_seconds, peak)


@contextmanager
def _recorded(found: Counter[Call]) -> Iterator[None]:
    attention = mx.fast.scaled_dot_product_attention

    def recording(q: mx.array, k: mx.array, v: mx.array, **named: Any) -> mx.array:
        mask, sinks = named.get("mask"), named.get("sinks")
        found[
            Call(
                _of(q),
                _of(k),
                _of(v),
                float(named["scale"]),
                _of(mask) if isinstance(mask, mx.array) else mask,
                None if sinks is None else _of(sinks),
            )
        ] += 1
        return attention(q, k, v, **named)

    mx.fast.scaled_dot_product_attention = recording
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = attention


def _of(array: mx.array) -> Array:
    return tuple(array.shape), array.dtype


def _timed(call: Call, repeats: int, recomputes: bool) -> list[Part]:
    mask = call.mask if call.mask is None or isinstance(call.mask, str) else mx.ones(call.mask[0], call.mask[1])
    sinks = None if call.sinks is None else mx.zeros(call.sinks[0], call.sinks[1])
    inputs = [mx.random.normal(shape, dtype) for shape, dtype in (call.queries, call.keys, call.values)]
    slope = mx.random.normal((*call.queries[0][:-1], call.values[0][-1]), call.queries[1])
    mx.eval(inputs, slope, [array for array in (mask, sinks) if isinstance(array, mx.array)])

    def forward(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=call.scale, mask=mask, sinks=sinks)

    passes = []
    for _ in range(1 + repeats):  # the first pays for memory that is mapped once
        clock = Clock()
        clock.now("attention")
        if recomputes:
            mx.eval(forward(*inputs))
        mx.eval(mx.vjp(forward, inputs, [slope]))
        clock.now(None)
        passes.append(clock.parts["attention"])
    return passes[1:]
