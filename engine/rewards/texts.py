"""A text, or a list of texts: how rows write reasoning steps, terms and units."""

from __future__ import annotations

from typing import Any

from engine.data.values import json_type

_REMEDY = "write a text or a list of texts"
_STEPS_REMEDY = "write a list of strings, or one string with a step on each line"


class TextsError(ValueError):
    """The value holds something else: `field` says where, `reason` and `remedy` are for a person."""

    def __init__(self, name: str, value: Any, field: str, reason: str, remedy: str) -> None:
        super().__init__(f"{name} is not a list of texts: {str(value)[:80]}")
        self.field = field
        self.reason = reason
        self.remedy = remedy


def texts(value: Any, name: str, remedy: str = _REMEDY) -> list[str]:
    """The value of the field `name` as a list of texts, empty ones included. Raises TextsError."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise TextsError(name, value, name, f"{name!r} is {json_type(found)}", remedy)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise TextsError(name, value, f"{name}[{place}]", f"is {json_type(text)}, not a text", remedy)
    return list(found)


def step_texts(steps: Any) -> list[str]:
    """The steps in a row's `reasoning_steps`: a list of texts, or one text with a step on each line. Raises TextsError."""
    if isinstance(steps, str):
        return [line.strip() for line in steps.splitlines() if line.strip()]
    return texts(steps, "reasoning_steps", _STEPS_REMEDY)
