"""Supervised fine-tuning: the completions in the data are the target, prompts are context only.

One token normaliser over the whole update, whatever its micro-batches; the stop token is a target, padding never is. What is
left out: packing (an explicit mask would cost more than length-sorted rows save).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from jinja2 import TemplateError

from engine.config import RunConfig
from engine.types import Example, Message, StepMetrics
from engine.worker.batching import Batch, Row, aggregation_weights, pack
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
        self, policy: Policy, config: RunConfig, train: Sequence[Example], held_out: Sequence[Example], micro_batch_rows: int
    ) -> None:
        self.policy = policy
        self.config = config
        self.micro_batch_rows = micro_batch_rows
        self.train = rows_within(policy, train, config)
        self.held_out = rows_within(policy, held_out, config)
        self.example: Sequence[Message] = held_out[0].messages

    def begin(self, step: int, watch: Watch) -> StepWork:
        """Nothing to gather: the step's rows follow from its number."""
        work = StepWork(step)
        watch.seconds = work.seconds
        return work

    def batches(self, work: StepWork) -> list[Batch]:
        """The update's micro-batches, every token weighted 1 / (all target tokens of the update)."""
        rows = self._rows(work.step)
        weights = aggregation_weights("token_mean", [len(row.tokens) for row in rows], [0] * len(rows), 1)
        return pack(
            [Row(row.index, row.prompt, row.tokens, weight=weight) for row, weight in zip(rows, weights, strict=True)],
            self.micro_batch_rows,
        )

    def _rows(self, step: int) -> list[Row]:
        chosen = step_rows(len(self.train), self.config.sampling.prompts_per_step, step, self.config.run.seed)
        return [Row(place, *self.train[i]) for place, i in enumerate(chosen)]

    def loss(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Negative log-likelihood of one micro-batch; dropout is on only while it is computed."""
        self.policy.model.train(bool(self.policy.adapter.dropout))
        try:
            logp = completion_logprobs(self.policy, batch, 1.0)
        finally:
            self.policy.model.eval()
        return supervised_loss(logp, mask=mx.array(batch.mask), weight=mx.array(batch.weight))

    def metrics(self, work: StepWork) -> StepMetrics:
        """Loss per target token."""
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
            seconds=work.seconds,
        )

    def samples(self, work: StepWork) -> Sequence[Mapping[str, Any]]:
        """Supervised steps sample nothing."""
        return ()

    def evaluate(self, step: int, watch: Watch) -> Evaluation:
        """Mean negative log-likelihood per target token of the held-out rows."""
        rows = [Row(place, *pair) for place, pair in enumerate(self.held_out)]
        with watch.timed(step, "eval"):
            scored = score(self.policy, rows, 1.0, self.micro_batch_rows)
        sums = [-float(np.sum(values, dtype=np.float64)) for values in scored]
        counts = [float(len(values)) for values in scored]
        loss = sum(sums) / sum(counts)
        return Evaluation(-loss, tuple(-value for value in sums), tuple(counts), {"loss": loss, "n": len(rows)}, ())

    def close(self) -> None:
        """Nothing is held."""


def rows_within(policy: Policy, examples: Sequence[Example], config: RunConfig) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt ids, target ids) of each example, without those that are over the limits or that the chat template refuses (the
    caller counts and says how many); a target always ends in a stop token."""
    made = []
    for example in examples:
        try:
            _, prompt, target = policy.render(example.messages, example.completion or "")
        except TemplateError:
            continue
        if len(prompt) <= config.sampling.max_prompt_tokens and len(target) <= config.sampling.max_completion_tokens:
            made.append((tuple(prompt), tuple(target)))
    return made
