"""Trees of arrays as flat dictionaries and back, and scalars as Python numbers, with the types that mlx's stubs leave open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten


def flat(tree: Any) -> dict[str, mx.array]:
    """Every array of a tree by its dotted path."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def nested(arrays: Mapping[str, Any]) -> Any:
    """The tree that `flat` took apart."""
    return tree_unflatten(list(arrays.items()))


def scalar(value: mx.array) -> float:
    """A one-element array as a Python float; waits for it."""
    return float(cast(float, value.item()))


def floats(values: mx.array) -> list[float]:
    """A vector as Python floats; waits for it."""
    return cast("list[float]", values.tolist())


def matrix(values: mx.array) -> list[list[float]]:
    """Rows of Python floats; waits for them."""
    return cast("list[list[float]]", values.tolist())


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file by name."""
    return cast("dict[str, mx.array]", mx.load(str(path)))
