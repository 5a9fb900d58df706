"""Decisive steps in training: the weighted mean, its gradient, any split of the update, and a run of the worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_config, load_tokenizer

from engine import config as configs
from engine.config import AdapterConfig
from engine.data.examples import to_example
from engine.data.targets import target_rows
from engine.data.template import ChatTokenizer
from engine.data.values import Row as DataRow
from engine.errors import InputError
from engine.types import Example
from engine.worker.batching import Row, aggregation_weights, pack
from engine.worker.losses import STATS, supervised_loss
from engine.worker.model import Policy, load_policy
from engine.worker.rendering import ModelChat
from engine.worker.trainer import Trainer
from tests.support.chats import FAMILIES, write_family
from tests.support.live import finish, small_config
from tests.test_real_model import smollm2  # noqa: F401 - a fixture

from .rows import plain
from .step_bench import nudged, watch
from .test_supervised_chats import apart, gradient_of, task_of

CHAINS: tuple[tuple[list[str], Any, str], ...] = (
    (["4*7", "= 28"], [0, 1], "28"),
    (["2+2", "2+2", "so 4"], [0, 0.5, 0], "4"),
    (["a long first step, not marked", "no"], None, "no"),
    (["Left, right?", "Left."], "left", "Left"),
    (["é = 1", "1"], [True, False], "1"),
)


def fields_of(steps: list[str], marks: Any, solution: str) -> dict[str, Any]:
    return {"problem": "Q?", "reasoning_steps": steps, "sparse_indicators": marks, "solution": solution}


def example_of(line: int, fields: dict[str, Any]) -> Example:
    found = to_example(DataRow(line, fields), "reasoning", "sft", None)
    assert isinstance(found, Example), found
    return found


EXAMPLES = [example_of(place + 1, fields_of(*chain)) for place, chain in enumerate(CHAINS)]
UNMARKED = [replace(example, marks=()) for example in EXAMPLES]


def weights_by_hand(steps: list[str], marks: Any, solution: str, decisive: float = 3.0) -> list[float]:
    """A byte is a token, and so is each tag: <think> LF (step LF)* </think> LF <answer> solution </answer> <|end|>."""
    values = [float("left" in step.lower()) for step in steps] if isinstance(marks, str) else marks or [0] * len(steps)
    weights: list[float] = [1, 1]
    for step, mark in zip(steps, values, strict=True):
        weights += [1 + (decisive - 1) * mark] * len(step.encode()) + [1]
    return weights + [1] * (3 + len(solution.encode()) + 2)


def naive_loss(policy: Policy, decisive: float = 3.0) -> mx.array:
    """Every chain alone and unpadded: sum of w x nll over sum of w, with the weights counted by hand."""
    total, mass = mx.zeros(()), 0.0
    for chain, example in zip(CHAINS, EXAMPLES, strict=True):
        _, prompt, target = policy.render(example.messages, example.completion)
        weights = weights_by_hand(*chain, decisive)
        assert len(weights) == len(target)
        logits = policy.model(mx.array([[*prompt, *target]]))[0]
        for place, (token, weight) in enumerate(zip(target, weights, strict=True), len(prompt) - 1):
            total = total + weight * (mx.logsumexp(logits[place]) - logits[place, token])
        mass += sum(weights)
    return total / mass


@pytest.mark.parametrize("decisive", [3.0, 1.5])
def test_the_gradient_is_that_of_the_weighted_mean(make_policy: Callable[..., Policy], tmp_path: Path, decisive: float) -> None:
    """However the update is split: its parts have other weights and other numbers of tokens, and one normaliser."""
    policy = nudged(make_policy("lora"))
    value, gradient = nn.value_and_grad(policy.model, lambda: naive_loss(policy, decisive))()
    expected = {name: np.array(part, dtype=np.float64) for name, part in tree_flatten(gradient)}
    for rows in (5, 2, 1):
        task = task_of(policy, tmp_path, EXAMPLES, rows, data__decisive_weight=decisive)
        batches = task.batches(task.begin(1, watch()))
        assert len(batches) > 1 or rows == 5
        loss, found = gradient_of(task, batches)
        assert loss == pytest.approx(value.item(), rel=1e-6)
        assert apart(found, expected) < 1e-6
    plain_loss, _ = gradient_of(task_of(policy, tmp_path, UNMARKED), batches)
    assert plain_loss == loss, "the weights are in the batches"


def test_without_weights_the_bits_are_those_of_rows_without_marks(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """decisive_weight: 1, marks of 0 and no marks at all: the same arrays, the same loss and the same gradient, to the bit; and
    weights of 1 that are multiplied in change no bit either."""
    policy = nudged(make_policy("lora"))
    zeros = [example_of(place + 1, fields_of(steps, [0] * len(steps), said)) for place, (steps, _, said) in enumerate(CHAINS)]
    found = []
    for examples, decisive in ((UNMARKED, 3.0), (EXAMPLES, 1.0), (zeros, 3.0)):
        task = task_of(policy, tmp_path, examples, 2, data__decisive_weight=decisive)
        batches = task.batches(task.begin(1, watch()))
        assert all(batch.token_weight is None for batch in batches)
        found.append(gradient_of(task, batches))
    ones = [replace(batch, token_weight=np.ones(batch.completions.shape, dtype=np.float32)) for batch in batches]
    found.append(gradient_of(task, ones))
    for loss, gradient in found[1:]:
        assert loss == found[0][0] and all(np.array_equal(gradient[name], part) for name, part in found[0][1].items())


def test_metrics_count_tokens_and_evaluation_weighs_all_alike(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    policy = nudged(make_policy("lora"))
    task = task_of(policy, tmp_path, EXAMPLES, 3, optim__learning_rate=1e-9)
    weighted = naive_loss(policy).item()
    rows = [Row(0, row.prompt, row.tokens) for row in task.train.rows]
    sums, counts = [float(plain(policy, row, 1.0).sum()) for row in rows], [len(row.tokens) for row in rows]
    evaluation = task.evaluate(0, watch())
    assert evaluation.metrics["loss"] == pytest.approx(-sum(sums) / sum(counts), rel=1e-5)
    assert evaluation.counts == tuple(map(float, counts)) and evaluation.rows == pytest.approx(sums, rel=1e-5)
    work = task.begin(1, watch())
    work.updates.append(Trainer(policy, task.config.optim, 4, seed=0).update(0, task.batches(work), task.loss))
    metrics = task.metrics(work)
    assert metrics.loss == pytest.approx(weighted, rel=1e-5) and metrics.loss != pytest.approx(
        evaluation.metrics["loss"], rel=1e-3
    )
    assert (metrics.tokens, metrics.length) == (sum(counts), pytest.approx(sum(counts) / 5))


def test_a_weighted_loss_by_hand() -> None:
    """Rows of 2 and 1 targets that weigh 3, 1 and 2, in all 6: (3 x 1 + 1 x 2 + 2 x 4) / 6 = 13/6; 3 tokens. What is outside
    the mask has a weight, too, and none of it counts."""
    rows = [Row(0, (1,), (5, 6), token_weights=(3.0, 1.0)), Row(1, (1,), (7, 8), mask=(0, 1), token_weights=(9.0, 2.0))]
    assert [row.mass for row in rows] == [4, 2] and Row(2, (1,), (5, 6)).mass == 2
    weights = aggregation_weights("token_mean", [row.mass for row in rows], [0, 0], 1)
    assert weights == [1 / 6, 1 / 6]
    (batch,) = pack([replace(row, weight=weight) for row, weight in zip(rows, weights, strict=True)], 2)
    assert batch.token_weight is not None and batch.token_weight[:, :2].tolist() == [[3, 1], [9, 2]]
    logp = np.zeros(batch.mask.shape, dtype=np.float32)
    logp[:, :2] = [[-1, -2], [-np.inf, -4]]
    arrays = {name: mx.array(getattr(batch, name)) for name in ("mask", "weight", "token_weight")}
    loss, stats = supervised_loss(mx.array(logp), **arrays)
    assert loss.item() == pytest.approx(13 / 6, rel=1e-6)
    assert dict(zip(STATS, stats.tolist(), strict=True))["tokens"] == 3


def test_rows_keep_their_weights_when_they_are_sorted_and_mixed() -> None:
    """One row without weights among others weighs 1 at each of its tokens; a batch of such rows alone has no array of them."""
    rows = [
        Row(0, (1,), (2, 3, 4), token_weights=(1.0, 2.0, 3.0)),
        Row(1, (1,), (5, 6)),
        Row(2, (1,), (7,), token_weights=(4.0,)),
    ]
    (batch,) = pack(rows, 3)
    assert batch.token_weight is not None
    for place, index in enumerate(batch.index):
        tokens = rows[index].tokens
        assert batch.token_weight[place, : len(tokens)].tolist() == list(rows[index].token_weights or (1,) * len(tokens))
    assert pack(rows[1:2], 3)[0].token_weight is None


def chats_of(folder: Path) -> tuple[ModelChat, ChatTokenizer]:
    tokenizer = load_tokenizer(folder, eos_token_ids=load_config(folder).get("eos_token_id"))
    return ModelChat(tokenizer, frozenset(tokenizer.eos_token_ids)), ChatTokenizer(folder)


def assert_they_agree(folder: Path) -> None:
    """The worker's tokenizer and the one that `validate` reads: ids, offsets and weights."""
    model, plain_chat = chats_of(folder)
    for text in ("é 日\U0001f600\n\n  a  b \n", "<think>\nYes, no.\n</think>\n<answer>2+2</answer>", ""):
        assert model.encode(text) == plain_chat.encode(text) and model.offsets(text) == plain_chat.offsets(text)
    for example in EXAMPLES:
        (row,) = target_rows(model, example, "assistant")
        assert [row] == target_rows(plain_chat, example, "assistant") and bool(row.weights) == bool(example.marks)


