"""Experts as mlx_lm holds them: one array for all of a layer's, with a name of its own, whatever the checkpoint keeps.

Some checkpoints keep experts one by one; others keep all of a layer's as one parameter without `.weight`, gate and up in one. The
tables below are those of the `sanitize` of mlx_lm's models; what a family's does not take apart stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.model_files import TensorHeader

_EXPERT = re.compile(r"^(.+)\.experts\.(\d+)\.(\w+)\.weight$")
_OF_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_FUSED = re.compile(r"^(.+)\.experts\.(gate_up|down)_proj(_blocks|_scales|_bias|)$")
_OF_GRANITE = re.compile(r"^(.+)\.(input|output)_linear()\.weight$")
_PACKED_DIMENSIONS = {"_blocks": 4, "_scales": 3}
_WORD_BYTES = 4  # of the integers into which mlx packs weights


@dataclass(frozen=True, slots=True)
class _Fused:
    """How a family keeps a layer's experts in one parameter. `owner`: the module that has gate, up and down, after the path of
    what is before it in the checkpoint's name. `turned`: inputs stand before outputs. `packed`: only 4-bit blocks are taken."""

    owner: str
    turned: bool = False
    packed: bool = False


_FAMILIES: Mapping[str, _Fused] = {
    "gpt_oss": _Fused("experts", packed=True),
    "qwen3_5_moe": _Fused("switch_mlp"),
    "qwen3_vl_moe": _Fused("switch_mlp", turned=True),
    "mistral4": _Fused("switch_mlp"),
    "gemma4": _Fused("experts.switch_glu"),
    "llama4": _Fused("experts", turned=True),
    "granitemoe": _Fused("switch_mlp"),
    "granitemoehybrid": _Fused("switch_mlp"),
}


def stacked(headers: Sequence[TensorHeader], family: str = "") -> list[TensorHeader]:
    """The headers with `...experts.0.gate_proj.weight` [O, I], `...experts.1...` and so on as one
    `...switch_mlp.gate_proj.weight` [E, O, I] (mlx_lm's `sanitize` of qwen3_moe, deepseek_v3, olmoe, mixtral and others), and
    with `...experts.gate_up_proj` [E, 2 O, I] as gate and up, of the families that have one (`family`: config.json's
    model_type). Those whose shapes or types differ stay as they are."""
    parts: dict[tuple[str, str], list[TensorHeader]] = {}
    for header in headers:
        if found := _EXPERT.match(header.name):
            parts.setdefault((found[1], found[3]), []).append(header)
    whole = {key: each for key, each in parts.items() if len({(one.shape, one.dtype) for one in each}) == 1}
    fused = _FAMILIES.get(family.removesuffix("_text"))
    made: list[TensorHeader] = []
    for header in headers:
        found = _EXPERT.match(header.name)
        each = whole.get((found[1], found[3])) if found else None
        if found is None or each is None:
            made += [header] if fused is None else _parted(header, fused)
        elif header is each[0]:
            name = f"{found[1]}.switch_mlp.{_OF_MIXTRAL.get(found[3], found[3])}.weight"
            made.append(TensorHeader(name, header.dtype, (len(each), *header.shape), sum(one.bytes for one in each)))
    return made


def _parted(header: TensorHeader, fused: _Fused) -> list[TensorHeader]:
    """Gate and up of a parameter that is both, down with its name; every other header as it is."""
    found = _FUSED.match(header.name) or _OF_GRANITE.match(header.name)
    if found is None:
        return [header]
    kind = found[3]
    is_plain = kind == "" and len(header.shape) == 3 and header.is_float and not fused.packed
    is_packed = fused.packed and header.dtype == "U8" and len(header.shape) == _PACKED_DIMENSIONS.get(kind)
    is_bias = kind == "_bias" and fused.packed and len(header.shape) == 2
    if not (is_plain or is_packed or is_bias):
        return [header]
    dtype, shape = header.dtype, header.shape
    if kind == "_blocks":  # [E, O, groups, bytes]: a row's bytes become words
        dtype, shape = "U32", (*shape[:2], shape[2] * shape[3] // _WORD_BYTES)
    if is_plain and fused.turned:
        shape = (shape[0], shape[2], shape[1])
    part = {"_scales": "scales", "_bias": "bias"}.get(kind, "weight")
    path = f"{found[1]}.{fused.owner}"
    if found[2] in ("down", "output"):
        return [TensorHeader(f"{path}.down_proj.{part}", dtype, shape, header.bytes)]
    half = (shape[0], shape[1] // 2, *shape[2:])
    return [TensorHeader(f"{path}.{name}.{part}", dtype, half, header.bytes // 2) for name in ("gate_proj", "up_proj")]
