"""Prompts that are held once for their completions while these decode: the same function, in less memory."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache

from engine.worker import shared_prompts
from engine.worker.model import Policy
from engine.worker.sampler import sample
from engine.worker.shared_prompts import SharedPrompts

from .rows import nudge, prompts_of

HEADS, WIDTH = 2, 8


def random(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def prompt_cache(tokens: int, seed: int) -> KVCache:
    cache = KVCache()
    cache.update_and_fetch(random(1, HEADS, tokens, WIDTH, seed=seed), random(1, HEADS, tokens, WIDTH, seed=seed + 100))
    return cache


class Rows:
    """The keys and values that each row should see, kept one row at a time."""

    def __init__(self, caches: list[KVCache]) -> None:
        self.seen = [(part.keys[..., : part.offset, :], part.values[..., : part.offset, :]) for part in caches]

    def chosen(self, rows: list[int]) -> None:
        self.seen = [self.seen[row] for row in rows]

    def step(self, keys: mx.array, values: mx.array) -> None:
        self.seen = [
            (mx.concatenate([k, keys[row : row + 1]], axis=2), mx.concatenate([v, values[row : row + 1]], axis=2))
            for row, (k, v) in enumerate(self.seen)
        ]

    def attend(self, queries: mx.array, sinks: mx.array | None) -> mx.array:
        each = [
            mx.fast.scaled_dot_product_attention(queries[row : row + 1], k, v, scale=0.3, sinks=sinks)
            for row, (k, v) in enumerate(self.seen)
        ]
        return mx.concatenate(each)


@pytest.mark.parametrize("group", [1, 3], ids=["every head its keys", "three query heads of each"])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["", "sinks"])
def test_attention_is_that_of_each_row_by_itself(group: int, with_sinks: bool) -> None:
    """Unequal prompts and groups; rows leave, in and out of order, and others begin late, with prompts of their own."""
    caches = [prompt_cache(tokens, seed) for seed, tokens in enumerate((5, 9, 7))]
    shared, plain = SharedPrompts.merge(caches), Rows(caches)
    sinks = random(HEADS * group, seed=9) if with_sinks else None
    number = iter(range(10, 1000))

    def choose(rows: list[int]) -> None:
        shared.filter(mx.array(rows))
        plain.chosen(rows)

    def step() -> None:
        rows = len(plain.seen)
        keys, values, queries = (random(rows, heads, 1, WIDTH, seed=next(number)) for heads in (HEADS, HEADS, HEADS * group))
        assert shared.offset.tolist() == [k.shape[2] for k, _ in plain.seen]  # where each new token stands
        own = shared.update_and_fetch(keys, values)
        plain.step(keys, values)
        found = shared.attend(queries, *own, 0.3, sinks)
        np.testing.assert_allclose(np.array(found), np.array(plain.attend(queries, sinks)), atol=1e-5)

    choose([0, 0, 0, 1, 1, 1, 2, 2, 2])
    for _ in range(shared_prompts.SHARED_STEP + 2):  # past the first room
        step()
    choose([1, 3, 4, 8])  # ragged
    step()
    late = [prompt_cache(11, seed=50), prompt_cache(2, seed=51)]
    more = SharedPrompts.merge(late)
    more.filter(mx.array([0, 1, 1]))
    shared.extend(more)
    plain.seen += [Rows(late).seen[row] for row in (0, 1, 1)]
    step()
    choose([6, 4, 2])  # out of order; the second prompt goes on with one row, the first with none
    step()
    choose([0, 1])  # those that began late only: what was before them is let go
    assert shared.taken == 2 and len(shared.lengths) == 2
    step()


def test_a_batch_that_is_not_one_token_of_each_row_is_refused() -> None:
    shared = SharedPrompts.merge([prompt_cache(4, 0)])
    two = random(1, HEADS, 2, WIDTH, seed=1)
    with pytest.raises(ValueError, match="one token at a time"):
        shared.update_and_fetch(two, two)
    with pytest.raises(ValueError, match="without a window"):
        shared.make_mask(1, window_size=4)
    with pytest.raises(ValueError, match="a layer without keys"):
        SharedPrompts.merge([KVCache()])


def test_models_get_their_own_attention_back(make_policy: Callable[..., Policy]) -> None:
    from mlx_lm.models import llama

    policy = make_policy()
    with pytest.raises(KeyError), shared_prompts.attention(policy.model):
        assert llama.scaled_dot_product_attention is not base.scaled_dot_product_attention
        raise KeyError
    assert llama.scaled_dot_product_attention is base.scaled_dot_product_attention


@pytest.mark.parametrize("places", [None, 5], ids=["all at once", "rows wait"])
def test_completions_are_the_same_with_and_without_and_the_keys_take_less(
    make_policy: Callable[..., Policy], places: int | None
) -> None:
    """8 rows of each of 3 prompts. Keys and values of a prompt are held once instead of 8 times, so the peak of all rows is less
    than half; tokens are the same, log-probabilities to 1e-5."""
    policy = make_policy()
    nudge(policy, 0.02)
    policy.stop_ids = frozenset(range(0, 256, 11)) | policy.stop_ids
    prompts = prompts_of(policy, "What is 2+3?" * 20, "and" * 60, "Say it.")
    ask = {"max_tokens": 70, "temperature": 0.9, "seed": 3, "step": 1, "rows_at_once": places}
    found, peaks = {}, {}
    for shares in (True, False):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        found[shares] = [rollout for group in sample(policy, prompts, 8, **ask, share_prompts=shares) for rollout in group]
        peaks[shares] = mx.get_peak_memory() - before
    assert len({len(rollout.token_ids) for rollout in found[True]}) > 3  # rows left at many moments
    for one, other in zip(found[True], found[False], strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert peaks[True] < (0.5 if places is None else 1.0) * peaks[False]
