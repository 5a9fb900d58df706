"""Experts as mlx_lm holds them: those that a checkpoint keeps one by one become one array for all of a layer as it is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.model_files import TensorHeader

_EXPERT = re.compile(r"^(.+)\.experts\.(\d+)\.(\w+)\.weight$")
_OF_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def stacked(headers: Sequence[TensorHeader]) -> list[TensorHeader]:
    """The headers with `...experts.0.gate_proj.weight` [O, I], `...experts.1...` and so on as one
    `...switch_mlp.gate_proj.weight` [E, O, I] (mlx_lm's `sanitize` of qwen3_moe, deepseek_v3, olmoe, mixtral and others). Those
    whose shapes or types differ stay as they are."""
    parts: dict[tuple[str, str], list[TensorHeader]] = {}
    for header in headers:
        if found := _EXPERT.match(header.name):
            parts.setdefault((found[1], found[3]), []).append(header)
    whole = {key: each for key, each in parts.items() if len({(one.shape, one.dtype) for one in each}) == 1}
    made: list[TensorHeader] = []
    for header in headers:
        found = _EXPERT.match(header.name)
        each = whole.get((found[1], found[3])) if found else None
        if found is None or each is None:
            made.append(header)
        elif header is each[0]:
            name = f"{found[1]}.switch_mlp.{_OF_MIXTRAL.get(found[3], found[3])}.weight"
            made.append(TensorHeader(name, header.dtype, (len(each), *header.shape), sum(one.bytes for one in each)))
    return made
