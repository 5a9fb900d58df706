"""Log-probabilities and entropies in chunks: against plain forwards, against loops in float64, and what memory they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import _get_classes, load_tokenizer

from engine import share
from engine.chunking import CHUNK_BYTES, LEAST, STEP, chunk_positions, padded_positions, whole_positions
from engine.config import AdapterConfig
from engine.worker import logprobs
from engine.worker.batching import Batch, Row, pack
from engine.worker.heads import read_by_head
from engine.worker.logprobs import (
    chosen_logprobs,
    completion_logprobs,
    completion_logprobs_and_entropy,
    score_with_entropy,
)
from engine.worker.model import Policy, apply_adapter, load_policy
from engine.worker.trees import flat, scalar

from .agreement import LIMIT, apart
from .rows import nudge, plain

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
# Every kind of head: parted and not, tied and not, scaled, soft-capped, quantised, adapted; trained and not.
HEADS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"kind": "dora"},
    "full, tied": {"kind": "full"},
    "full, untied": {"kind": "full", "tie_word_embeddings": False},
    "full, unparted": {"kind": "full", "splits": False},
    "lora, unparted": {"splits": False},
    "lora on the head": {"keys": ["self_attn.q_proj", "lm_head"], "tie_word_embeddings": False},
    "dora on the head": {"kind": "dora", "keys": ["self_attn.q_proj", "lm_head"], "tie_word_embeddings": False},
    "lora on the tied embedding": {"keys": ["self_attn.q_proj", "model.embed_tokens"]},
    "lora, quantised": {"bits": 4, "tie_word_embeddings": False},
    "full, soft-capped": {"kind": "full", "model_type": "gemma2", "final_logit_softcapping": 3.0, "head_dim": 16},
    "lora, scaled": {"model_type": "cohere", "logit_scale": 0.3},
}


def policy_of(kind: str = "lora", bits: int | None = None, splits: bool | None = None, **sizes: Any) -> Policy:
    """A small random model whose trained weights are moved, so that an adapter does something."""
    adapter = AdapterConfig.model_validate(
        {"type": kind, "rank": 4, "scale": 4.0, **{key: sizes.pop(key) for key in ("keys", "dropout") if key in sizes}}
    )
    family = {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    config = {**family, "vocab_size": 272, **SIZES, **sizes}
    model_class, arguments = _get_classes(config)
    mx.random.seed(1)
    model = model_class(arguments.from_dict(config))
    if bits:
        nn.quantize(model, 32, bits)
    apply_adapter(model, adapter, 0, "a random model")
    model.eval()
    policy = Policy(model, load_tokenizer(share.demo_model()), adapter, Path("a random model"))
    nudge(policy)
    assert policy.splits
    policy.splits = policy.splits if splits is None else splits
    return policy


def rows_of(count: int = 5, longest: int = 14, vocabulary: int = 272) -> list[Row]:
    """Rows of unlike lengths; every second one shares its prompt with the one before it."""
    random = np.random.default_rng(0)

    def ids(number: int) -> tuple[int, ...]:
        return tuple(int(i) for i in random.integers(1, vocabulary, number))

    prompts = [ids(3 + number) for number in range(count)]
    return [Row(n, prompts[n // 2], ids(int(random.integers(-(-longest // 2), longest + 1)))) for n in range(count)]


def batch_of(rows: Sequence[Row]) -> Batch:
    """Rows of like length in one batch."""
    (batch,) = pack(rows, len(rows))
    return batch


def in_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Chunks of `size` positions, however few there are in all."""
    monkeypatch.setattr(logprobs, "chunk_positions", lambda vocabulary: size)
    monkeypatch.setattr(logprobs, "whole_positions", lambda vocabulary, trained_bytes=0: size)


