"""What is said of one foreign key, as data: whose it is, what it is here, what is done about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Tool = Literal["mlx_lm.lora", "mlx-lm-lora", "TRL"]
Kind = Literal["sft", "rl"]

LORA: Tool = "mlx_lm.lora"
MLL: Tool = "mlx-lm-lora"
TRL: Tool = "TRL"
MLX = (LORA, MLL)
GRPO = (MLL, TRL)  # the tools with rewards
ALL = (LORA, MLL, TRL)


@dataclass(frozen=True, slots=True)
class Alias:
    """A setting of ours by the name that `tools` give it."""

    key: str
    tools: tuple[Tool, ...]
    to: str  # our dotted key; of a key that is read with others, the one that it mostly sets
    value: Callable[[Any], Any] | None = None  # None: read with others
    only: Kind | None = None  # the kind of method that has a use for it
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A key without a meaning here: it is named in a note, with the reason."""

    key: str
    tools: tuple[Tool, ...]
    meaning: str  # why
    only: Kind | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A key that would change the training and is not supported: an error unless it has one of the `neutral` values."""

    key: str
    tools: tuple[Tool, ...]
    neutral: tuple[Any, ...]
    meaning: str  # why
    remedy: str
    only: Kind | None = None


Row = Alias | Ignored | Refused
