"""How a foreign value becomes ours. Each function takes what the file says and raises InputError, without a place, for what it
cannot be here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import InputError


def as_is(value: Any) -> Any:
    """The same value; the config's own checks judge it."""
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A mapping, or one as JSON text."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = value
    if not isinstance(found, dict):
        raise InputError(f"{value!r:.60} is no mapping", remedy="write {name: value}")
    return found


def one_of(meanings: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """A function that looks a value up, and names those that there are where it is none of them."""

    def convert(value: Any) -> Any:
        for known, meaning in meanings.items():
            if type(known) is type(value) and known == value:
                return meaning
        shown = ", ".join(str(known).lower() if isinstance(known, bool) else str(known) for known in meanings)
        raise InputError(f"{value!r} is none of its values", remedy=f"one of: {shown}")

    return convert


scale_rewards = one_of({"group": "group", "batch": "batch", "none": "none", True: "group", False: "none"})
ratio = one_of({"token": "token", "sequence": "sequence"})
switch = one_of({True: True, False: False})

_MODULES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}


def whole(value: Any, least: int = 1) -> int:
    """An integer of `least` or more."""
    if type(value) is not int or value < least:
        raise InputError(f"expected a whole number of {least} or more, got {value!r}", remedy="correct the value")
    return value


def number(value: Any) -> float:
    """A number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"expected a number, got {value!r}", remedy="correct the value")
    return value


def names(value: Any) -> list[str]:
    """A list of names, or a string of them parted by commas."""
    parts = value.strip().strip("[]").split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"expected a list of names, got {value!r}", remedy="write [a, b] or a, b")
    found = [part.strip().strip("'\"") for part in parts]
    if not found or not all(found):
        raise InputError(f"a name is empty in {value!r}", remedy="write [a, b] or a, b")
    return found


def weights(value: Any) -> list[float]:
    """A list of numbers, or a string such as "[0.7, 0.3]"."""
    try:
        parts = [float(part) for part in value.strip().strip("[]").split(",")] if isinstance(value, str) else value
    except ValueError:
        raise InputError(f"{value!r} is no list of numbers", remedy="write [0.7, 0.3]") from None
    if not isinstance(parts, list):
        raise InputError(f"{value!r} is no list of numbers", remedy="write [0.7, 0.3]")
    return [float(number(part)) for part in parts]


def modules(value: Any) -> list[str] | None:
    """peft's target modules as paths inside a layer; None, every linear layer, for "all-linear"."""
    if value == "all-linear" or value == ["all-linear"]:
        return None
    paths = []
    for name in names(value):
        if "." not in name and name not in _MODULES:
            remedy = f"write its path inside a layer, as in self_attn.q_proj; known alone: {', '.join(_MODULES)}"
            raise InputError(f"it is unknown in which part of a layer {name!r} is", remedy=remedy)
        paths.append(name if "." in name else f"{_MODULES[name]}.{name}")
    return paths


def trl_optimizer(value: Any) -> str:
    """Our name of a transformers optimizer, whatever the width of its state and wherever that lies."""
    text = str(value).removeprefix("paged_").removesuffix("_8bit").removesuffix("_32bit")
    known = {
        **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_hf", "adamw_bnb"), "adamw"),
        **{name: name for name in ("adafactor", "lion", "sgd")},
    }
    if text not in known:
        raise InputError(f"there is no optimizer {value!r} here", remedy=f"one of: {', '.join(known)}")
    return known[text]


def mlx_optimizer(value: Any) -> str:
    """Our name of an mlx optimizer."""
    known = ("adam", "adamw", "muon", "sgd", "adafactor", "lion")
    if str(value).lower() not in known:
        raise InputError(f"there is no optimizer {value!r} here", remedy=f"one of: {', '.join(known)}")
    return str(value).lower()


def scheduler(value: Any) -> str:
    """Our schedule for a transformers scheduler; constant_with_warmup differs from constant in the warm-up alone."""
    names_ = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
    return str(one_of(names_)(value))
