"""Chats of several turns: which tokens carry the loss, one normaliser for the whole update, and that both turns are learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from engine import config as configs
from engine.types import Example, Message
from engine.worker.batching import Batch, Row, pack
from engine.worker.guard import MemoryGuard
from engine.worker.logprobs import score
from engine.worker.model import Policy
from engine.worker.supervised import SupervisedTask
from engine.worker.trainer import Trainer
from tests.support.chats import THINKING

from .rows import plain
from .step_bench import nudged, watch

# Two replies each, of 3 to 13 bytes; whole chats of like length, so that one batch can hold them all.
TALKS = (
    ("Say A and B", "A b", "and once more", "no"),
    ("What is it?", "It is this.", "Why?", "No reason."),
    ("Count to one", "1", "And to two now", "1 2"),
    ("Who goes there", "Me", "Which me?", "Only myself"),
    ("Left, right?", "Left, always", "Sure?", "Yes indeed"),
)


def chat(line: int, talk: Sequence[str]) -> Example:
    turns = tuple(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(talk))
    return Example(line, turns[:-1], talk[-1], None, turns=turns)


CHATS = [chat(place + 1, talk) for place, talk in enumerate(TALKS)]


def task_of(policy: Policy, folder: Path, examples: Sequence[Example] = CHATS, rows: int = 5, **overrides: Any) -> SupervisedTask:
    text = "{model: demo, method: sft, data: {train: rows.jsonl}, run: {steps: 4}, sampling: {prompts_per_step: 5}}"
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    config = configs.parse(text, base=folder, overrides=changes).config
    return SupervisedTask(policy, config, examples, examples, MemoryGuard(rows))


def gradient_of(task: SupervisedTask, batches: Sequence[Batch]) -> tuple[float, dict[str, np.ndarray]]:
    def loss() -> mx.array:
        return sum((task.loss(batch)[0] for batch in batches), mx.zeros(()))

    value, gradient = nn.value_and_grad(task.policy.model, loss)()
    return value.item(), {name: np.array(part, dtype=np.float64) for name, part in tree_flatten(gradient)}


def apart(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The distance of two gradients over the norm of the second."""
    assert found.keys() == expected.keys()
    norm = math.sqrt(sum(float(np.square(part).sum()) for part in expected.values()))
    assert norm > 1e-3
    return math.sqrt(sum(float(np.square(found[name] - part).sum()) for name, part in expected.items())) / norm


def naive_loss(policy: Policy, talks: Sequence[Sequence[str]]) -> tuple[mx.array, int]:
    """The whole text of each chat through the model, alone and unpadded, with a loss at every byte of a reply and at its end.

    A byte is a token: the places are counted here, from the template <|ROLE|>TEXT<|end|> alone.
    """
    encode = policy.tokenizer.encode
    total, count = mx.zeros(()), 0
    for talk in talks:
        ids: list[int] = []
        targets: list[int] = []
        for place, text in enumerate(talk):
            ids += encode(("<|user|>", "<|assistant|>")[place % 2], add_special_tokens=False)
            if place % 2:
                targets += range(len(ids), len(ids) + len(text) + 1)
            ids += encode(f"{text}<|end|>", add_special_tokens=False)
        logits = policy.model(mx.array([ids]))[0]
        for place in targets:
            total = total - logits[place - 1, ids[place]] + mx.logsumexp(logits[place - 1])
        count += len(targets)
    return total / count, count