def naive(policy: Policy, batch: Batch, temperature: float) -> tuple[mx.array, mx.array]:
    """The whole model on all positions, log softmax and entropy as the formulas stand, both masked; differentiable by mlx."""
    tokens, positions = batch.sequences()
    logits = policy.model(mx.array(tokens)).astype(mx.float32) / temperature
    logits = mx.take_along_axis(logits, mx.array(positions)[..., None], axis=1)  # [B, C, V]
    logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logp, mx.array(batch.completions)[..., None], axis=-1)[..., 0]
    mask = mx.array(batch.mask)
    return chosen * mask, -(mx.exp(logp) * logp).sum(axis=-1) * mask


def gradient(policy: Policy, loss: Callable[[], mx.array]) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in flat(nn.value_and_grad(policy.model, loss)()[1]).items()}


def weighted(batch: Batch, *columns: mx.array) -> mx.array:
    """A loss in which every position has a weight of its own, log-probabilities and entropies others."""
    random = np.random.default_rng(1)
    weights = [mx.array(random.standard_normal(batch.mask.shape).astype(np.float32)) for _ in columns]
    return sum((weight * column for weight, column in zip(weights, columns, strict=True)), mx.zeros(())).sum() / 8


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    assert max(np.abs(value).max() for value in expected.values()) > 1e-3
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


# Values.


