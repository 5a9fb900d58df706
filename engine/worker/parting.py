"""A model's head apart from its body, whatever its family puts into the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_BODIES = ("model", "backbone", "transformer")  # names under which mlx_lm's models keep everything below the head


def body(model: nn.Module) -> nn.Module:
    """Everything below the head."""
    while "language_model" in model:
        model = model["language_model"]
    name = next(name for name in _BODIES if name in model)
    body: nn.Module = model[name]
    return body


def head_view(model: nn.Module) -> Callable[[mx.array], mx.array]:
    """The model's own class with its body replaced by an identity: so every scale, cap and tied head is kept.

    The view is made anew on each call, inside the loss, so that it always holds the current arrays.
    """
    while "language_model" in model:
        model = model["language_model"]
    name = next(name for name in _BODIES if name in model)
    view = type(model).__new__(type(model))
    nn.Module.__init__(view)
    for key, value in vars(model).items():
        if not key.startswith("_"):
            object.__setattr__(view, key, value)
    dict.update(view, model)
    view[name] = _Lender(model[name])
    head: Callable[[mx.array], mx.array] = view
    return head


class _Lender(nn.Module):
    """Gives its input back unchanged, and the wrapped body's attributes (a tied embedding, say) to whoever asks."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_wrapped", body)

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_wrapped"), name)


def can_be_parted(model: nn.Module) -> bool:
    """Whether head(hidden(x)) equals model(x) to the bit on a small probe (families differ in what sits in the head)."""
    inner = model
    while "language_model" in inner:
        inner = inner["language_model"]
    if not any(name in inner for name in _BODIES):
        return False
    probe = mx.array([[1, 2, 3, 4, 5]])
    try:
        parted = head_view(model)(body(model)(probe))
    except (TypeError, ValueError, AttributeError):
        return False  # the family's head wants more than hidden states; full logits are always right
    whole = model(probe)
    return parted.shape == whole.shape and bool(mx.array_equal(parted, whole).item())
