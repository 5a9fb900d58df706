"""An event's fields as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.estimate import short


def readable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with every duration (`seconds`, `..._seconds`, and what these hold) in words; the others as they are."""
    return {name: _told(value, name == "seconds" or name.endswith("_seconds")) for name, value in fields.items()}


def _told(value: Any, is_duration: bool) -> Any:
    if isinstance(value, Mapping):
        return {name: _told(each, True) for name, each in value.items()} if is_duration else readable(value)
    return short(value) if is_duration and isinstance(value, float) else value
