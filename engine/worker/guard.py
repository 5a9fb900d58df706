"""The memory guard: how many rows go through the model at once, lowered before a pass would need more than the run may use.

The plan (engine/memory.py) says how many rows fit; here what a pass really takes is measured, and the next one is held against
it: first by the plan's figure, from the first update on by the largest that was measured. Fewer rows at once are the same sum
in more parts. What is left out: a rollout is not measured; where mlx refuses an allocation, it is drawn again in fewer places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx

from engine.figures import counted, size
from engine.worker.batching import Batch
from engine.worker.task import Warn

T = TypeVar("T")
_AVOID = "the results are the same; a smaller optim.micro_batch_rows or max_completion_tokens avoids it"
_OUT_OF_MEMORY = ("malloc", "out of memory", "allocat")  # in mlx's messages: Metal, CUDA


@dataclass(slots=True)
class MemoryGuard:
    """Rows at once, for the updates and for the rollouts; checkpoints hold both, since other sums have other last bits."""

    micro_batch_rows: int
    decode_rows: int | None = None  # None: all rows of a rollout
    limit_bytes: int | None = None  # None: nothing is held against anything
    planned_bytes: float = 0.0  # of an update for each token that it computes, before anything is measured; 0: unknown
    warn: Warn | None = None
    has_told: bool = False  # that even one row at once takes more than the limit: it is said once
    measured_bytes: float = 0.0  # the most that a micro-batch took for each of its tokens
    peak_bytes: int = 0  # since `begin`, beside what mlx's own counter says since it was last set back

    def begin(self) -> None:
        """A step begins: its peak is counted from here."""
        mx.reset_peak_memory()
        self.peak_bytes = 0

    def peak(self) -> int:
        """Bytes, the most since `begin`."""
        return max(self.peak_bytes, mx.get_peak_memory())

    def update(self, batches: Callable[[], list[Batch]], run: Callable[[list[Batch]], T]) -> tuple[list[Batch], T]:
        """`run(batches())` with as many rows at once as fit, and the batches that were run. `run` must change no weights unless
        it gets to its end."""
        while True:
            made = batches()
            tokens = max((tokens_of(batch) for batch in made), default=0)
            rows = max((len(batch.index) for batch in made), default=0)
            need = mx.get_active_memory() + tokens * (self.measured_bytes or self.planned_bytes)
            if self.limit_bytes is not None and need > self.limit_bytes:
                if rows > 1:
                    self._shrink(rows, f"the next would take {size(need)}")
                    continue
                if rows and not self.has_told:
                    self.has_told = True
                    remedy = "`droid-tune estimate CONFIG` says what makes it fit"
                    self._tell("even a micro-batch of 1 row goes beyond the limit", f"it takes {size(need)}", remedy)
            self.peak_bytes = self.peak()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            try:
                found = run(made)
            except RuntimeError as error:
                if rows <= 1 or not is_out_of_memory(error):
                    raise
                mx.clear_cache()
                self._shrink(rows, f"mlx: {error}")
                continue
            if tokens:
                self.measured_bytes = max(self.measured_bytes, (mx.get_peak_memory() - before) / tokens)
            return made, found

    def sampled(self, rows: int, run: Callable[[int], T]) -> T:
        """`run(rows at once)` for a rollout of `rows` rows, in fewer places where mlx cannot allocate what it takes."""
        while True:
            places = min(rows, self.decode_rows or rows)
            try:
                return run(places)
            except RuntimeError as error:
                if places <= 1 or not is_out_of_memory(error):
                    raise
                mx.clear_cache()
                self.decode_rows = places // 2
                self._tell(f"rollouts decode {counted(self.decode_rows, 'row')} at once, not {places}", f"mlx: {error}")

    def _shrink(self, rows: int, why: str) -> None:
        self.micro_batch_rows = min(self.micro_batch_rows, rows) // 2 or 1
        self._tell(f"micro-batches have {counted(self.micro_batch_rows, 'row')} now, not {rows}", why)

    def _tell(self, what: str, why: str, remedy: str = _AVOID) -> None:
        if self.warn is not None:
            limit = "" if self.limit_bytes is None else f" of {size(self.limit_bytes)}"
            self.warn(
                "memory", f"{what}: {why}{limit}", remedy, micro_batch_rows=self.micro_batch_rows, decode_rows=self.decode_rows
            )


def tokens_of(batch: Batch) -> int:
    """Positions that a micro-batch computes, at least: its completions, and each prompt once."""
    return int(batch.completions.size + batch.prompts.size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether mlx could not allocate; on a CPU the system ends the process instead."""
    return any(word in str(error).lower() for word in _OUT_OF_MEMORY)
