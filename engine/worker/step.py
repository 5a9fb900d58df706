"""Training by rewards: rollout -> rewards -> advantages -> scores -> updates. The method is a row of data (Objective)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from jinja2 import TemplateError

from engine.config import RunConfig
from engine.types import Example, Group, Message, Prompt, StepMetrics
from engine.worker.batching import Batch, Row, aggregation_weights, minibatches, pack
from engine.worker.keys import step_rows
from engine.worker.logprobs import completion_logprobs, score
from engine.worker.losses import policy_loss
from engine.worker.model import Policy
from engine.worker.rewarding import Judge, mean, part_means, sample_rows
from engine.worker.sampler import sample
from engine.worker.task import Evaluation, Watch
from engine.worker.work import StepWork


class RewardTask:
    """GRPO and its relatives. A step is one rollout batch with all its updates."""

    def __init__(
        self,
        policy: Policy,
        config: RunConfig,
        train: Sequence[Example],
        held_out: Sequence[Example],
        judge: Judge,
        micro_batch_rows: int,
    ) -> None:
        self.policy = policy
        self.config = config
        self.objective = config.resolved_objective()
        self.judge = judge
        self.micro_batch_rows = micro_batch_rows
        self.updates_per_step = self.objective.minibatches * self.objective.updates_per_rollout
        limit = config.sampling.max_prompt_tokens
        self.train = prompts_within(policy, train, limit)
        self.held_out = prompts_within(policy, held_out, limit)
        self.example: Sequence[Message] = held_out[0].messages
        if self.objective.beta and policy.adapter.type == "full":
            policy.keep_initial()

    def begin(self, step: int, watch: Watch) -> StepWork:
        """Sample the step's completions, have them judged, and score them where the updates need it."""
        work = StepWork(step)
        watch.seconds = work.seconds
        sampling, seed = self.config.sampling, self.config.run.seed
        chosen = [self.train[i] for i in step_rows(len(self.train), sampling.prompts_per_step, step, seed)]
        prompts, examples = [prompt for prompt, _ in chosen], [example for _, example in chosen]
        with watch.timed(step, "rollout"):
            rollouts = sample(
                self.policy,
                prompts,
                sampling.group_size,
                max_tokens=sampling.max_completion_tokens,
                temperature=sampling.temperature,
                seed=seed,
                step=step,
                alive=watch.alive,
            )
        with watch.timed(step, "reward"):
            work.groups = self.judge.groups(prompts, examples, rollouts, self.objective.advantage, step)
        if self.updates_per_step > 1 or self.objective.beta:
            with watch.timed(step, "score"):
                self._score(work)
        return work

    def _score(self, work: StepWork) -> None:
        """Old log-probabilities for the first of several updates (the trainer's own), and the reference's where beta > 0."""
        rows = step_completions(work.groups)
        temperature = self.config.sampling.temperature
        if self.updates_per_step > 1:
            work.old = score(self.policy, rows, temperature, self.micro_batch_rows)
        if self.objective.beta:
            with self.policy.reference():
                work.ref = score(self.policy, rows, temperature, self.micro_batch_rows)

    def batches(self, work: StepWork) -> list[Batch]:
        """The next update's micro-batches. Its weights count every completion of the mini-batch; rows that cannot move the
        policy (no reward; without KL also those of zero advantage) are then left out, which changes nothing."""
        passed, part = divmod(len(work.updates), self.objective.minibatches)
        chosen = minibatches(len(work.groups), self.objective.minibatches, self.config.run.seed, work.step, passed)[part]
        rows = [row for row in step_completions(work.groups) if row.group in set(chosen)]
        weights = aggregation_weights(
            self.objective.aggregate,
            [0 if row.excluded else len(row.tokens) for row in rows],
            [row.group for row in rows],
            self.config.sampling.max_completion_tokens,
        )
        weighted = [
            replace(row, weight=weight)
            for row, weight in zip(rows, weights, strict=True)
            if not row.excluded and (self.objective.beta or row.advantage)
        ]
        return pack(weighted, self.micro_batch_rows, old=work.old, ref=work.ref)

    def loss(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """The method's policy loss on one micro-batch."""
        return policy_loss(
            completion_logprobs(self.policy, batch, self.config.sampling.temperature),
            objective=self.objective,
            mask=mx.array(batch.mask),
            advantage=mx.array(batch.advantage),
            weight=mx.array(batch.weight),
            old=_device(batch.old),
            sampler=_device(batch.sampler),
            ref=_device(batch.ref),
        )

    def metrics(self, work: StepWork) -> StepMetrics:
        """The step's rewards and lengths, and its updates' statistics."""
        rollouts = [rollout for group in work.groups for rollout in group.rollouts]
        rewards = [reward for group in work.groups for reward in group.rewards if reward is not None]
        tokens = sum(len(rollout.token_ids) for rollout in rollouts)
        total = {name: sum(update.stats[name] for update in work.updates) for name in work.updates[0].stats}
        first = work.updates[0].stats  # the sampler's own policy: later updates have moved on
        return StepMetrics(
            step=work.step,
            loss=float(np.mean([update.loss for update in work.updates])),
            grad_norm=float(np.mean([update.grad_norm for update in work.updates])),
            lr=work.updates[-1].lr,
            updates=len(work.updates),
            tokens=tokens,
            reward=mean(rewards),
            reward_std=float(np.std(rewards, ddof=1)) if len(rewards) > 1 else None,
            parts=part_means(work.groups),
            length=tokens / len(rollouts),
            truncated=mean([float(rollout.finish == "length") for rollout in rollouts]),
            zero_std_groups=sum(not any(group.advantages) for group in work.groups),
            groups=len(work.groups),
            excluded=sum(reward is None for group in work.groups for reward in group.rewards),
            entropy=-sum(sum(rollout.logprobs) for rollout in rollouts) / tokens,
            kl=_ratio(total["kl"], total["tokens"]) if self.objective.beta else None,
            ratio=_ratio(total["ratio"], total["units"]),
            clip_low=_ratio(total["clip_low"], total["units"]),
            clip_high=_ratio(total["clip_high"], total["units"]),
            mismatch=_ratio(first["mismatch"], first["tokens"]),
            seconds=work.seconds,
        )

    def samples(self, work: StepWork) -> Sequence[Mapping[str, Any]]:
        """Every rollout of the step."""
        return sample_rows(work.groups, work.step)

    def evaluate(self, step: int, watch: Watch) -> Evaluation:
        """One greedy completion of each held-out prompt in one batch, judged by the run's rewards."""
        prompts, examples = [prompt for prompt, _ in self.held_out], [example for _, example in self.held_out]
        sampling = self.config.sampling
        with watch.timed(step, "eval"):
            rollouts = sample(
                self.policy,
                prompts,
                1,
                max_tokens=sampling.max_completion_tokens,
                temperature=sampling.temperature,
                seed=self.config.run.seed,
                step=step,
                greedy=True,
                alive=watch.alive,
            )
            groups = self.judge.groups(prompts, examples, rollouts, "none", step)
        rewards = [group.rewards[0] for group in groups]
        scored = [reward for reward in rewards if reward is not None]
        lengths = [float(len(group.rollouts[0].token_ids)) for group in groups]
        reward = mean(scored)
        metrics = {
            "reward": reward,
            "parts": part_means(groups),
            "length": mean(lengths),
            "truncated": mean([float(group.rollouts[0].finish == "length") for group in groups]),
            "n": len(scored),
        }
        return Evaluation(
            score=float("-inf") if reward is None else reward,
            rows=tuple(0.0 if reward is None else reward for reward in rewards),
            counts=tuple(0.0 if reward is None else 1.0 for reward in rewards),
            metrics=metrics,
            samples=tuple(sample_rows(groups, step)),
        )

    def close(self) -> None:
        """End the reward process."""
        self.judge.close()


def prompts_within(policy: Policy, examples: Sequence[Example], limit: int) -> list[tuple[Prompt, Example]]:
    """Each example as a prompt, without those that are longer than `limit` tokens or that the chat template refuses (the caller
    counts and says how many). The id is the example's place in `examples`."""
    made = []
    for place, example in enumerate(examples):
        try:
            text, ids, _ = policy.render(example.messages)
        except TemplateError:
            continue
        if len(ids) <= limit:
            made.append((Prompt(place, tuple(ids), text, example.answer), example))
    return made


def step_completions(groups: Sequence[Group]) -> list[Row]:
    """Every completion of the step as a row, group after group; its index is its place in this list."""
    rows: list[Row] = []
    for number, group in enumerate(groups):
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, group.advantages, strict=True):
            rows.append(
                Row(
                    index=len(rows),
                    prompt=group.prompt.token_ids,
                    tokens=rollout.token_ids,
                    group=number,
                    sampler=rollout.logprobs,
                    advantage=advantage,
                    excluded=reward is None,
                )
            )
    return rows


def _device(values: Any) -> mx.array | None:
    return None if values is None else mx.array(values)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
