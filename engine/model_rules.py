"""What of a config's model, quantisation and adapter cannot go together, in plain words."""

from __future__ import annotations

from engine.errors import InputError
from engine.sections import AdapterConfig, RunConfig

_DORA_BITS = (2, 4, 8)  # with others mlx_lm's DoRA computes a wrong width


def refusal(config: RunConfig) -> InputError | None:
    """The first thing that cannot be; `where` is the key."""
    adapter, bits = config.adapter, config.quantize.bits
    if adapter.layers == 0:
        remedy = "use -1 for all layers, 1 or more for as many from the last"
        return InputError("0 stands for no number of layers", where="adapter.layers", remedy=remedy)
    for key in ("layers", "keys") if adapter.type == "full" else ():
        if getattr(adapter, key) != AdapterConfig.model_fields[key].default:
            what, remedy = "full training is of every weight", "leave it out, or use adapter.type: lora"
            return InputError(what, where=f"adapter.{key}", remedy=remedy)
    if bits is not None and adapter.type == "full":
        remedy = "leave it out, or use adapter.type: lora"
        return InputError("a quantised model cannot be trained in full", where="quantize.bits", remedy=remedy)
    if bits is not None and adapter.type == "dora" and bits not in _DORA_BITS:
        remedy = f"use {', '.join(map(str, _DORA_BITS))}, or adapter.type: lora"
        return InputError(f"mlx_lm has no DoRA on {bits} bits", where="quantize.bits", remedy=remedy)
    return None