@pytest.mark.parametrize("name", ["demo", *FAMILIES])
def test_the_worker_and_validate_weigh_the_same_tokens(tmp_path: Path, name: str) -> None:
    assert_they_agree(configs.model_folder("demo") if name == "demo" else write_family(tmp_path / name, name))


@pytest.mark.real_model
def test_they_do_with_a_real_model_s_tokenizer(smollm2: Path) -> None:  # noqa: F811 - the fixture
    assert_they_agree(smollm2)
    model, _ = chats_of(smollm2)
    (row,) = target_rows(model, EXAMPLES[0], "assistant")
    heavy = [token for token, weight in zip(row.tokens, row.weights, strict=True) if weight == 3]
    assert model.tokenizer.decode(heavy).strip() == "= 28" and len(heavy) < len(row.tokens) / 2


def test_a_tokenizer_that_tells_no_characters_is_refused_where_it_matters(tmp_path: Path) -> None:
    """One that changes the text before it encodes it, and one without offsets; rows without marks need none of it."""
    model, _ = chats_of(write_family(tmp_path / "m", "chatml"))

    class Changed:
        is_fast = True

        def __getattr__(self, name: str) -> Any:
            return getattr(model.tokenizer, name)

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [int(i) for i in model.tokenizer.encode(text.replace("\n", "<n>"), add_special_tokens=add_special_tokens)]

    class Slow(Changed):
        is_fast = False

    for tokenizer in (Changed(), Slow()):
        chat = ModelChat(tokenizer, model.stop_ids)
        with pytest.raises(InputError, match="does not tell") as refused:
            target_rows(chat, EXAMPLES[0], "assistant")
        assert "data.decisive_weight: 1" in refused.value.remedy
        assert target_rows(chat, UNMARKED[0], "assistant")[0].weights == ()
        assert target_rows(chat, EXAMPLES[0], "assistant", 1)[0].weights == ()