@pytest.mark.parametrize("size", [1, 7, 32, 10_000])
@pytest.mark.parametrize("head", HEADS)
def test_chunks_agree_with_a_plain_forward_of_each_row(head: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of 7 to 14 tokens are some 50 positions, padded to 64: 64 chunks, 10 of which the last is short, 2, and 1."""
    policy, rows = policy_of(**HEADS[head]), rows_of()
    in_chunks(monkeypatch, size)
    batch = batch_of(rows)
    assert 32 < batch.mask.sum() < 64
    found = np.array(completion_logprobs(policy, batch, 0.7))
    assert np.all(found[batch.mask == 0] == 0)
    scored, entropies = score_with_entropy(policy, rows, 0.7, micro_batch_rows=2)
    for place, index in enumerate(batch.index):
        row = rows[index]
        expected = plain(policy, row, 0.7)
        np.testing.assert_allclose(found[place, : len(row.tokens)], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(scored[index], expected, rtol=0, atol=1e-5)
        assert entropies[index].shape == scored[index].shape


@pytest.mark.parametrize("size", [7, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.4, 1.7])
def test_entropy_agrees_with_a_loop_in_float64(size: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """H = - sum p log p over the vocabulary, p = softmax(z / T), for every token of every row; in nats, so at most log 272."""
    policy, rows = policy_of("full"), rows_of()
    policy.model.model.embed_tokens.weight = policy.model.model.embed_tokens.weight * 20  # logits far apart
    in_chunks(monkeypatch, size)
    logp, entropy = completion_logprobs_and_entropy(policy, batch_of(rows), temperature, False)
    _, scored = score_with_entropy(policy, rows, temperature, 2)
    seen = []
    for place, index in enumerate(batch_of(rows).index):
        row = rows[index]
        logits = np.array(policy.model(mx.array([[*row.prompt, *row.tokens]]))[0], dtype=np.float64) / temperature
        for step in range(len(row.tokens)):
            z = logits[len(row.prompt) - 1 + step]
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            expected = -sum(float(q * np.log(q)) for q in p if q > 0)
            assert abs(entropy[place, step].item() - expected) <= 1e-5
            assert abs(scored[index][step] - expected) <= 1e-5
            seen.append(expected)
        assert not entropy[place, len(row.tokens) :].any().item() and not logp[place, len(row.tokens) :].any().item()
    assert 0 <= min(seen) < 0.3 * np.log(272) and max(seen) < np.log(272)


def test_entropy_of_known_distributions() -> None:
    """Uniform over 4: log 4. One token certain: 0. (1/2, 1/4, 1/4): 1.5 log 2. Tokens ruled out by -inf count nothing: log 2."""
    inf = mx.inf
    logits = mx.array([[3.0, 3, 3, 3], [900.0, 0, 0, 0], [np.log(2), 0, 0, -inf], [5.0, 5, -inf, -inf]])
    ask = logprobs._Ask(1.0, entropy=True, entropy_gradient=True)
    logp, entropy = logprobs._softmax_columns(logits, mx.array([1, 0, 0, 1]), ask)
    log2 = np.log(2)
    np.testing.assert_allclose(np.array(entropy), [2 * log2, 0, 1.5 * log2, log2], atol=1e-6)
    np.testing.assert_allclose(np.array(logp), [-2 * log2, 0, -log2, -log2], atol=1e-6)
    # uniform and certain are both stationary; at (1/2, 1/4, 1/4): - p (log p + H) = (-1/4, 1/8, 1/8) log 2
    slope = np.array(mx.grad(lambda z: logprobs._softmax_columns(z, mx.array([1, 0, 0, 1]), ask)[1].sum())(logits))
    expected = np.zeros((4, 4))
    expected[2] = np.array([-1 / 4, 1 / 8, 1 / 8, 0]) * log2
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.mark.parametrize("size", [7, 10_000])
def test_a_temperature_divides_the_logits(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """lp(T) of z is lp(1) of z / T; through the policy too, whose tied embedding divided by T gives logits divided by T."""
    random = np.random.default_rng(0)
    logits = mx.array(5 * random.standard_normal((2, 3, 50)).astype(np.float32))
    tokens = mx.array(random.integers(0, 50, (2, 3)))
    divided = chosen_logprobs(logits / 0.6, tokens, 1.0)
    np.testing.assert_allclose(np.array(chosen_logprobs(logits, tokens, 0.6)), np.array(divided), atol=1e-5)
    policy, batch = policy_of("full", tie_word_embeddings=False), batch_of(rows_of())
    in_chunks(monkeypatch, size)
    warm = [np.array(column) for column in completion_logprobs_and_entropy(policy, batch, 0.6, False)]
    policy.model.lm_head.weight = policy.model.lm_head.weight / 0.6
    for found, expected in zip(completion_logprobs_and_entropy(policy, batch, 1.0, False), warm, strict=True):
        np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=1e-5)


def test_the_sampler_of_the_embedded_model_agrees_with_scores() -> None:
    policy = load_policy(share.demo_model(), AdapterConfig(), seed=0)
    largest, tokens = apart(policy, ("What is 24+17-9?", "Hi", "A longer prompt: 0123456789"), 4, 24, 0.8)
    assert tokens > 50 and largest <= LIMIT


# Gradients.


@pytest.mark.parametrize("size", [7, 32, 10_000])
@pytest.mark.parametrize("head", HEADS)
def test_gradients_agree_with_those_of_the_whole_model(head: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the entropies beside, without gradient and with one; every trained array is compared, the head's own too."""
    policy, batch = policy_of(**HEADS[head]), batch_of(rows_of())
    in_chunks(monkeypatch, size)
    alone = gradient(policy, lambda: weighted(batch, naive(policy, batch, 0.7)[0]))
    assert_same(gradient(policy, lambda: weighted(batch, completion_logprobs(policy, batch, 0.7))), alone)
    both = gradient(policy, lambda: weighted(batch, *naive(policy, batch, 0.7)))
    still = gradient(policy, lambda: weighted(batch, *completion_logprobs_and_entropy(policy, batch, 0.7, False)))
    assert_same(still, alone)
    found = gradient(policy, lambda: weighted(batch, *completion_logprobs_and_entropy(policy, batch, 0.7, True)))
    assert_same(found, both)


@pytest.mark.parametrize("size", [7, 10_000])
def test_the_gradient_of_the_entropy_agrees_with_central_differences(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """|(f(x + h u) - f(x - h u)) / 2h - g . u| <= 1e-3 |g| on 4 random unit directions, h = 1e-2."""
    policy, batch = policy_of("full"), batch_of(rows_of())
    in_chunks(monkeypatch, size)

    def loss() -> mx.array:
        return weighted(batch, completion_logprobs_and_entropy(policy, batch, 0.7, True)[1])

    found, start = gradient(policy, loss), policy.trainable()
    norm = np.sqrt(sum(float((g**2).sum()) for g in found.values()))
    assert norm > 1e-2
    random = np.random.default_rng(1)
    for _ in range(4):
        direction = {name: random.standard_normal(value.shape) for name, value in start.items()}
        length = np.sqrt(sum(float((u**2).sum()) for u in direction.values()))
        values = []
        for h in (1e-2, -1e-2):
            moved = [(name, value + mx.array((h / length * direction[name]).astype(np.float32))) for name, value in start.items()]
            policy.model.load_weights(moved, strict=False)
            values.append(scalar(loss()))
        policy.model.load_weights(list(start.items()), strict=False)
        slope = sum(float((found[name] * u).sum()) for name, u in direction.items()) / length
        assert abs((values[0] - values[1]) / 2e-2 - slope) <= 1e-3 * norm


def test_dropout_on_the_head_is_the_same_when_logits_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervised training drops inputs of adapters in the forward pass, and has the model back in evaluation before the
    gradient is taken: against chunks that mlx differentiates by itself, keeping everything."""
    policy, batch = policy_of(**HEADS["lora on the head"], dropout=0.5), batch_of(rows_of())
    in_chunks(monkeypatch, 16)

    def loss() -> mx.array:
        policy.model.train(True)
        try:
            return weighted(batch, completion_logprobs(policy, batch, 0.7))
        finally:
            policy.model.eval()

    mx.random.seed(5)
    found = gradient(policy, loss)
    after = mx.random.uniform(shape=(3,))
    again = logprobs._recomputed
    monkeypatch.setattr(
        logprobs,
        "_recomputed",
        lambda policy, hidden, targets, ask, size, arrays: logprobs._in_turn(
            hidden, targets, size, lambda piece, chosen: logprobs._columns(policy, piece, chosen, ask)
        ),
    )
    mx.random.seed(5)
    assert_same(found, gradient(policy, loss))
    assert mx.array_equal(after, mx.random.uniform(shape=(3,))).item()  # and the noise goes on as if nothing had been drawn twice
    mx.random.seed(6)
    other = gradient(policy, loss)
    assert any(np.abs(other[name] - value).max() > 1e-3 for name, value in found.items())
    monkeypatch.setattr(logprobs, "_recomputed", again)
    assert not policy.model.training


def test_the_arrays_that_the_head_reads_are_found() -> None:
    """An adapter's second factor starts at 0 and would hide the first from any look at gradients."""

    def read(head: str) -> set[str]:
        policy = policy_of(**HEADS[head])
        zeroed = [(name, mx.zeros_like(value)) for name, value in policy.trainable().items() if name.endswith("lora_b")]
        policy.model.load_weights(zeroed, strict=False)
        before = policy.trainable()
        found = set(read_by_head(policy, mx.zeros((1, 32))))
        assert all(mx.array_equal(value, policy.trainable()[name]).item() for name, value in before.items())
        return found

    assert read("lora") == read("dora") == read("lora, quantised") == set()
    assert read("full, tied") == {"model.embed_tokens.weight"}
    assert read("full, untied") == {"lm_head.weight"}
    assert read("lora on the head") == {"lm_head.lora_a", "lm_head.lora_b"}
    assert read("dora on the head") == {"lm_head.lora_a", "lm_head.lora_b", "lm_head.m"}
    assert read("lora on the tied embedding") == {"model.embed_tokens.lora_a", "model.embed_tokens.lora_b"}


# Any mask, any chunk.


@pytest.fixture(scope="module")
def known() -> dict[str, Policy]:
    return {head: policy_of(**HEADS[head]) for head in ("lora", "full, tied")}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    head=st.sampled_from(["lora", "full, tied"]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20)),
    size=st.integers(1, 70),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
)
def test_any_mask_and_any_chunk(
    known: dict[str, Policy], head: str, shape: tuple[int, int], size: int, seed: int, share: float
) -> None:
    """Masks with holes, and without any token that counts: values and gradients are those of the whole model."""
    policy, random = known[head], np.random.default_rng(seed)
    for batch in pack(rows_of(*shape), 4):
        holed = replace(batch, mask=(batch.mask * (random.random(batch.mask.shape) < share)).astype(np.float32))
        columns = partial(completion_logprobs_and_entropy, policy, holed, 0.9, True)
        with pytest.MonkeyPatch.context() as patch:
            in_chunks(patch, size)
            found, slopes = columns(), gradient(policy, partial(loss_of, holed, columns))
        plainly = partial(naive, policy, holed, 0.9)
        for column, expected in zip(found, plainly(), strict=True):
            np.testing.assert_allclose(np.array(column), np.array(expected), rtol=0, atol=1e-5)
            assert np.all(np.array(column)[holed.mask == 0] == 0)
        for name, value in gradient(policy, partial(loss_of, holed, plainly)).items():
            np.testing.assert_allclose(slopes[name], value, rtol=0, atol=1e-5, err_msg=name)


