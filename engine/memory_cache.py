"""Keys and values while a rollout decodes: of one prompt held once for its completions, or a copy of it for each.

Bytes, where nothing else is said. engine/worker/shared_prompts.py and mlx_lm's own batch caches are what is described here.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.memory_batches import round_up
from engine.model_files import ModelShape

CACHE_STEP = 256  # tokens by which mlx_lm's KV caches grow
SHARED_STEP = 64  # tokens by which the rows' own part grows where they share a prompt


@dataclass(frozen=True, slots=True)
class KeyCache:
    """Of one model (`item` bytes a number), prompts of `length` tokens and `new` cached tokens behind them."""

    shape: ModelShape
    item: int
    length: int
    new: int
    shares: bool  # layers without a window hold a prompt once for its rows

    @property
    def token_bytes(self) -> int:
        """Of one token in one layer."""
        return 2 * self.shape.kv_heads * self.shape.head_dim * self.item

    def plain(self, rows: int, tokens: int) -> int:
        """Of `rows` times `tokens` tokens in all layers, nothing shared; a sliding layer keeps its window only."""
        return rows * (self._wide(tokens) + self._sliding(tokens))

    def peak(self, prompts: int, group: int, together: int) -> int:
        """The larger of two moments, with `together` rows decoded at once. Once prompts are read: their own caches in whole
        steps, these merged, and what each completion has of them. At the end: whole steps for the completions, one layer twice
        while it grows."""
        waits = together < prompts * group
        read = min(prompts, -(-together // group) + (1 if waits else 0))
        own, merged = self.plain(read, round_up(self.length, CACHE_STEP)), self.plain(read, self.length)
        if not self.shares:
            grown = self.plain(together, self.length + round_up(self.new, CACHE_STEP))
            return max(own + merged + self.plain(together, self.length), grown + grown // self.shape.layers)
        # rows that begin later bring their prompt along, be it there already
        held = self._wide(self.length) * min(together, 2 * read if waits else read)
        windows = together * self._sliding(self.length + round_up(self.new, CACHE_STEP))
        grown = together * self._wide(round_up(self.new, SHARED_STEP))
        return max(own + merged + together * self._sliding(self.length), held + windows + grown + grown // self.shape.layers)

    def _wide(self, tokens: int) -> int:
        return self.token_bytes * (self.shape.layers - self._windows) * tokens

    def _sliding(self, tokens: int) -> int:
        return self.token_bytes * self._windows * min(tokens, self.shape.window or tokens)

    @property
    def _windows(self) -> int:
        return self.shape.sliding_layers if self.shape.window else 0
