"""The verb `rates`: how fast the device does each kind of work that a step is made of. A few seconds in all.

Every piece is repeated and the fastest pass counts: what else the machine does only ever slows one down. On a CPU a pass counts
with its CPU seconds where these are fewer than those that went by: the rest of the time other processes had the core.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu

from engine import machine_load
from engine.machine_rates import Rates
from engine.worker.draw import draw
from engine.worker.exponential import exp
from engine.worker.quantised import use_blas

ROWS = (1, 8, 32, 256, 2048)
WIDTHS = (16, 64, 256, 1024)
_MIB = 1 << 20
_SECONDS = 0.04  # of each piece
_LEAST, _MOST = 3, 40  # passes of each
_FLOPS = {"cpu": 2e8, "gpu": 2e11}  # of a pass of products, about: more than a dispatch takes
_NUMBERS = {"cpu": 1 << 16, "gpu": 1 << 24}  # of an elementwise pass
_WEIGHTS = {"cpu": 1 << 20, "gpu": 1 << 26}  # numbers in the weights of one pass
# MiB of weights that are used in turn; the first is as much as `_product` uses
_STREAMED = {"cpu": (4, 16, 96), "gpu": (128, 1024)}
_FREE = 1e12  # bytes/s
_CHAIN = 100  # operations of the chain
_WRITTEN = 16 * _MIB


def rates(request: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Tells {"event": "progress", "text"} and {"event": "rates", "rates"}; the request: the `folder` whose disk is tried."""
    tell({"event": "progress", "text": "matrix products"})
    found = measured(Path(request["folder"]), lambda text: tell({"event": "progress", "text": text}))
    tell({"event": "rates", "rates": found.as_dict()})


def measured(folder: Path, told: Callable[[str], None] = lambda text: None) -> Rates:
    """The rates of the default device."""
    start = machine_load.mark()
    kind = "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"
    types = (mx.float32,) if kind == "cpu" else (mx.float32, mx.bfloat16)  # on a CPU every run computes in float32
    op = _op_seconds()
    products = {dtype.size: {w: {rows: _product(rows, w, dtype, kind, op) for rows in ROWS} for w in WIDTHS} for dtype in types}
    told("quantised products, memory")
    quantised = {rows: _quantised(rows, types[-1], kind, op) for rows in (1, 4, 32, 256, 2048)}
    stream = _stream(kind, types[-1])
    told("elementwise work, disk")
    numbers = _numbers(_NUMBERS[kind], op)
    written = _disk(folder)
    load = machine_load.since(start)
    return Rates(products, quantised, stream, numbers, op, written, time.time(), load.others_cores)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest pass, after one that is not counted."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    mx.eval(work())
    least, total, passes = float("inf"), 0.0, 0
    while passes < _LEAST or (passes < _MOST and total < _SECONDS):
        start, cpu = time.perf_counter(), time.process_time()
        mx.eval(work())
        seconds = time.perf_counter() - start
        if on_cpu:
            seconds = min(seconds, time.process_time() - cpu)
        least, total, passes = min(least, seconds), total + seconds, passes + 1
    return least


def _op_seconds() -> float:
    """Of one operation in a chain on arrays so small that only Python, the graph and the dispatch count."""
    layers = [nn.Linear(8, 8, bias=False) for _ in range(_CHAIN // 2)]
    x = mx.zeros((1, 1, 8))
    mx.eval(x, [layer.parameters() for layer in layers])

    def chain() -> mx.array:
        y = x
        for layer in layers:
            y = mx.abs(layer(y))
        return y

    return _best(chain) / _CHAIN


def _product(rows: int, width: int, dtype: mx.Dtype, kind: str, op: float) -> float:
    """FLOP/s of one batched product, so that the dispatch does not count for small ones."""
    flops = 2 * rows * width * width
    batch = max(1, min(round(_FLOPS[kind] / flops), _WEIGHTS[kind] // (width * width)))
    x = mx.ones((batch, rows, width), dtype)
    weights = mx.ones((batch, width, width), dtype)
    mx.eval(x, weights)
    return batch * flops / _without(_best(lambda: x @ weights.swapaxes(-1, -2)), op)


def _quantised(rows: int, dtype: mx.Dtype, kind: str, op: float) -> float:
    """FLOP/s of a product with a 4-bit weight, as mlx_lm quantises and as a run multiplies by it."""
    width = 512 if kind == "cpu" else 2048
    plain = nn.Linear(width, width, bias=False)
    plain.set_dtype(dtype)
    layer = nn.QuantizedLinear.from_linear(plain, 64, 4)
    use_blas(layer)
    x = mx.ones((rows, width), dtype)
    mx.eval(x, layer.parameters())
    return 2 * rows * width * width / _without(_best(lambda: layer(x)), op)


def _stream(kind: str, dtype: mx.Dtype) -> dict[int, float]:
    """Bytes of weights that are used in turn -> bytes/s of what fetching them adds to products, beside sets as small as those of
    `_product`; _FREE where it adds nothing."""
    width, rows = 512, 8
    each = width * width * dtype.size
    x = mx.ones((rows, width), dtype)
    seconds = {}
    for mib in _STREAMED[kind]:
        weights = [mx.full((width, width), 1 + place, dtype) for place in range(max(1, mib * _MIB // each))]
        mx.eval(x, weights)
        seconds[mib * _MIB] = _best(partial(_products, x, weights)) / len(weights)
    least = seconds[_STREAMED[kind][0] * _MIB]
    return {size: each / max(found - least, each / _FREE) for size, found in seconds.items()}


def _products(x: mx.array, weights: Sequence[mx.array]) -> list[mx.array]:
    return [x @ weight.T for weight in weights]


def _numbers(count: int, op: float) -> dict[str, float]:
    """Numbers/s by kind of work: an addition, a norm, an exponential, a softmax in parts, the draw of a token."""
    a, b = mx.full((count // 256, 256), 0.5), mx.full((count // 256, 256), 1.5)
    ones, row_keys = mx.ones(256), mx.random.randint(0, 1 << 30, (8, 2)).astype(mx.uint32)
    logits = a.reshape(8, -1)
    mx.eval(a, b, ones, row_keys)

    kinds: dict[str, tuple[Callable[[], object], int]] = {
        "plain": (lambda: a + b, 1),
        "norm": (lambda: mx.fast.rms_norm(a, ones, 1e-5), 1),
        "exp": (lambda: [swiglu(a, b), mx.softmax(a, axis=-1)], 2),
        "softmax": (lambda: exp(a - a.max(axis=-1, keepdims=True)).sum(axis=-1), 1),
        "draw": (lambda: draw(logits, row_keys, 1.0, False), 1),
    }
    return {name: times * count / _without(_best(work), times * op) for name, (work, times) in kinds.items()}


def _without(seconds: float, op: float) -> float:
    """The seconds less those of the dispatch, which are counted apart; never less than a tenth."""
    return max(seconds - op, seconds / 10)


def _disk(folder: Path) -> float:
    """Bytes/s of writing a file and flushing it."""
    block = bytes(_WRITTEN)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".rates-") as file:
        start = time.perf_counter()
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN / (time.perf_counter() - start)
