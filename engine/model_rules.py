"""What of a config's model, quantisation and adapter cannot go together, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import InputError
from engine.model_files import LinearModule
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
    return no_dora_on(bits, "quantize.bits") if adapter.type == "dora" else None


def unfit(
    config: RunConfig, described: Mapping[str, Any], modules: Sequence[LinearModule], adapted: Sequence[LinearModule]
) -> InputError | None:
    """What of the config the model at hand cannot have. `described` is its config.json, `modules` are its linear ones as they
    would be held, `adapted` those that `adapter.keys` name."""
    bits, group_size = config.quantize.bits, config.quantize.group_size
    own = described.get("quantization")
    if bits is not None and own:
        return quantised_already(config.model)
    if config.adapter.type == "dora" and isinstance(own, dict) and (refused := no_dora_on(own.get("bits"), config.model)):
        return refused
    if bits is not None and modules and not any(module.quantised for module in modules):
        return no_group(group_size)
    experts = next((module.key for module in adapted if module.experts > 1), None)
    if config.adapter.type == "dora" and experts is not None:
        return no_dora(experts)
    return None


def no_dora_on(bits: int | None, where: str) -> InputError | None:
    """The refusal of DoRA on weights of so many bits; None where it works, and for weights that are not quantised (None)."""
    if bits is None or bits in _DORA_BITS:
        return None
    remedy = f"use {', '.join(map(str, _DORA_BITS))}, or adapter.type: lora"
    return InputError(f"mlx_lm has no DoRA on {bits} bits", where=where, remedy=remedy)


def quantised_already(where: str) -> InputError:
    """The refusal to quantise a model twice."""
    remedy = "leave quantize.bits out, or name an unquantised model"
    return InputError("the model is quantised already", where=where, remedy=remedy)


def no_group(group_size: int) -> InputError:
    """The refusal of a group size by which no width of the model can be divided: nothing would be quantised."""
    what = f"no row of the model's weights can be cut into groups of {group_size}"
    return InputError(what, where="quantize.group_size", remedy="take a smaller one (32 is the smallest), or leave quantize out")


def no_dora(key: str) -> InputError:
    """The refusal of DoRA on a stack of experts."""
    what = f"mlx_lm has no DoRA on experts ({key})"
    return InputError(what, where="adapter.keys", remedy="leave it out, or use adapter.type: lora")
