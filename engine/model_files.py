"""What a model folder says of itself before anything is loaded: the tensors' names and shapes, and the transformer's sizes.

Only config.json and the headers of the safetensors files are read. Every bound is checked: a header may claim anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from engine.errors import InputError

MAX_HEADER_BYTES = 100_000_000  # that of the safetensors library
ITEM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
ROUTERS = ("gate", "router", "shared_expert_gate")  # they get no adapters by default
_LAYER = re.compile(r"^(?:.*?\.)?(?:layers|h|blocks)\.(\d+)\.(.+)$")
_REMEDY = "fetch the file again"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a safetensors file; `dtype` as the format spells it (F32, BF16, U32, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the model's floating-point type applies to it (quantised weights are U32, their exponents U8)."""
        return self.dtype in ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A transformer's sizes, from config.json."""

    family: str
    layers: int
    hidden: int
    intermediate: int  # of a mixture of experts: of those that one token uses, together
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # the head is the embedding
    window: int | None  # tokens that a sliding layer keeps
    sliding_layers: int
    is_mixture: bool


@dataclass(frozen=True, slots=True)
class LinearModule:
    """A linear module inside a layer (or a stack of experts), which an adapter can wrap."""

    path: str  # in the model
    layer: int  # -1: outside the layers
    key: str  # path inside its layer, such as self_attn.q_proj
    experts: int  # 1 for a plain linear
    inputs: int
    outputs: int
    quantised: bool


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), remedy=_REMEDY) from error
    if not isinstance(value, dict):
        raise InputError("expected a JSON object", where=str(path), remedy=_REMEDY)
    return value


def read_headers(folder: Path) -> list[TensorHeader]:
    """Every tensor in the folder's weight files (those that mlx_lm loads, model*.safetensors). Raises InputError for damage."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise InputError("no model*.safetensors", where=str(folder), remedy="give a folder that mlx_lm can load, or `demo`")
    return [header for file in files for header in _read_header(file)]


def _read_header(path: Path) -> list[TensorHeader]:
    def damaged(what: str) -> InputError:
        return InputError(f"damaged: {what}", where=str(path), remedy=_REMEDY)

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise damaged(f"its header claims {length} bytes, the file has {size}")
            raw = file.read(length)
    except OSError as error:
        raise InputError(f"cannot be read: {error}", where=str(path), remedy=_REMEDY) from error
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise damaged("its header is not a JSON object")
    found = []
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        shape, span = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else (None, None)
        if not _naturals(shape) or not _naturals(span) or len(span) != 2 or not isinstance(entry.get("dtype"), str):
            raise damaged(f"tensor {name!r} has no sound dtype, shape and data_offsets")
        header = TensorHeader(name, entry["dtype"], tuple(shape), span[1] - span[0])
        if not 0 <= span[0] <= span[1] <= size - 8 - length:
            raise damaged(f"tensor {name!r} lies outside the file")
        bits = ITEM_BITS.get(header.dtype)
        if bits is not None and header.bytes * 8 != header.elements * bits:
            raise damaged(f"tensor {name!r} of shape {list(shape)} and type {header.dtype} cannot have {header.bytes} bytes")
        found.append(header)
    return found


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The sizes in a config.json; None for a family that is no transformer of the usual kind (it names them otherwise)."""
    inner = config.get("text_config")
    sizes = {**config, **inner} if isinstance(inner, dict) else config
    layers, hidden, heads = (_size(sizes, name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    vocabulary, intermediate = _size(sizes, "vocab_size"), _size(sizes, "intermediate_size")
    expert, used = _size(sizes, "moe_intermediate_size"), _size(sizes, "num_experts_per_tok")
    if used is not None:
        intermediate = (expert or intermediate or 0) * used + (_size(sizes, "shared_expert_intermediate_size") or 0)
    if layers is None or hidden is None or heads is None or vocabulary is None or not intermediate:
        return None
    kinds = sizes.get("layer_types")
    return ModelShape(
        family=str(sizes.get("model_type", config.get("model_type", "unknown"))),
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=_size(sizes, "num_key_value_heads") or heads,
        head_dim=_size(sizes, "head_dim") or hidden // heads,
        vocabulary=vocabulary,
        tied=bool(sizes.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
        window=_size(sizes, "sliding_window"),
        sliding_layers=kinds.count("sliding_attention") if isinstance(kinds, list) else 0,
        is_mixture=used is not None,
    )


def _size(sizes: Mapping[str, Any], name: str) -> int | None:
    value = sizes.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def linear_modules(headers: Sequence[TensorHeader], config: Mapping[str, Any], where: str) -> list[LinearModule]:
    """Every linear module, embedding and stack of experts, quantised or not. Raises InputError where a width cannot be known."""
    by_name = {header.name: header for header in headers}
    quantisation = config.get("quantization") or config.get("quantization_config") or {}
    found = []
    for header in headers:
        path = header.name.removesuffix(".weight")
        is_stack = len(header.shape) == 3 and ("expert" in path or "switch" in path)
        if path == header.name or not (len(header.shape) == 2 or is_stack):
            continue
        outputs, inputs = header.shape[-2:]
        scales = by_name.get(f"{path}.scales")
        if scales is not None:  # a row holds `group_size` weights for each scale, whatever the bits
            own = quantisation.get(path) if isinstance(quantisation, dict) else None
            group_size = _size(own, "group_size") if isinstance(own, dict) else None
            group_size = group_size or (_size(quantisation, "group_size") if isinstance(quantisation, dict) else None)
            if group_size is None:
                what = f"{header.name} is quantised, but config.json has no quantization.group_size"
                raise InputError(what, where=where, remedy=_REMEDY)
            inputs = scales.shape[-1] * group_size
        place = _LAYER.match(path)
        found.append(
            LinearModule(
                path=path,
                layer=int(place.group(1)) if place else -1,
                key=place.group(2) if place else path,
                experts=header.shape[0] if is_stack else 1,
                inputs=inputs,
                outputs=outputs,
                quantised=scales is not None,
            )
        )
    return found


def adapted_modules(
    modules: Sequence[LinearModule], layers: int, *, kind: str, last: int, keys: Sequence[str] | None
) -> list[LinearModule]:
    """Those that an adapter wraps: in the `last` layers (less than 1: all), routers left out, expert stacks too under DoRA;
    with `keys` exactly those named, by their path inside a layer or in the model."""
    first = layers - last if 0 < last < layers else 0
    if keys is not None:
        return [module for module in modules if module.path in keys or (module.layer >= first and module.key in keys)]
    inside = [module for module in modules if module.layer >= first and _is_wrapped_by_default(module.key)]
    return [module for module in inside if kind != "dora" or module.experts == 1]


def _is_wrapped_by_default(key: str) -> bool:
    parts = key.split(".")
    return "embed" not in key and parts[-1] not in ROUTERS and parts[-2:-1] != ["router"]
