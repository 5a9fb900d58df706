"""Which rows make a loss or a gradient that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from engine.worker.batching import Batch

_PROMPT_FIELDS = ("prompts", "prompt_lengths", "prompt_row")


def one_row(batch: Batch, place: int) -> Batch:
    """The batch of row `place` alone, as wide as it was; its loss is that row's addend."""
    prompt = int(batch.prompt_row[place])
    arrays = {field.name: getattr(batch, field.name) for field in fields(Batch) if field.name not in _PROMPT_FIELDS}
    alone: dict[str, Any] = {name: None if values is None else values[place : place + 1] for name, values in arrays.items()}
    return Batch(
        prompts=batch.prompts[prompt : prompt + 1],
        prompt_lengths=batch.prompt_lengths[prompt : prompt + 1],
        prompt_row=batch.prompt_row[place : place + 1] * 0,
        **alone,
    )


def rows_to_blame(batches: Sequence[Batch], is_finite: Callable[[int, Batch], bool]) -> list[int]:
    """Indices (among the step's completions) of the rows that are not finite by themselves, in order.

    `is_finite(number, batch)` computes loss and gradient of a part of micro-batch `number`. Micro-batches are tried first, then
    single rows of those that fail. Where only a sum is not finite, all of its rows are named: of the failing micro-batches, or
    of the whole update.
    """
    failing = [(number, batch) for number, batch in enumerate(batches) if not is_finite(number, batch)]
    found = [
        int(batch.index[place])
        for number, batch in failing
        for place in range(len(batch.index))
        if not is_finite(number, one_row(batch, place))
    ]
    suspects = [batch for _, batch in failing] or batches
    return sorted(found or [int(index) for batch in suspects for index in batch.index])
