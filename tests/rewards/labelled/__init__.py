"""Completions with the score that each built-in reward must give them, by the reward's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Label:
    """One completion. `cheat` names the trick of one that tries to get more than it deserves."""

    completion: str
    score: float | None
    cheat: str = ""
    prompt: str = "p"
    columns: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def row(completion: str, score: float | None, *, prompt: str = "p", **columns: Any) -> Label:
    return Label(completion, score, "", prompt, columns)


def cheat(trick: str, completion: str, score: float | None, *, prompt: str = "p", **columns: Any) -> Label:
    return Label(completion, score, trick, prompt, columns)