def loss_of(batch: Batch, columns: Callable[[], Sequence[mx.array]]) -> mx.array:
    return weighted(batch, *columns())


# What it takes.


def test_chunks_stay_within_their_budget() -> None:
    """49,152 logits of 4 bytes are 196,608 bytes: 170 positions in 32 MiB, 160 in steps of 32. 272: 30,840, so 30,816."""
    assert (CHUNK_BYTES, STEP, LEAST) == (32 * 2**20, 32, 64)
    assert (chunk_positions(49_152), chunk_positions(272), chunk_positions(262_144)) == (160, 30_816, 64)
    assert all(chunk_positions(size) * 4 * size <= CHUNK_BYTES for size in (100, 5_000, 128_256))
    # a trained head of 49,152 x 576 weighs as much as the logits of 576 positions: whole up to 2 x 160 + 576
    assert (whole_positions(49_152), whole_positions(49_152, 49_152 * 576 * 4)) == (160, 896)
    assert [padded_positions(n) for n in (0, 1, 32, 33)] == [32, 32, 32, 64]


@pytest.mark.parametrize("size", [32, 10_000])
def test_the_head_runs_on_nothing_but_positions_that_count(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows, one token in three counting: some 17 of 80 places, padded to 32, with or without chunks."""
    policy, batch = policy_of(), batch_of(rows_of())
    batch = replace(batch, mask=batch.mask * (np.arange(batch.mask.shape[1]) % 3 == 0).astype(np.float32))
    in_chunks(monkeypatch, size)
    seen: list[int] = []
    head = policy.head

    def counted(hidden: mx.array) -> mx.array:
        seen.append(hidden.size // 32)
        return head(hidden)

    monkeypatch.setattr(policy, "head", counted)
    completion_logprobs(policy, batch, 1.0)
    assert 10 < batch.mask.sum() < 32 and batch.mask.size >= 70
    assert seen == [1, 32]  # the first asks for a shape and computes nothing


@pytest.mark.parametrize(("head", "entropy"), [("lora", False), ("full, tied", True)])
def test_chunks_take_a_fraction_of_the_memory(head: str, entropy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """50,000 logits of 4 bytes: 256 positions are 51 MB a copy, 16 positions 3.2 MB. mlx holds about five copies of the former,
    about a dozen of the latter (it starts operations before others are done), and under full training a few of the head's
    gradient, 3.2 MB each, besides."""
    policy, (row, *_) = policy_of(**HEADS[head], vocab_size=50_000, hidden_size=16), rows_of(1, 64)
    batch = batch_of([replace(row, index=n, tokens=row.tokens[:32]) for n in range(8)])
    assert batch.mask.sum() == 256

    def peak(size: int) -> int:
        in_chunks(monkeypatch, size)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()

        def loss() -> mx.array:
            if not entropy:
                return weighted(batch, completion_logprobs(policy, batch, 1.0))
            return weighted(batch, *completion_logprobs_and_entropy(policy, batch, 1.0, True))

        mx.eval(nn.value_and_grad(policy.model, loss)())
        return mx.get_peak_memory() - before

    whole, chunked = peak(256), peak(16)
    assert whole > 3 * 256 * 50_000 * 4
    assert chunked < whole / 2.5, (chunked / 1e6, whole / 1e6)
    assert chunked < 22 * 16 * 50_000 * 4
