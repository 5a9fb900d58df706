"""Imitation: weights, targets, gradient and evaluation against plain forwards of single rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from engine import config as configs
from engine.types import Example, Message
from engine.worker.batching import Row
from engine.worker.guard import MemoryGuard
from engine.worker.model import Policy
from engine.worker.supervised import SupervisedTask
from engine.worker.trainer import Trainer

from .rows import plain
from .step_bench import (
    assert_same_gradient,
    nudged,
    rows_of,
    watch,
)

TARGETS = ("Yes", "No, never", "5", "It depends on the day", "42 and some", "What?", "Over the limit of thirty target tokens")


def supervised_task(policy: Policy, folder: Path, **overrides: Any) -> SupervisedTask:
    """Seven rows in steps of three, the last too long; a sampling temperature that must not matter."""
    rows = [Example(n + 1, (Message("user", f"Q{n}"),), text, None) for n, text in enumerate(TARGETS)]
    text = (
        "{model: demo, method: sft, data: {train: rows.jsonl}, run: {steps: 4}, "
        "sampling: {prompts_per_step: 3, max_completion_tokens: 30, temperature: 0.6}}"
    )
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    config = configs.parse(text, base=folder, overrides=changes).config
    return SupervisedTask(policy, config, rows, rows, MemoryGuard(2))


def test_a_supervised_update_weights_every_target_token_alike(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Two steps of three make the epoch of six rows that fit, each once; every target is the text with the stop token, and the
    weight is 1 / (all target tokens of the step), prompts and padding left out."""
    policy = make_policy("lora")
    task = supervised_task(policy, tmp_path)
    assert task.updates_per_step == 1
    seen = []
    for step in (1, 2):
        found = rows_of(task.batches(task.begin(step, watch())))
        texts = [policy.decode(tokens) for _, _, tokens in found.values()]
        total = sum(len(text) + 1 for text in texts)  # a token is a byte
        assert len(found) == 3
        for weight, _, tokens in found.values():
            assert weight == pytest.approx(1 / total, rel=1e-6)
            assert tokens[-1] == policy.tokenizer.eos_token_id and len(policy.decode(tokens)) == len(tokens) - 1
        seen += texts
    assert sorted(seen) == sorted(TARGETS[:-1])


def supervised_rows(policy: Policy, places: Sequence[int]) -> list[Row]:
    rows = []
    for place in places:
        _, prompt, target = policy.render([Message("user", f"Q{place}")], TARGETS[place])
        rows.append(Row(place, tuple(prompt), tuple(target)))
    return rows


def test_the_supervised_gradient_is_that_of_plain_forwards(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """-(sum of all target log-probabilities at T = 1) / (their number), row by row without padding."""
    policy = nudged(make_policy("lora"))
    task = supervised_task(policy, tmp_path, sampling__prompts_per_step=6)
    work = task.begin(1, watch())
    rows = supervised_rows(policy, range(6))

    def naive_loss() -> mx.array:
        total, tokens = mx.zeros(()), 0
        for row in rows:
            logits, first = policy.model(mx.array([[*row.prompt, *row.tokens]]))[0], len(row.prompt)
            for t, token in enumerate(row.tokens):
                total = total - logits[first - 1 + t, token] + mx.logsumexp(logits[first - 1 + t])
                tokens += 1
        return total / tokens

    def task_loss() -> mx.array:
        return sum((task.loss(batch)[0] for batch in task.batches(work)), mx.zeros(()))

    expected_value, expected = nn.value_and_grad(policy.model, naive_loss)()
    value, found = nn.value_and_grad(policy.model, task_loss)()
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5)
    assert_same_gradient(found, expected)
    work.updates.append(Trainer(policy, task.config.optim, 4, seed=0).update(0, task.batches(work), task.loss))
    metrics = task.metrics(work)
    tokens = sum(len(row.tokens) for row in rows)
    assert metrics.loss == pytest.approx(expected_value.item(), rel=1e-5)
    assert (metrics.tokens, metrics.length, metrics.reward) == (tokens, pytest.approx(tokens / 6), None)


def test_supervised_evaluation_is_the_mean_over_held_out_tokens(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    policy = nudged(make_policy("lora"))
    rows = supervised_rows(policy, range(6))
    sums = [float(plain(policy, row, 1.0).sum()) for row in rows]
    counts = [len(row.tokens) for row in rows]
    found = supervised_task(policy, tmp_path).evaluate(0, watch())
    assert found.metrics["loss"] == pytest.approx(-sum(sums) / sum(counts), rel=1e-5) and found.metrics["n"] == 6
    assert found.score == -found.metrics["loss"]
    assert found.rows == pytest.approx(sums, rel=1e-5) and found.counts == tuple(counts)


def test_dropout_acts_in_the_loss_alone(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Two draws of the loss differ; two evaluations, before and after it, do not."""
    policy = nudged(make_policy("lora", dropout=0.5))
    task = supervised_task(policy, tmp_path)
    before = task.evaluate(0, watch())
    (batch, *_) = task.batches(task.begin(1, watch()))
    assert task.loss(batch)[0].item() != task.loss(batch)[0].item()
    assert task.evaluate(0, watch()) == before