@pytest.mark.usefixtures("warm_workers")
async def test_a_run_reports_the_weighted_mean_of_its_first_step(tmp_path: Path) -> None:
    """Five rows in each of two steps, on the embedded model with a fresh adapter, which adds 0: the first loss is the weighted
    mean of the model as it is, and the evaluation before it, on the same rows, the plain one."""
    rows = tmp_path / "chains.jsonl"
    rows.write_text("".join(json.dumps(fields_of(*chain)) + "\n" for chain in CHAINS))
    config = small_config(
        "sft",
        data__train=str(rows),
        data__valid=str(rows),
        sampling__prompts_per_step=5,
        sampling__max_completion_tokens=128,
        run__steps=2,
    )
    _, state = await finish(tmp_path / "home", config)
    assert state.state == "finished"
    policy = load_policy(configs.model_folder("demo"), AdapterConfig(), seed=0)
    expected = naive_loss(policy).item()
    sizes = [weights_by_hand(*chain) for chain in CHAINS]
    assert list(state.series["loss"].steps) == [1, 2]
    assert state.series["loss"].values[0] == pytest.approx(expected, rel=1e-5)
    assert state.series["tokens"].values[0] == sum(map(len, sizes)) < sum(map(sum, sizes))
    plain_mean = naive_loss(policy, 1.0).item()
    assert state.held_out["loss"].steps[0] == 0
    assert state.held_out["loss"].values[0] == pytest.approx(plain_mean, rel=1e-5) and abs(plain_mean - expected) > 1e-3
