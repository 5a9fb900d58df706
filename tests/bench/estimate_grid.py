"""The configs on which the memory plan is held against mlx: those that are reported, and others to adjust its counts on.

No config is in both lists. The counts of what is under way (engine/memory_layers.py) come from random llamas of 40 other sizes,
checked on the second list; none was adjusted to a config of the first, nor to any of the family HELD_OUT.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

BLANK, SMOLLM2 = "blank", "smollm2-135m"
HELD_OUT = "qwen3"
# sizes of the model that fitting runs on, in place of the blank one's
OTHER = {"hidden_size": 192, "num_hidden_layers": 5, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2}


@dataclass(frozen=True, slots=True)
class Case:
    """One step of one run. Every row has exactly `prompt_tokens`, as near as the tokenizer allows, and `tokens`."""

    model: str  # BLANK, SMOLLM2, "other" or a family of tests/support/families.py
    prompts: int
    group: int
    prompt_tokens: int
    tokens: int
    adapter: Literal["lora", "dora", "full"] = "lora"
    micro: int | None = None  # None: all rows of the update
    recomputes: bool = False
    beta: float = 0.0
    rank: int = 8
    bits: int | None = None
    optimizer: str = "adamw"
    layers: int = -1

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def name(self) -> str:
        """Short, for the table: prompts x group, prompt + completion tokens, and what differs from the defaults."""
        parts = [f"{self.prompts}x{self.group} {self.prompt_tokens}+{self.tokens}", self.adapter]
        parts += [f"micro {self.micro}"] if self.micro else []
        parts += ["recomputed"] if self.recomputes else []
        parts += [f"beta {self.beta:g}"] if self.beta else []
        parts += [f"{self.bits} bits"] if self.bits else []
        parts += [self.optimizer] if self.optimizer != "adamw" else []
        parts += [f"last {self.layers} layers"] if self.layers > 0 else []
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


REPORTED: tuple[Case, ...] = (
    Case(BLANK, 4, 8, 160, 64),
    Case(BLANK, 4, 8, 32, 192),
    Case(BLANK, 2, 16, 96, 128, micro=8),
    Case(BLANK, 4, 4, 400, 24),
    Case(BLANK, 4, 8, 160, 64, recomputes=True),
    Case(BLANK, 4, 8, 160, 64, beta=0.04, micro=16),
    Case(BLANK, 4, 8, 160, 64, adapter="dora"),
    Case(BLANK, 2, 8, 96, 128, adapter="dora", micro=4, recomputes=True),
    Case(BLANK, 4, 8, 160, 64, adapter="full"),
    Case(BLANK, 2, 8, 48, 96, adapter="full", beta=0.04),
    Case(BLANK, 2, 8, 48, 96, adapter="full", micro=2, recomputes=True),
    Case(BLANK, 8, 4, 64, 300, micro=4),
    Case(SMOLLM2, 2, 4, 96, 32),
    Case(SMOLLM2, 1, 8, 48, 48, micro=4),
    Case(SMOLLM2, 2, 2, 160, 16, recomputes=True),
    Case(SMOLLM2, 2, 4, 64, 32, adapter="dora"),
    Case(SMOLLM2, 2, 2, 48, 32, adapter="full"),
    Case(SMOLLM2, 2, 4, 64, 40, beta=0.04, micro=4),
    Case(SMOLLM2, 1, 4, 64, 40, bits=4),
    Case("qwen2", 4, 8, 96, 96),
    Case("qwen2", 4, 8, 48, 160, adapter="dora", micro=8),
    Case("qwen2", 4, 4, 96, 64, adapter="full", beta=0.04),
    Case("qwen2", 2, 8, 200, 48, recomputes=True),
    Case("qwen3", 4, 8, 96, 96),
    Case("qwen3", 4, 8, 48, 160, adapter="dora", micro=8),
    Case("qwen3", 4, 4, 96, 64, adapter="full", beta=0.04),
    Case("qwen3", 2, 8, 200, 48, recomputes=True),
    Case("qwen3", 8, 8, 64, 64, micro=16, beta=0.04),
)

FITTING: tuple[Case, ...] = (
    Case("other", 3, 6, 120, 72),
    Case("other", 3, 6, 24, 136),
    Case("other", 2, 12, 80, 104, micro=6),
    Case("other", 5, 3, 300, 40),
    Case("other", 3, 6, 120, 72, recomputes=True),
    Case("other", 3, 6, 120, 72, beta=0.1, micro=9),
    Case("other", 3, 6, 120, 72, adapter="dora"),
    Case("other", 3, 6, 120, 72, adapter="dora", recomputes=True),
    Case("other", 3, 6, 120, 72, adapter="full"),
    Case("other", 3, 6, 120, 72, adapter="full", micro=3, beta=0.1),
    Case("other", 3, 6, 120, 72, adapter="full", recomputes=True),
    Case("other", 3, 6, 56, 280, micro=6),
    Case("llama", 3, 6, 72, 120),
    Case("llama", 3, 6, 72, 120, adapter="dora", micro=6),
    Case("llama", 3, 6, 72, 120, adapter="full"),
    Case("llama", 3, 6, 72, 120, recomputes=True),
    Case(SMOLLM2, 3, 3, 72, 24),
    Case(SMOLLM2, 1, 3, 56, 48),
    Case(SMOLLM2, 1, 3, 56, 40, adapter="full"),
    Case(SMOLLM2, 3, 3, 72, 24, adapter="dora", recomputes=True),
)
