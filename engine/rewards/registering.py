"""What users' reward files written for mlx-lm-lora import, for machines where that package is not installed.

Such a file begins with `from mlx_lm_lora.trainer.grpo_reward_functions import register_reward_function`. While it is imported
here, and only then, that name leads to this module's decorator; an installed mlx-lm-lora is used as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

from engine.rewards import r1

F = TypeVar("F", bound=Callable[..., Any])

DECORATOR = "register_reward_function"  # in a user's file, and no reward
_PEER = "mlx_lm_lora.trainer.grpo_reward_functions"
_OFFERED = (
    "r1_extract_xml_answer",
    "r1_accuracy_reward_func",
    "r1_int_reward_func",
    "r1_strict_format_reward_func",
    "r1_soft_format_reward_func",
    "r1_count_xml",
)
_registered: dict[tuple[str, str], Callable[..., Any]] = {}  # (module, name)


def register_reward_function(name: str | None = None) -> Callable[[F], F]:
    """A decorator that makes a function known by `name`, by default its own: `rewards: [{name: NAME, file: FILE}]` finds it."""

    def register(function: F) -> F:
        _registered[function.__module__, name or function.__name__] = function
        return function

    return register


def registered(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that the module's decorators have registered, by name, here or with an installed mlx-lm-lora."""
    peers: dict[str, Callable[..., Any]] = getattr(sys.modules.get(_PEER), "REWARD_REGISTRY", {})
    own = {name: function for (owner, name), function in _registered.items() if owner == module.__name__}
    return {name: function for name, function in peers.items() if function.__module__ == module.__name__} | own


@contextmanager
def stand_in() -> Iterator[None]:
    """While inside, mlx-lm-lora's module of reward functions can be imported even where it is not installed."""
    if "mlx_lm_lora" in sys.modules or find_spec("mlx_lm_lora") is not None:
        yield
        return
    made = {name: ModuleType(name) for name in ("mlx_lm_lora", "mlx_lm_lora.trainer", _PEER)}
    vars(made[_PEER]).update({name: getattr(r1, name) for name in _OFFERED})
    vars(made[_PEER])[DECORATOR] = register_reward_function
    for name, module in made.items():
        module.__path__ = []  # a package; nothing else lies in it
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)
