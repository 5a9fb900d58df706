"""Rollouts: one batch over all prompts x group of a step, each prompt prefilled once, in a loop of our own.

The cache objects are mlx_lm's, used the one way that is right for every family: prefill each prompt alone, merge, decode
the rows together, filter those that stopped. What is left out, and why: mlx_lm's BatchGenerator (it reports log-probabilities
of temperature 1 in the model's own precision), top-p and top-k (the scored policy would not be the sampled one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from engine.types import Prompt, Rollout
from engine.worker import keys
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
    logits, cache = _prefill(policy, prompts, group_size)  # [B, V]
    rows = [(prompt, member) for prompt in prompts for member in range(group_size)]
    first = [keys.key32(seed, step, purpose, *name) for name in _names(prompts) for _ in range(group_size)]
    base = mx.array([[key, member << 16] for key, (_, member) in zip(first, rows, strict=True)], dtype=mx.uint32)  # [B, 2]
    taken: list[list[int]] = [[] for _ in rows]
    scored: list[list[float]] = [[] for _ in rows]
    running = list(range(len(rows)))  # the row that each place of the batch holds
    done = [False] * len(rows)
    for position in range(max_tokens):
        token, logprob = _draw(logits, base + mx.array([0, position], dtype=mx.uint32), temperature, greedy)
        if position + 1 < max_tokens:
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
    made = [_rollout(policy, ids, values) for ids, values in zip(taken, scored, strict=True)]
    return [made[start : start + group_size] for start in range(0, len(made), group_size)]


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


def _prefill(policy: Policy, prompts: Sequence[Prompt], group_size: int) -> tuple[mx.array, list[Any]]:
    """Logits after each prompt's last token, one row for each of its completions [B, V], and the merged caches."""
    ends, caches = [], []
    for prompt in prompts:
        cache = make_prompt_cache(policy.model)
        ends.append(policy.head(policy.hidden(mx.array([prompt.token_ids]), cache=cache)[:, -1:])[:, -1])  # [1, V]
        caches.append(cache)
    merged = [type(parts[0]).merge(list(parts)) for parts in zip(*caches, strict=True)]
    each = mx.repeat(mx.arange(len(prompts)), group_size)  # [B]
    for part in merged:
        part.filter(each)
    return mx.concatenate(ends, axis=0)[each], merged


def _rollout(policy: Policy, ids: list[int], logprobs: list[float]) -> Rollout:
    finish = "stop" if ids[-1] in policy.stop_ids else "length"
    return Rollout(tuple(ids), tuple(logprobs), "stop" if finish == "stop" else "length", policy.decode(ids))
