"""The draw of a token: its distribution, its log-probability, and the edges of both."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.worker.blocks import block_size, total
from engine.worker.draw import _chosen, draw


def keys(rows: int, first: int = 0) -> mx.array:
    return mx.array([(first, row) for row in range(rows)], dtype=mx.uint32)


@pytest.mark.parametrize("vocabulary", [5, 300, 1024, 1031], ids=["one block", "no more than a block", "two blocks", "prime"])
def test_tokens_come_as_often_as_the_softmax_says(vocabulary: int) -> None:
    """Chi-square over 60,000 draws: mean V - 1, deviation sqrt(2 (V - 1)); 5 deviations are allowed (one in millions)."""
    logits = mx.random.normal((1, vocabulary), key=mx.random.key(1)) * 1.5
    rows, temperature = 20_000, 1.3
    counts = np.zeros(vocabulary)
    for first in range(3):
        token, _ = draw(mx.broadcast_to(logits, (rows, vocabulary)), keys(rows, first), temperature, False)
        counts += np.bincount(np.array(token), minlength=vocabulary)
    weights = np.exp(np.array(logits)[0].astype(np.float64) / temperature)
    expected = weights / weights.sum() * counts.sum()
    many = expected > 2  # chi-square wants some of each; the others go together
    observed = np.append(counts[many], counts[~many].sum())
    wanted = np.append(expected[many], expected[~many].sum())
    wanted, observed = wanted[wanted > 0], observed[wanted > 0]
    chi, free = ((observed - wanted) ** 2 / wanted).sum(), len(wanted) - 1
    assert abs(chi - free) < 5 * np.sqrt(2 * free)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("vocabulary", [272, 50_257, 151_936])
def test_the_log_probability_is_exact_in_vocabularies_of_any_size(vocabulary: int, greedy: bool) -> None:
    logits = mx.random.normal((4, vocabulary), key=mx.random.key(2)) * 3
    token, logprob = draw(logits, keys(4), 0.7, greedy)
    exact = np.array(logits).astype(np.float64) / 0.7
    exact -= exact.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.array(logprob), exact[np.arange(4), np.array(token)], atol=5e-6)
    if greedy:
        assert np.array(token).tolist() == exact.argmax(axis=1).tolist()


def test_rare_tokens_keep_their_share() -> None:
    """65,536 tokens have 1e-8 each beside one that has the rest: 1e-8 is less than float32's last bit of a running sum near 1, so
    one stage would give the tail nothing or much more than its due. Of 262,144 draws 172 are of the tail, give or take 13."""
    draws, block = 1 << 18, 512
    weights = mx.concatenate([mx.zeros((1, block)).at[0, 7].add(1.0), mx.full((1, 1 << 16), 1e-8)], axis=1)
    sums = mx.broadcast_to(weights.reshape(1, -1, block).sum(axis=-1), (draws, 129))
    chosen, _ = _chosen(sums, mx.random.uniform(shape=(draws, 1), key=mx.random.key(3)))
    assert 172 - 65 < int((chosen > 0).sum().item()) < 172 + 65


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Whatever the uniform number, its ends included."""
    weights = mx.array([[0.0, 0.0, 1.0, 0.0, 3.0, 0.0, 0.0]] * 4)
    uniform = mx.array([[0.0], [0.25], [1 - 2**-24], [1.0]])
    chosen, whole = _chosen(weights, uniform)
    assert np.array(chosen)[:, 0].tolist() == [2, 4, 4, 4] and np.array(whole)[0, 0] == 4.0
    logits = mx.where(mx.arange(2000) % 7 == 3, 0.0, -mx.inf)
    token, logprob = draw(mx.broadcast_to(logits, (500, 2000)), keys(500), 1.0, False)
    assert set((np.array(token) % 7).tolist()) == {3}
    np.testing.assert_allclose(np.array(logprob), -np.log(286), atol=1e-5)  # 286 of 2,000 have the remainder 3


def test_a_draw_is_its_keys_own() -> None:
    """Other rows, and their number, do not change it."""
    logits = mx.random.normal((6, 700), key=mx.random.key(4))
    together = np.array(draw(logits, keys(6), 1.0, False)[0])
    alone = [int(draw(logits[row : row + 1], keys(6)[row : row + 1], 1.0, False)[0].item()) for row in range(6)]
    assert together.tolist() == alone
    assert np.array(draw(logits, keys(6, first=1), 1.0, False)[0]).tolist() != alone


@pytest.mark.parametrize("size", [3, 512, 1031, 32_000, 49_152, 128_256, 151_936, 262_144])
def test_sums_over_blocks_are_those_of_the_row(size: int) -> None:
    assert size % block_size(size) == 0 or size in (1031,)
    weights = mx.random.uniform(shape=(3, size), key=mx.random.key(5))
    np.testing.assert_allclose(np.array(total(weights))[:, 0], np.array(weights).astype(np.float64).sum(axis=1), rtol=1e-6)
