"""Rollouts: one batch over all prompts x group of a step, each prompt prefilled once, in a loop of our own.

The cache objects are mlx_lm's: prefill each prompt alone, merge, decode the rows together, filter those that stopped; or, where
decoding.py found that the family cannot, one row after the other. What is left out, and why: mlx_lm's BatchGenerator (it reports
log-probabilities of temperature 1 in the model's own precision), top-p and top-k (the scored policy would be another one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from engine.types import Prompt, Rollout
from engine.worker import keys
from engine.worker.decoding import merged
from engine.worker.model import Policy
from engine.worker.trees import floats

_SHRINK = 0.75  # finished rows are dropped from the batch when no more than this share is still running: a drop copies the cache


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    group_size: int,
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    step: int,
    purpose: str = "sample",
    greedy: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> list[list[Rollout]]:
    """`group_size` rollouts of each prompt, [prompts][group_size].

    Every draw has a key of its own, made of (seed, step, purpose, prompt id, its repetition, member, position); log-probabilities
    are those of softmax(logits / temperature) in float32. `alive` is called once per decoded position.
    """
    names = [(*name, member) for name in _names(prompts) for member in range(group_size)]
    starts = [(keys.key32(seed, step, purpose, *name[:2]), name[2] << 16) for name in names]  # [B] (key of the prompt, member)
    ask = _Ask(max_tokens, temperature, greedy)
    if policy.decoding.mode == "alone":
        made = [
            rollout
            for place, start in enumerate(starts)
            for rollout in _decode(policy, *_prefill(policy, prompts[place // group_size]), [start], ask, alive)
        ]
    else:
        made = _decode(policy, *_prefill_together(policy, prompts, group_size), starts, ask, alive)
    return [made[start : start + group_size] for start in range(0, len(made), group_size)]


@dataclass(frozen=True, slots=True)
class _Ask:
    """How rows go on."""

    max_tokens: int
    temperature: float
    greedy: bool


def _decode(
    policy: Policy,
    logits: mx.array,
    cache: list[Any],
    starts: Sequence[tuple[int, int]],
    ask: _Ask,
    alive: Callable[[], None],
) -> list[Rollout]:
    """The rows' rollouts, from the logits after their prompts [B, V] and the caches that hold these."""
    base = mx.array(list(starts), dtype=mx.uint32)  # [B, 2]
    taken: list[list[int]] = [[] for _ in starts]
    scored: list[list[float]] = [[] for _ in starts]
    running = list(range(len(starts)))  # the row that each place of the batch holds
    done = [False] * len(starts)
    for position in range(ask.max_tokens):
        token, logprob = _draw(logits, base + mx.array([0, position], dtype=mx.uint32), ask.temperature, ask.greedy)
        if position + 1 < ask.max_tokens:
            logits = policy.model(token[:, None], cache=cache)[:, -1]
            mx.async_eval(token, logprob, logits)
        for place, (one, value) in enumerate(zip(floats(token), floats(logprob), strict=True)):
            row = running[place]
            if not done[row]:
                taken[row].append(int(one))
                scored[row].append(value)
                done[row] = one in policy.stop_ids
        alive()
        left = [place for place, row in enumerate(running) if not done[row]]
        if not left:
            break
        if len(left) <= _SHRINK * len(running):
            keep = mx.array(left)
            for part in cache:
                part.filter(keep)
            logits, base = logits[keep], base[keep]
            running = [running[place] for place in left]
    return [_rollout(policy, ids, values) for ids, values in zip(taken, scored, strict=True)]


def _names(prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
    """(id, how often it stood before) of each prompt: a small data set may fill one step with the same prompt twice."""
    seen: Counter[int] = Counter()
    names = []
    for prompt in prompts:
        names.append((prompt.id, seen[prompt.id]))
        seen[prompt.id] += 1
    return names


def _draw(logits: mx.array, row_keys: mx.array, temperature: float, greedy: bool) -> tuple[mx.array, mx.array]:
    """One token for each row and its log-probability: [B, V], [B, 2] -> [B], [B]."""
    logits = logits.astype(mx.float32) * (1 / temperature)
    token = mx.argmax(logits, axis=-1) if greedy else mx.vmap(_categorical)(logits, row_keys)
    return token, mx.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)


def _categorical(logits: mx.array, key: mx.array) -> mx.array:
    return mx.random.categorical(logits, key=key)


def _prefill(policy: Policy, prompt: Prompt) -> tuple[mx.array, list[Any]]:
    """Logits after the prompt's last token [1, V], and the caches that hold it."""
    cache = make_prompt_cache(policy.model)
    return policy.head(policy.hidden(mx.array([prompt.token_ids]), cache=cache)[:, -1:])[:, -1], cache


def _prefill_together(policy: Policy, prompts: Sequence[Prompt], group_size: int) -> tuple[mx.array, list[Any]]:
    """The same, one row for each of a prompt's completions: [B, V] and the merged caches."""
    ends, caches = zip(*(_prefill(policy, prompt) for prompt in prompts), strict=True)
    together = merged(caches, policy.decoding.mode)
    each = mx.repeat(mx.arange(len(prompts)), group_size)  # [B]
    for part in together:
        part.filter(each)
    return mx.concatenate(ends, axis=0)[each], together


def _rollout(policy: Policy, ids: list[int], logprobs: list[float]) -> Rollout:
    finish = "stop" if ids[-1] in policy.stop_ids else "length"
    return Rollout(tuple(ids), tuple(logprobs), "stop" if finish == "stop" else "length", policy.decode(ids))
