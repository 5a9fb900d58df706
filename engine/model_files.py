"""What a model folder says of itself before anything is loaded: the tensors' names and shapes, and the transformer's sizes.

Only config.json and the headers of the safetensors files are read, or the header of weights that are still to be written
(PLANNED). Every bound is checked: a header may claim anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from engine.errors import InputError

MAX_HEADER_BYTES = 100_000_000  # that of the safetensors library
MAX_SIZE = 1 << 53  # of any number in config.json or a header: more cannot be one of a model
MAX_DIMENSIONS = 16
PLANNED = "model.header.json"  # in a folder whose weights are still to be converted: the header that they will have
ITEM_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
MXFP4_GROUP = 32
ROUTERS = ("gate", "router", "shared_expert_gate")  # they get no adapters by default
_LAYER = re.compile(r"^(?:.*?\.)?(?:layers|h|blocks)\.(\d+)\.(.+)$")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # nothing that climbs out of a folder
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
    """The JSON object in `path`. Raises InputError, also for numbers that no model has."""
    try:
        if path.exists() and not path.is_file():
            raise InputError("is not a file", where=str(path), remedy=_REMEDY)
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_bounded)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), remedy=_REMEDY) from error
    if not isinstance(value, dict):
        raise InputError("expected a JSON object", where=str(path), remedy=_REMEDY)
    return value


def _bounded(digits: str) -> int:
    """Raises ValueError."""
    if len(digits) > 20 or abs(int(digits)) > MAX_SIZE:
        raise ValueError(f"the number {digits[:24]} is too large")
    return int(digits)


def read_headers(folder: Path) -> list[TensorHeader]:
    """Every tensor in the folder's weight files (those that mlx_lm loads, model*.safetensors), or of those that it is to get.
    Raises InputError for damage."""
    files = sorted(folder.glob("model*.safetensors"))
    planned = folder / PLANNED
    if not files and planned.is_file():
        return _tensors(read_json(planned), None, str(planned))
    if not files:
        raise InputError("no model*.safetensors", where=str(folder), remedy="give a folder that mlx_lm can load, or `demo`")
    check_index(folder, {file.name for file in files})
    return [header for file in files for header in _read_header(file)]


def check_index(folder: Path, there: Set[str]) -> None:
    """InputError for an index that names files elsewhere, or shards of which some are missing: a download that broke off."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError("has no weight_map from tensors to files", where=str(path), remedy=_REMEDY)
    named = set(places.values())
    outside = next((name for name in sorted(named) if not _FILE_NAME.fullmatch(name)), None)
    if outside is not None:
        raise InputError(f"names {outside[:80]!r}, which is no file of this folder", where=str(path), remedy=_REMEDY)
    missing = sorted(named - there)
    if missing and named & there:  # an index of other files altogether is a left-over, which mlx_lm does not read
        raise InputError(f"names {missing[0]}, which is not there", where=str(path), remedy="fetch the missing files")


def _read_header(path: Path) -> list[TensorHeader]:
    try:
        if not path.is_file():
            raise _damaged("it is not a file", str(path))
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(header_bytes(file.read(8), size, str(path)))
    except OSError as error:
        raise InputError(f"cannot be read: {error}", where=str(path), remedy=_REMEDY) from error
    return parse_header(raw, size, str(path))


def header_bytes(start: bytes, file_bytes: int, where: str) -> int:
    """The length of a safetensors header, which the first 8 bytes of its file tell. InputError where it cannot be that."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(file_bytes - 8, MAX_HEADER_BYTES):
        raise _damaged(f"its header claims {length} bytes, the file has {file_bytes}", where)
    return length


def parse_header(raw: bytes, file_bytes: int, where: str) -> list[TensorHeader]:
    """The tensors of a safetensors file from its header, which follows the first 8 bytes. Raises InputError for damage."""
    try:
        table = json.loads(raw, parse_int=_bounded, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"its header is not JSON ({error})", where) from error
    if not isinstance(table, dict):
        raise _damaged("its header is not a JSON object", where)
    return _tensors(table, file_bytes - 8 - len(raw), where)


def _damaged(what: str, where: str) -> InputError:
    return InputError(f"damaged: {what}", where=where, remedy=_REMEDY)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key that is given twice: of two tensors with one name, one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice")
    return found


def _tensors(table: Mapping[str, Any], data_bytes: int | None, where: str) -> list[TensorHeader]:
    """The tensors of a safetensors header; `data_bytes` follow it in the file (None: they are still to be written)."""
    found, spans = [], []
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        shape, span = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else (None, None)
        if not _naturals(shape) or not _naturals(span) or len(span) != 2 or not isinstance(entry.get("dtype"), str):
            raise _damaged(f"tensor {name[:80]!r} has no sound dtype, shape and data_offsets", where)
        if len(shape) > MAX_DIMENSIONS or span[0] > span[1] or (data_bytes is not None and span[1] > data_bytes):
            raise _damaged(f"tensor {name[:80]!r} lies outside the file, or has {len(shape)} dimensions", where)
        header = TensorHeader(name, entry["dtype"], tuple(shape), span[1] - span[0])
        bits = ITEM_BITS.get(header.dtype)
        if bits is None:
            raise _damaged(f"tensor {name[:80]!r} has the unknown type {header.dtype[:20]!r}", where)
        if header.bytes * 8 != header.elements * bits:
            what = f"tensor {name[:80]!r} of shape {list(shape)} and type {header.dtype} cannot have {header.bytes} bytes"
            raise _damaged(what, where)
        found.append(header)
        spans.append((span[0], span[1], name))
    end, before = 0, ""
    for start, stop, name in sorted(spans):
        if start < end and stop > start:
            raise _damaged(f"the tensors {before[:80]!r} and {name[:80]!r} overlap", where)
        end, before = max(end, stop), name
    return found


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)


def context_tokens(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model with that config.json was made for; None where it does not say."""
    return _size(_sizes(config), "max_position_embeddings")


def _sizes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The sizes in a config.json; None for a family that is no transformer of the usual kind (it names them otherwise)."""
    sizes = _sizes(config)
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
            group_size = group_size or (_group_size(quantisation) if isinstance(quantisation, dict) else None)
            if group_size is None:
                what = f"{header.name} is quantised, but config.json has no quantization.group_size"
                raise InputError(what, where=where, remedy=_REMEDY)
            if not scales.shape:
                raise InputError(f"{scales.name} is a single number", where=where, remedy=_REMEDY)
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


def _group_size(quantisation: Mapping[str, Any]) -> int | None:
    """Weights that share a scale; MXFP4 has one size, which its checkpoints do not name."""
    return _size(quantisation, "group_size") or (MXFP4_GROUP if quantisation.get("quant_method") == "mxfp4" else None)


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


def quantised(header: TensorHeader, bits: int, group_size: int) -> list[TensorHeader]:
    """The arrays that mlx makes of a weight [..., inputs]: packed integers, a scale and a bias for each `group_size` inputs."""
    *rows, inputs = header.shape
    item = header.bytes // header.elements
    groups = (*rows, inputs // group_size)
    path = header.name.removesuffix(".weight")
    packed = (*rows, inputs * bits // 32)
    return [
        TensorHeader(header.name, "U32", packed, 4 * math.prod(packed)),
        *(TensorHeader(f"{path}.{part}", header.dtype, groups, item * math.prod(groups)) for part in ("scales", "biases")),
    ]
