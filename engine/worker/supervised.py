"""Supervised fine-tuning: data.targets says which tokens of a row are learned, everything else is context.

One token normaliser over the whole update, whatever its micro-batches; the token that ends a turn is a target, padding never
is. A token of a decisive step weighs more (engine/data/weights.py), in the loss as in its normaliser; evaluation weighs all
targets alike, so that runs with other weights compare. An update takes `prompts_per_step` rows: a row is a prompt with its
completion, a whole chat, or one turn of a chat that cannot be one row (engine/data/targets.py). What is left out: packing (an
explicit mask would cost more than length-sorted rows save).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from jinja2 import TemplateError

from engine.config import RunConfig
from engine.data.targets import TargetRow, target_rows
from engine.types import Example, Message, StepMetrics
from engine.worker.batching import Batch, Row, aggregation_weights, pack
from engine.worker.guard import MemoryGuard
from engine.worker.keys import step_rows
from engine.worker.logprobs import completion_logprobs, score
from engine.worker.losses import supervised_loss
from engine.worker.model import Policy
from engine.worker.task import Evaluation, Watch
from engine.worker.work import StepWork


class SupervisedTask:
    """A step is one update on `prompts_per_step` rows."""

    updates_per_step = 1

    def __init__(
        self, policy: Policy, config: RunConfig, train: Sequence[Example], held_out: Sequence[Example], guard: MemoryGuard
    ) -> None:
        self.policy = policy
        self.config = config
        self.guard = guard
        self.train = rows_within(policy, train, config, config.data.decisive_weight)
        self.held_out = rows_within(policy, held_out, config, decisive_weight=1)
        self.left_out = self.train.left_out, self.held_out.left_out
        self.example: Sequence[Message] = held_out[0].messages

    @property
    def split_chats(self) -> int:
        """Chats, training and held-out, that became several rows: their template does not keep earlier turns as they were."""
        return self.train.split_chats + self.held_out.split_chats

    def begin(self, step: int, watch: Watch) -> StepWork:
        """Nothing to gather: the step's rows follow from its number."""
        work = StepWork(step)
        watch.seconds = work.seconds
        return work

    def batches(self, work: StepWork) -> list[Batch]:
        """The update's micro-batches, every row weighted 1 / (the weights of all target tokens of the update)."""
        rows = self._rows(work.step)
        weights = aggregation_weights("token_mean", [row.mass for row in rows], [0] * len(rows), 1)
        return pack([replace(row, weight=weight) for row, weight in zip(rows, weights, strict=True)], self.guard.micro_batch_rows)

    def _rows(self, step: int) -> list[Row]:
        chosen = step_rows(len(self.train), self.config.sampling.prompts_per_step, step, self.config.run.seed)
        rows = [self.train.rows[i] for i in chosen]
        return [Row(place, r.prompt, r.tokens, mask=r.mask, token_weights=r.weights) for place, r in enumerate(rows)]

    def broken(self, work: StepWork) -> list[int]:
        """Nothing is scored before the update."""
        return []

    def named(self, work: StepWork, rows: Sequence[int]) -> Mapping[str, Any]:
        """The line of the training file that each comes from."""
        chosen = step_rows(len(self.train), self.config.sampling.prompts_per_step, work.step, self.config.run.seed)
        return {"lines": [self.train.lines[chosen[row]] for row in rows]}

    def loss(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Negative log-likelihood of one micro-batch; dropout is on only while it is computed."""
        self.policy.model.train(bool(self.policy.adapter.dropout))
        try:
            logp = completion_logprobs(self.policy, batch, 1.0)
        finally:
            self.policy.model.eval()
        weighed = None if batch.token_weight is None else mx.array(batch.token_weight)
        return supervised_loss(logp, mask=mx.array(batch.mask), weight=mx.array(batch.weight), token_weight=weighed)

    def metrics(self, work: StepWork) -> StepMetrics:
        """Loss per target token, a mean by the tokens' weights; `tokens` are targets, each counted once, `length` their mean per
        row."""
        update = work.updates[0]
        tokens = round(update.stats["tokens"])
        return StepMetrics(
            step=work.step,
            loss=update.loss,
            grad_norm=update.grad_norm,
            lr=update.lr,
            updates=1,
            tokens=tokens,
            length=tokens / self.config.sampling.prompts_per_step,
            moved=update.moved,
            skipped=0 if update.applied else 1,
            seconds=work.seconds,
        )

    def samples(self, work: StepWork) -> Sequence[Mapping[str, Any]]:
        """Supervised steps sample nothing."""
        return ()

    def evaluate(self, step: int, watch: Watch) -> Evaluation:
        """Mean negative log-likelihood per target token of the held-out rows; decisive steps weigh no more than others."""
        held_out = self.held_out.rows
        rows = [Row(place, row.prompt, row.tokens, mask=row.mask) for place, row in enumerate(held_out)]
        with watch.timed(step, "eval"):
            scored = score(self.policy, rows, 1.0, self.guard.micro_batch_rows)
        sums = [
            -float(np.sum(values[np.array(row.mask) > 0], dtype=np.float64)) for values, row in zip(scored, held_out, strict=True)
        ]
        counts = [float(row.targets) for row in rows]
        loss = sum(sums) / sum(counts)
        return Evaluation(-loss, tuple(-value for value in sums), tuple(counts), {"loss": loss, "n": len(rows)}, ())

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """The rows of a set of examples that a run uses, and what became of the others."""

    rows: tuple[TargetRow, ...]
    lines: tuple[int, ...]  # of the file, for each row
    left_out: int  # rows over the limits, and examples that the chat template refuses
    split_chats: int  # examples that became several rows

    def __len__(self) -> int:
        return len(self.rows)


def rows_within(policy: Policy, examples: Sequence[Example], config: RunConfig, decisive_weight: float = 1) -> KeptRows:
    """The training rows of the examples, without those that are over the limits or that the chat template refuses. InputError
    where steps are to weigh more and the model's tokenizer or template does not let their tokens be told."""
    chat, sampling = policy.chat, config.sampling
    kept: list[TargetRow] = []
    lines: list[int] = []
    left_out = split_chats = 0
    for example in examples:
        try:
            rows = target_rows(chat, example, config.data.targets, decisive_weight)
        except TemplateError:
            left_out += 1
            continue
        within = [row for row in rows if row.is_within(sampling.max_prompt_tokens, sampling.max_completion_tokens)]
        kept += within
        lines += [example.line] * len(within)
        left_out += len(rows) - len(within)
        split_chats += len(rows) > 1
    return KeptRows(tuple(kept), tuple(lines), left_out, split_chats)
