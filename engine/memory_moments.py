"""A moment of a run at which its memory may be at its most, with the parts that add up to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """Arrays that are alive together, beside what is held throughout: parts by name, in bytes."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.parts)