def test_any_split_gives_the_gradient_of_one_long_loss(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """1, 2 and 5 micro-batches of five chats, whose targets differ in number, and row by row from the formula."""
    policy = nudged(make_policy("lora"))

    def naive() -> mx.array:
        return naive_loss(policy, TALKS)[0]

    value, gradient = nn.value_and_grad(policy.model, naive)()
    expected = {name: np.array(part, dtype=np.float64) for name, part in tree_flatten(gradient)}
    found = {}
    for rows, count in ((5, 1), (3, 2), (1, 5)):
        task = task_of(policy, tmp_path, rows=rows)
        batches = task.batches(task.begin(1, watch()))
        assert len(batches) == count
        assert len({float(batch.mask.sum()) for batch in batches}) == len(batches), "the counts differ"
        loss, found[count] = gradient_of(task, batches)
        assert loss == pytest.approx(value.item(), rel=1e-6)
        assert apart(found[count], expected) < 1e-6
    assert apart(found[2], found[1]) < 1e-6 and apart(found[5], found[1]) < 1e-6


def test_metrics_and_evaluation_count_targets(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Replies with their ends; the rows' sums are those of single forwards, at the targets alone."""
    policy = nudged(make_policy("lora"))
    task = task_of(policy, tmp_path, optim__learning_rate=1e-9)
    value, count = naive_loss(policy, TALKS)
    assert count == sum(len(talk[1]) + len(talk[3]) + 2 for talk in TALKS)
    evaluation = task.evaluate(0, watch())
    assert evaluation.metrics["loss"] == pytest.approx(value.item(), rel=1e-5)
    assert evaluation.counts == tuple(float(len(talk[1]) + len(talk[3]) + 2) for talk in TALKS)
    for total, talk, size in zip(evaluation.rows, TALKS, evaluation.counts, strict=True):
        assert total == pytest.approx(-naive_loss(policy, [talk])[0].item() * size, rel=1e-5)
    work = task.begin(1, watch())
    work.updates.append(Trainer(policy, task.config.optim, 4, seed=0).update(0, task.batches(work), task.loss))
    metrics = task.metrics(work)
    assert (metrics.tokens, metrics.length) == (count, pytest.approx(count / 5))
    assert metrics.loss == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("targets", ["last", "all"])
def test_last_and_all(make_policy: Callable[..., Policy], tmp_path: Path, targets: str) -> None:
    """last: the final reply and its end. all: every token but the first, so N - 1 of N."""
    policy = nudged(make_policy("lora"))
    task = task_of(policy, tmp_path, data__targets=targets)
    for row, talk in zip(task.train.rows, TALKS, strict=True):
        size = sum(map(len, talk)) + 8  # a header and an end for each turn
        assert set(row.mask) == {1} and len(row.prompt) + len(row.tokens) == size
        assert len(row.tokens) == (len(talk[3]) + 1 if targets == "last" else size - 1)
    counts = [len(row.tokens) for row in task.train.rows]
    sums = [float(plain(policy, Row(0, row.prompt, row.tokens), 1.0).sum()) for row in task.train.rows]
    found = task.evaluate(0, watch())
    assert found.metrics["loss"] == pytest.approx(-sum(sums) / sum(counts), rel=1e-5)


def test_a_masked_token_has_no_loss_and_no_gradient(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """The loss moves a hidden state (the head's only input, so the logits) exactly where it predicts a target."""
    policy = nudged(make_policy("lora"))
    task = task_of(policy, tmp_path)
    (batch,) = task.batches(task.begin(1, watch()))
    tokens, positions = batch.sequences()
    hidden = policy.hidden
    shift = mx.zeros(hidden(mx.array(tokens)).shape)

    def loss(shift: mx.array) -> mx.array:
        policy.hidden = lambda tokens, cache=None: hidden(tokens, cache) + shift  # type: ignore[method-assign]
        return task.loss(batch)[0]

    moved = np.abs(np.array(mx.grad(loss)(shift))).sum(axis=-1) > 0  # [B, T]
    expected = np.zeros(moved.shape, dtype=bool)
    for row, (places, mask) in enumerate(zip(positions, batch.mask, strict=True)):
        expected[row, places[mask > 0]] = True
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(moved, expected)


def test_a_later_question_changes_only_what_comes_after_it(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Another second question: the first reply's log-probabilities are the same bits, the second reply's are others, and the
    question's own tokens are in neither sum."""
    policy = nudged(make_policy("lora"))
    first, second = "Say A and B", "Say C and D"
    kept, changed = (chat(1, ("Hello there", "General", question, "Yes")) for question in (first, second))
    task = task_of(policy, tmp_path, [kept, changed])
    rows = [Row(place, row.prompt, row.tokens, mask=row.mask) for place, row in enumerate(task.train.rows)]
    one, other = (plain(policy, row, 1.0) for row in rows)
    size = len("General") + 1
    assert rows[0].mask == rows[1].mask and np.array_equal(one[:size], other[:size])
    assert not np.allclose(one[-4:], other[-4:], atol=1e-6)
    found = task.evaluate(0, watch()).rows
    for total, values in zip(found, (one, other), strict=True):
        assert total == pytest.approx(values[:size].sum() + values[-4:].sum(), rel=1e-5)


def test_padding_is_never_read(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Any other ids in its place give the same loss and the same gradient, to the bit."""
    policy = nudged(make_policy("lora"))
    task = task_of(policy, tmp_path)
    (batch,) = task.batches(task.begin(1, watch()))
    filled, prompts = batch.completions.copy(), batch.prompts.copy()
    for row in filled:
        row[np.flatnonzero(row)[-1] + 1 :] = 77  # no text here holds the byte 0, which is what pads
    for row, length in zip(prompts, batch.prompt_lengths, strict=True):
        row[length:] = 78
    assert (filled == 77).sum() > 5 and (prompts == 78).any()
    loss, gradient = gradient_of(task, [batch])
    again, same = gradient_of(task, [replace(batch, completions=filled, prompts=prompts)])
    assert again == loss and all(np.array_equal(same[name], part) for name, part in gradient.items())


def test_chats_that_the_template_changes_become_rows_of_one_turn(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """A template that strips thinking: two rows for each of five chats, counted. A limit then leaves out single rows."""
    policy = make_policy("lora")
    policy.tokenizer.chat_template = THINKING.replace("<|im_start|>", "<|user|>").replace("<|im_end|>", "<|end|>")
    task = task_of(policy, tmp_path)
    assert (task.split_chats, len(task.train), task.train.left_out) == (10, 10, 0)  # five to train on, five held out
    assert all(set(row.mask) == {1} for row in task.train.rows)
    limit = sorted(len(row.prompt) for row in task.train.rows)[6]
    within = task_of(policy, tmp_path, sampling__max_prompt_tokens=limit)
    assert (len(within.train), within.train.left_out) == (7, 3)
    assert task_of(make_policy("lora"), tmp_path).split_chats == 0


def test_rows_share_batches_with_rows_of_like_length(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Ten short chats and ten that are ten times as long: no batch holds both, and no row is padded by more than half."""
    policy = make_policy("lora")
    mixed = [chat(n + 1, ("a", "b", "c", "d") if n % 2 else ("a" * 60, "b" * 60, "c" * 60, "d" * 60)) for n in range(20)]
    task = task_of(policy, tmp_path, mixed, rows=8, sampling__prompts_per_step=20)
    batches = task.batches(task.begin(1, watch()))
    sizes = [sorted(int(np.count_nonzero(row)) for row in batch.mask) for batch in batches]
    assert sum(map(len, sizes)) == 20 and all(size[0] == size[-1] for size in sizes)
    assert {batch.completions.shape[1] for batch in batches} == {8, 192}  # 2 + 4 + 2 tokens; 61 + 63 + 61, in eights


def test_both_replies_are_learned_and_with_last_only_the_second(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """The first reply repeats a letter, the second says it in capitals. After 25 updates both are likely under `assistant`;
    under `last` only the second is (the first is as unlikely as before, when chance had it at ln 272 = 5.6, or more)."""
    examples = [chat(n + 1, (f"say {c}", c * 4, "more", c.upper() * 4)) for n, c in enumerate("abcdef")]

    def learned(targets: str) -> tuple[float, float]:
        policy = make_policy("full")
        overrides = {"optim__learning_rate": 1e-2, "optim__schedule": "constant", "optim__warmup": 0.0}
        task = task_of(policy, tmp_path, examples, rows=6, data__targets=targets, sampling__prompts_per_step=6, **overrides)
        trainer = Trainer(policy, task.config.optim, 25, seed=0)
        for step in range(1, 26):
            trainer.update(step - 1, task.batches(task.begin(step, watch())), task.loss)
        whole = task_of(policy, tmp_path, examples).train.rows
        rows = [Row(place, row.prompt, row.tokens, mask=row.mask) for place, row in enumerate(whole)]
        found = np.array(score(policy, rows, 1.0, 6))  # [6, C]: all rows are of one length
        return -float(found[:, :5].mean()), -float(found[:, -5:].mean())

    first, second = learned("assistant")
    assert first < 0.5 and second < 0.5
    first, second = learned("last")
    assert first > 3 and second < 0.5


def test_pack_keeps_masks_with_their_rows() -> None:
    """Sorting by length moves masks with their tokens."""
    rows = [Row(0, (1,), (2, 3, 4), mask=(1, 0, 1)), Row(1, (1,), (5, 6), mask=(0, 1))]
    (batch,) = pack(rows, 2)
    for place, index in enumerate(batch.index):
        row = rows[int(index)]
        assert batch.completions[place][batch.mask[place] > 0].tolist() == [
            token for token, counts in zip(row.tokens, row.mask or (), strict=True) if counts
        ]
