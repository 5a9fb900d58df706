"""From groups to fixed-shape batches, and the weights that make splitting exact. Host arrays only (NumPy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.objective import Aggregate
from engine.worker import keys

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
_STRETCH = 1.5  # a batch holds no row that is longer than this times its shortest
_WIDTH = 8  # widths are rounded up to a multiple of this, so that steps reuse buffers and few shapes occur


@dataclass(frozen=True, slots=True)
class Row:
    """One completion to score or to train on."""

    index: int  # its place among the step's completions
    prompt: tuple[int, ...]  # [P]
    tokens: tuple[int, ...]  # [C], with the stop token
    group: int = 0
    sampler: tuple[float, ...] | None = None  # [C]
    advantage: float | tuple[float, ...] = 0.0  # of the completion, or [C] of its tokens
    weight: float = 0.0
    excluded: bool = False  # it has no reward, or is masked: it counts in N, but trains nothing
    mask: tuple[int, ...] | None = None  # [C] 1 where a token is a target; None: all are

    @property
    def targets(self) -> int:
        """Tokens that count."""
        return len(self.tokens) if self.mask is None else sum(self.mask)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one forward pass, right-padded. Prompts are kept apart, each once, so that they can be computed once.

    Where `mask` is 0 the other arrays hold zeros. Causal attention never looks right, so no padding mask is needed.
    """

    prompts: Ints  # [U, P]
    prompt_lengths: Ints  # [U]
    prompt_row: Ints  # [B] which of the prompts a completion belongs to
    completions: Ints  # [B, C]
    mask: Floats  # [B, C]
    advantage: Floats  # [B, C]
    weight: Floats  # [B]
    index: Ints  # [B] the row's place among the step's completions
    old: Floats | None = None  # [B, C]
    sampler: Floats | None = None  # [B, C]
    ref: Floats | None = None  # [B, C]

    def sequences(self) -> tuple[Ints, Ints]:
        """Prompt and completion of each row joined without a gap: token ids [B, T] and, for every completion token, the
        position whose hidden state predicts it, [B, C]."""
        rows, width = self.completions.shape
        tokens = np.zeros((rows, _round_up(int(self.prompts.shape[1]) + width)), dtype=np.int32)
        lengths = self.prompt_lengths[self.prompt_row]  # [B]
        for row, (prompt, length) in enumerate(zip(self.prompt_row, lengths, strict=True)):
            tokens[row, :length] = self.prompts[prompt, :length]
            tokens[row, length : length + width] = self.completions[row]
        return tokens, (lengths[:, None] - 1 + np.arange(width, dtype=np.int32)[None]).astype(np.int32)


def aggregation_weights(
    kind: Aggregate, lengths: Sequence[int], groups: Sequence[int], max_completion_tokens: int
) -> list[float]:
    """The weight of every token of each of the update's completions.

    `lengths` are completion tokens, `groups` the group of each completion; both cover the whole update, since N and K are per
    update. A completion without tokens adds nothing and still counts in N.
    """
    n, total = len(lengths), sum(lengths)
    if kind == "seq_mean":
        return [1 / (n * max(length, 1)) for length in lengths]
    if kind == "constant":
        return [1 / (n * max_completion_tokens)] * n
    if kind == "token_mean":
        return [1 / max(total, 1)] * n
    if kind == "seq_sum":
        return [1 / n] * n
    tokens: dict[int, int] = {}
    for group, length in zip(groups, lengths, strict=True):
        tokens[group] = tokens.get(group, 0) + length
    return [1 / (len(tokens) * max(tokens[group], 1)) for group in groups]


def minibatches(groups: int, parts: int, seed: int, step: int, number: int) -> list[list[int]]:
    """`parts` lists of whole groups, shuffled by (seed, step, pass): sizes differ by one at most."""
    order = range(groups) if parts == 1 else keys.generator(seed, step, number, "minibatch").permutation(groups)
    return [[int(i) for i in part] for part in np.array_split(np.asarray(order), parts)]


def pack(
    rows: Sequence[Row],
    micro_batch_rows: int,
    *,
    old: Sequence[Floats] | None = None,
    ref: Sequence[Floats] | None = None,
) -> list[Batch]:
    """Micro-batches of at most `micro_batch_rows` rows of like length; `old` and `ref` are looked up by a row's index.

    Rows are sorted by length, and a new batch begins where a row is more than half as long again as the batch's first: so no
    row is padded by more than half its length.
    """
    parts: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (_round_up(len(row.tokens)), len(row.prompt), row.index)):
        if not parts or len(parts[-1]) == micro_batch_rows or _width(row) > _STRETCH * _width(parts[-1][0]):
            parts.append([])
        parts[-1].append(row)
    return [_batch(part, old, ref) for part in parts]


def _width(row: Row) -> int:
    return len(row.prompt) + _round_up(len(row.tokens))


def _batch(rows: Sequence[Row], old: Sequence[Floats] | None, ref: Sequence[Floats] | None) -> Batch:
    prompts: dict[tuple[int, ...], int] = {}
    for row in rows:
        prompts.setdefault(row.prompt, len(prompts))
    shape = (len(rows), _round_up(max(len(row.tokens) for row in rows)))

    def padded(values: Sequence[Any]) -> Floats:
        out = np.zeros(shape, dtype=np.float32)
        for i, value in enumerate(values):
            out[i, : len(value)] = value
        return out

    completions = np.zeros(shape, dtype=np.int32)
    prompt_ids = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int32)
    for prompt, place in prompts.items():
        prompt_ids[place, : len(prompt)] = prompt
    for i, row in enumerate(rows):
        completions[i, : len(row.tokens)] = row.tokens
    samplers = [row.sampler for row in rows if row.sampler is not None]
    return Batch(
        prompts=prompt_ids,
        prompt_lengths=np.array([len(prompt) for prompt in prompts], dtype=np.int32),
        prompt_row=np.array([prompts[row.prompt] for row in rows], dtype=np.int32),
        completions=completions,
        mask=padded([np.ones(len(row.tokens)) if row.mask is None else row.mask for row in rows]),
        advantage=padded([np.broadcast_to(np.array(row.advantage, dtype=np.float32), len(row.tokens)) for row in rows]),
        weight=np.array([row.weight for row in rows], dtype=np.float32),
        index=np.array([row.index for row in rows], dtype=np.int32),
        old=None if old is None else padded([old[row.index] for row in rows]),
        sampler=padded(samplers) if len(samplers) == len(rows) else None,
        ref=None if ref is None else padded([ref[row.index] for row in rows]),
    )


def _round_up(value: int) -> int:
    return -(-value // _WIDTH) * _WIDTH
