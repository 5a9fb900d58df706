"""Adapters put into the weights that they change, and quantised weights made plain, in place and module by module.

The sum is taken in float32 and rounded once to the weight's own type (mlx_lm adds in the weight's type). What is left out:
quantised kinds that single families bring (Hadamard, bitnet), refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from engine.errors import InputError
from engine.worker import quantised
from engine.worker.trees import flat, nested

Told = Callable[[int, int], None]

_FLOATS = (mx.float32, mx.bfloat16, mx.float16)
# the plain module for a weight of that shape, by the quantised one's type
_PLAIN: dict[type, Callable[[tuple[int, ...], bool], nn.Module]] = {
    nn.QuantizedLinear: lambda shape, bias: nn.Linear(shape[1], shape[0], bias),
    nn.QuantizedEmbedding: lambda shape, bias: nn.Embedding(*shape),
    QuantizedSwitchLinear: lambda shape, bias: SwitchLinear(shape[2], shape[1], shape[0], bias),
    QuantizedMultiLinear: lambda shape, bias: MultiLinear(shape[2], shape[1], shape[0]),
}


def is_quantised(module: nn.Module) -> bool:
    """Whether its weight is packed integers."""
    return "scales" in module and hasattr(module, "bits")


def float_type(model: nn.Module) -> mx.Dtype:
    """The floating type that most of the model's plain numbers have."""
    counts: Counter[mx.Dtype] = Counter()
    for value in flat(model.parameters()).values():
        if value.dtype in _FLOATS:
            counts[value.dtype] += value.size
    return counts.most_common(1)[0][0]


def fuse(model: nn.Module, dequantise: bool, told: Told) -> None:
    """Put every low-rank adapter of the model into its weight. A quantised weight is quantised again as it was, unless
    `dequantise`, which makes all of the model's weights plain. `told` hears (modules done, modules)."""
    dtype = float_type(model)
    wrapped = {name: module for name, module in model.named_modules() if "lora_a" in module}
    for done, (name, module) in enumerate(wrapped.items()):
        told(done, len(wrapped))
        _replace(model, name, _fused(module, dtype, dequantise))
    del wrapped
    if not dequantise:
        return
    packed = {name: module for name, module in model.named_modules() if is_quantised(module)}
    for done, (name, module) in enumerate(packed.items()):
        told(done, len(packed))
        _replace(model, name, plain(module, dtype))


def take(model: nn.Module, arrays: Mapping[str, mx.array]) -> None:
    """Give the model the weights of full training, in the types that it has. Raises ValueError for another model's."""
    own = flat(model.parameters())
    if set(own) != set(arrays):
        raise ValueError(f"not the model's weights: {sorted(set(own) ^ set(arrays))[:3]}")
    model.load_weights([(name, value.astype(own[name].dtype)) for name, value in arrays.items()])


def plain(module: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """The module with its weight unpacked: in the type of its scales where these are floating, else in `dtype`. InputError for
    a kind of module that is not known."""
    made_plain = _PLAIN.get(quantised.mlx_type(module))
    if made_plain is None:
        what = f"{type(module).__name__} cannot be dequantised"
        raise InputError(what, where="--dequantize", remedy="leave it out: the fused model stays quantised as the base is")
    weight = unpacked(module, slice(None), dtype)
    made = made_plain(weight.shape, "bias" in module)
    made["weight"] = weight
    if "bias" in module:
        made["bias"] = module["bias"]
    return made


def unpacked(module: nn.Module, rows: mx.array | slice, dtype: mx.Dtype) -> mx.array:
    """Those rows of a quantised module's weight, in the type of its scales where these are floating, else in `dtype`."""
    packed: Any = module
    biases = packed.get("biases")
    return mx.dequantize(
        packed.weight[rows],
        packed.scales[rows],
        None if biases is None else biases[rows],
        packed.group_size,
        packed.bits,
        packed.mode,
        global_scale=packed.get("global_scale"),
        dtype=packed.scales.dtype if packed.scales.dtype in _FLOATS else dtype,
    )


def _fused(module: nn.Module, dtype: mx.Dtype, dequantise: bool) -> nn.Module:
    part = "embedding" if "embedding" in module else "linear"
    base: Any = module[part]
    packed = is_quantised(base)
    whole = plain(base, dtype) if packed else base
    own = whole["weight"].dtype
    whole["weight"] = whole["weight"].astype(mx.float32)
    module[part] = whole
    made: Any = module.fuse(dequantize=True)  # on a plain base in float32: mlx_lm's formulas, without its rounding
    made["weight"] = made["weight"].astype(own)
    if packed and not dequantise:
        made = made.to_quantized(group_size=base.group_size, bits=base.bits, mode=base.mode)
    fused: nn.Module = made
    return fused


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Computed at once, so that the old weight can go: a model is held once, not twice."""
    mx.eval(module.parameters())
    model.update_modules(nested({name: module}))
