"""Which modules of a loaded model get an adapter: by default, and by the keys that a config names."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from engine import model_rules
from engine.errors import InputError
from engine.model_files import ROUTERS

_STACKS = (SwitchLinear, QuantizedSwitchLinear)
_WRAPPED = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding, *_STACKS)


def default(model: nn.Module, kind: str) -> list[str]:
    """Paths of every linear module inside the layers, routers left out (and expert stacks for DoRA, which has none)."""
    types: tuple[type, ...] = (nn.Linear, nn.QuantizedLinear)
    if kind == "lora":
        types += (SwitchLinear, QuantizedSwitchLinear)
    found: set[str] = set()
    for layer in model.layers:
        for path, module in layer.named_modules():
            parts = path.split(".")
            if isinstance(module, types) and parts[-1] not in ROUTERS and (len(parts) < 2 or parts[-2] != "router"):
                found.add(path)
    return sorted(found)


def check(model: nn.Module, keys: Sequence[str], layers: int, *, is_dora: bool, where: str) -> None:
    """InputError for a key that names nothing that mlx_lm can wrap, in the last `layers` layers or in the model: mlx_lm leaves
    out what it does not find, without a word."""
    found = _named(model, layers)
    wrong = [key for key in keys if not isinstance(found.get(key), _WRAPPED) and not hasattr(found.get(key), "to_lora")]
    if wrong or not keys:
        known = ", ".join(default(model, "dora" if is_dora else "lora")[:8])
        what = f"adapter.keys {wrong} match no module"
        raise InputError(what, where=where, remedy=f"paths inside a layer, such as {known}")
    stack = next((key for key in keys if isinstance(found[key], _STACKS)), None)
    if is_dora and stack is not None:
        raise model_rules.no_dora(stack)


def check_dora(model: nn.Module, keys: Sequence[str], layers: int, where: str) -> None:
    """InputError where one of the modules is a quantised embedding, or quantised to a number of bits on which mlx_lm's DoRA
    computes a wrong width."""
    found = _named(model, layers)
    embedding = next((key for key in keys if isinstance(found.get(key), nn.QuantizedEmbedding)), None)
    if embedding is not None:
        remedy = "leave it out, or use adapter.type: lora"
        raise InputError(f"mlx_lm has no DoRA on a quantised embedding ({embedding})", where="adapter.keys", remedy=remedy)
    refused = (model_rules.no_dora_on(getattr(found.get(key), "bits", None), where) for key in keys)
    if error := next(filter(None, refused), None):
        raise error


def _named(model: nn.Module, layers: int) -> dict[str, nn.Module]:
    """What keys may name: modules by their paths in the model, and in one of the last `layers` layers."""
    found: dict[str, nn.Module] = dict(model.named_modules())
    for layer in model.layers[-layers:]:
        found |= dict(layer.named_modules())
    return found
