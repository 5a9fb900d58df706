"""From groups to fixed-shape batches, and the weights that make splitting exact. Host arrays only (NumPy)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.objective import Aggregate
from engine.worker import keys

# which prompts may share a batch and be computed once each: see prefix.py
Sharing = Literal["any", "equal", "none"]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
_BATCH_TOKENS = 64  # what one batch more costs beside its tokens: about what the layers' fixed work takes on a small model
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
    token_weights: tuple[float, ...] = ()  # [C] of each token beside `weight`; (): all weigh 1

    @property
    def targets(self) -> int:
        """Tokens that count."""
        return len(self.tokens) if self.mask is None else sum(self.mask)

    @property
    def mass(self) -> float:
        """The sum of the weights of the tokens that count: their number, where all weigh 1."""
        if not self.token_weights:
            return self.targets
        mask = self.mask or (1,) * len(self.tokens)
        return math.fsum(weight for weight, counts in zip(self.token_weights, mask, strict=True) if counts)


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
    token_weight: Floats | None = None  # [B, C] of each token beside its row's; None: all weigh 1

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
    kind: Aggregate, lengths: Sequence[float], groups: Sequence[int], max_completion_tokens: int
) -> list[float]:
    """The weight of every token of each of the update's completions.

    `lengths` are completion tokens (their `mass` where tokens weigh differently), `groups` the group of each completion; both
    cover the whole update, since N and K are per update. A completion without tokens adds nothing and still counts in N.
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
    tokens: dict[int, float] = {}
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
    sharing: Sharing = "none",
    old: Sequence[Floats] | None = None,
    ref: Sequence[Floats] | None = None,
) -> list[Batch]:
    """Micro-batches of at most `micro_batch_rows` rows that cost the fewest tokens; `old` and `ref` go by a row's index.

    A batch costs its rows x its widest completion, and its prompts: once each where they are shared, else once for each row; and
    as much as _BATCH_TOKENS tokens for being a batch. The cheapest of all ways to cut two orders of the rows into batches is
    taken: by length, which pads least, and prompt by prompt, which shares most.
    """
    by_length = sorted(rows, key=lambda row: (_round_up(len(row.tokens)), len(row.prompt), row.index))
    orders = [by_length]
    if sharing != "none":
        longest: dict[tuple[int, ...], int] = {}
        for row in rows:
            longest[row.prompt] = max(longest.get(row.prompt, 0), _round_up(len(row.tokens)))
        orders.append(sorted(by_length, key=lambda row: (longest[row.prompt], len(row.prompt), row.prompt)))
    _, parts = min((_cheapest(order, micro_batch_rows, sharing) for order in orders), key=lambda found: found[0])
    return [_batch(part, old, ref) for part in parts]


def _cheapest(rows: Sequence[Row], most: int, sharing: Sharing) -> tuple[int, list[Sequence[Row]]]:
    """The fewest tokens that the rows can cost in this order, and the batches that cost so many."""
    best, cut = [0], [0]
    for end in range(1, len(rows) + 1):
        prompts: dict[tuple[int, ...], None] = {}
        width = length = 0
        is_even, found = True, (0, 0)
        for start in range(end - 1, max(-1, end - most - 1), -1):
            row = rows[start]
            prompts[row.prompt] = None
            is_even = is_even and (not length or length == len(row.prompt))
            width, length = max(width, _round_up(len(row.tokens))), max(length, len(row.prompt))
            count = end - start
            shared = sharing == "any" or (sharing == "equal" and is_even)
            cost = best[start] + _BATCH_TOKENS + count * width + length * (len(prompts) if shared else count)
            if start == end - 1 or cost < found[0]:
                found = (cost, start)
        best.append(found[0])
        cut.append(found[1])
    parts: list[Sequence[Row]] = []
    end = len(rows)
    while end:
        parts.insert(0, rows[cut[end] : end])
        end = cut[end]
    return best[-1], parts


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
    weighted = any(row.token_weights for row in rows)
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
        token_weight=padded([row.token_weights or np.ones(len(row.tokens)) for row in rows]) if weighted else None,
    )


def _round_up(value: int) -> int:
    return -(-value // _WIDTH) * _WIDTH
