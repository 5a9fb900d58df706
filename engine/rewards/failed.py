"""What a built-in reward returns for a completion that it could not score: no number and no None, for the reason is known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failed:
    """The completion is excluded, counted, and reported."""

    why: str  # the same text for all completions with the same fault
    detail: str = ""  # what is this completion's own
