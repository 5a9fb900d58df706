"""The embedded model's two ways of answering, counted in a step's samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.runs.record import RunRecord


@dataclass(frozen=True, slots=True)
class Modes:
    """Completions that think first and completions that answer at once, with how many of each are right."""

    thinking: int
    thinking_right: int
    at_once: int
    at_once_right: int

    @property
    def share(self) -> float:
        """Share of completions that think."""
        return self.thinking / (self.thinking + self.at_once)

    def __add__(self, other: Modes) -> Modes:
        return Modes(
            self.thinking + other.thinking,
            self.thinking_right + other.thinking_right,
            self.at_once + other.at_once,
            self.at_once_right + other.at_once_right,
        )

    def sentence(self) -> str:
        """In words, with the counts that the shares were made from."""
        return (
            f"thinks in {self.share:.0%} of {self.thinking + self.at_once} answers; "
            f"right {_share(self.thinking_right, self.thinking)} when it thinks, "
            f"{_share(self.at_once_right, self.at_once)} when it answers at once"
        )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%} of the time" if whole else "never seen"


def count(rows: Sequence[Mapping[str, Any]]) -> Modes:
    """The modes of a samples file's rows; right: the reward part `answer` is 1."""
    thinking = [row for row in rows if str(row["text"]).startswith("<think>")]
    at_once = [row for row in rows if not str(row["text"]).startswith("<think>")]
    right = [sum(row["parts"].get("answer") == 1 for row in part) for part in (thinking, at_once)]
    return Modes(len(thinking), right[0], len(at_once), right[1])


def of_step(record: RunRecord, step: int) -> Modes:
    """The modes of a step's rollouts; those of step 1 are the base model's own."""
    path: Path = record.samples_dir / f"step-{step:06d}.jsonl"
    with path.open(encoding="utf-8") as lines:
        return count([json.loads(line) for line in lines])
