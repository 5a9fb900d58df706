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
from engine.worker.batching import Batch, Floats, Row, aggregation_weights, minibatches, pack
from engine.worker.credit import advantages_of, top_entropy, with_advantages
from engine.worker.guard import MemoryGuard
from engine.worker.logprobs import completion_logprobs, completion_logprobs_and_entropy, score, score_with_entropy
from engine.worker.losses import policy_loss
from engine.worker.model import Policy
from engine.worker.rewarding import Judge, mean, part_means, sample_rows
from engine.worker.rollouts import Gatherer
from engine.worker.sampler import sample
from engine.worker.step_metrics import step_metrics
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
        guard: MemoryGuard,
    ) -> None:
        self.policy = policy
        self.config = config
        self.objective = config.resolved_objective()
        self.judge = judge
        self.guard = guard
        self.updates_per_step = self.objective.updates
        limit = config.sampling.max_prompt_tokens
        self.train = prompts_within(policy, train, limit)
        self.held_out = prompts_within(policy, held_out, limit)
        self.left_out = len(train) - len(self.train), len(held_out) - len(self.held_out)
        self.example: Sequence[Message] = held_out[0].messages
        self._gatherer = Gatherer(policy, config, judge, self.train, guard)
        if self.objective.beta and policy.adapter.type == "full":
            policy.keep_initial()

    def begin(self, step: int, watch: Watch) -> StepWork:
        """Sample the step's completions, have them judged, score them where that is needed, and say who gets the credit."""
        work = StepWork(step)
        watch.seconds = work.seconds
        every = self.objective.ref_sync_every
        if every and step > 1 and (step - 1) % every == 0:
            self.policy.sync_reference(self.objective.ref_sync_mix)
        gathered = self._gatherer.gather(step, watch)
        work.discarded, work.refills = gathered.discarded, gathered.refills
        if self.objective.beta and self.objective.kl_in == "reward":
            with watch.timed(step, "score"):
                token_kl = self._charged(work, gathered.groups)
            work.groups = with_advantages(gathered.groups, self.objective, token_kl)
            return work
        work.groups = with_advantages(gathered.groups, self.objective)
        if self._scores_old or self.objective.beta:
            with watch.timed(step, "score"):
                self._score(work)
        return work

    @property
    def _scores_old(self) -> bool:
        """Whether the policy of the rollout has to be scored: for several updates, or to find the tokens of highest entropy."""
        return self._takes_old or self.objective.entropy_quantile < 1

    def _score(self, work: StepWork) -> None:
        """Old log-probabilities for the first of several updates (the trainer's own), entropies and the reference's, of the rows
        for which they are used."""
        micro, temperature = self.guard.micro_batch_rows, self.config.sampling.temperature
        rows = step_completions(work.groups, self.objective.truncated == "mask")
        if self.objective.entropy_quantile < 1:
            old, work.entropy = score_with_entropy(self.policy, rows, temperature, micro)
            work.old = old if self._takes_old else None
        elif self._takes_old:
            work.old = self._scored(rows, self.old_is_used(work.step, rows))
        if self.objective.beta:
            with self.policy.reference():
                work.ref = self._scored(rows, [not row.excluded for row in rows])

    def _charged(self, work: StepWork, groups: Sequence[Group]) -> list[Floats]:
        """The KL of each token, old - ref, that is charged to the reward; what several updates need is kept."""
        rows, micro = step_completions(groups), self.guard.micro_batch_rows
        temperature = self.config.sampling.temperature
        old = None
        if self.objective.entropy_quantile < 1:
            old, work.entropy = score_with_entropy(self.policy, rows, temperature, micro)
        elif self.objective.old == "trainer":
            old = score(self.policy, rows, temperature, micro)
        work.old = old if self._takes_old else None
        with self.policy.reference():
            ref = score(self.policy, rows, temperature, micro)
        if old is None or self.objective.old == "sampler":
            old = sampler_logprobs(rows)
        token_kl = [a - b for a, b in zip(old, ref, strict=True)]
        work.kl = float(np.concatenate(token_kl).mean(dtype=np.float64))
        return token_kl

    @property
    def _takes_old(self) -> bool:
        """Whether updates take their ratio against the policy of the rollout as the trainer scores it."""
        return self.updates_per_step > 1 and self.objective.old == "trainer"

    def old_is_used(self, step: int, rows: Sequence[Row]) -> list[bool]:
        """For each row, whether an update reads the old policy's log-probabilities of it. Those of the first update are its own,
        which it computes anyway; rows that no update takes need none."""
        parts = minibatches(len({row.group for row in rows}), self.objective.minibatches, self.config.run.seed, step, 0)
        first = set(parts[0]) if self.objective.updates == self.objective.minibatches else set()
        return [row.group not in first and self._is_trained(row) for row in rows]

    def _is_trained(self, row: Row) -> bool:
        return not row.excluded and (self.objective.trains_all or bool(np.any(row.advantage)))

    def _scored(self, rows: Sequence[Row], used: Sequence[bool]) -> list[Floats]:
        """Log-probabilities of the rows that are used, in their places; of the others 0, which nobody reads."""
        kept = [row for row, is_used in zip(rows, used, strict=True) if is_used]
        chosen = [replace(row, index=place) for place, row in enumerate(kept)]
        found = iter(score(self.policy, chosen, self.config.sampling.temperature, self.guard.micro_batch_rows))
        return [
            next(found) if is_used else np.zeros(len(row.tokens), dtype=np.float32)
            for row, is_used in zip(rows, used, strict=True)
        ]

    def batches(self, work: StepWork) -> list[Batch]:
        """The next update's micro-batches. Its weights count every completion of the mini-batch; rows that cannot move the
        policy (no reward or masked; without KL and entropy bonus also those of zero advantage) are then left out, which changes
        nothing."""
        passed, part = divmod(len(work.updates), self.objective.minibatches)
        chosen = set(minibatches(len(work.groups), self.objective.minibatches, self.config.run.seed, work.step, passed)[part])
        rows = [row for row in step_completions(work.groups, self.objective.truncated == "mask") if row.group in chosen]
        if work.entropy is not None:
            rows = of_high_entropy(rows, work.entropy, self.objective.entropy_quantile)
        weights = aggregation_weights(
            self.objective.aggregate,
            [0 if row.excluded else len(row.tokens) for row in rows],
            [row.group for row in rows],
            self.config.sampling.max_completion_tokens,
        )
        weighted = [replace(row, weight=weight) for row, weight in zip(rows, weights, strict=True) if self._is_trained(row)]
        old = None if not work.updates else work.old  # the first update's ratio is 1: its own log-probabilities
        if self.objective.old == "sampler":
            old = sampler_logprobs(step_completions(work.groups))
        return pack(weighted, self.guard.micro_batch_rows, sharing=self.policy.sharing, old=old, ref=work.ref)

    def broken(self, work: StepWork) -> list[int]:
        """Completions with a log-probability or entropy that is not finite: as a rule the weights are not finite any more."""
        scores = [sampler_logprobs(step_completions(work.groups)), work.old, work.ref, work.entropy]
        found = {
            place for column in scores if column is not None for place, row in enumerate(column) if not np.isfinite(row).all()
        }
        return sorted(found)

    def named(self, work: StepWork, rows: Sequence[int]) -> Mapping[str, Any]:
        """(prompt id, member of its group) of each."""
        members = [[group.prompt.id, member] for group in work.groups for member in range(len(group.rollouts))]
        return {"completions": [members[row] for row in rows]}

    def loss(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """The method's policy loss on one micro-batch."""
        temperature = self.config.sampling.temperature
        entropy = None
        if self.objective.entropy_bonus:
            logp, entropy = completion_logprobs_and_entropy(self.policy, batch, temperature, True)
        else:
            logp = completion_logprobs(self.policy, batch, temperature)
        return policy_loss(
            logp,
            objective=self.objective,
            mask=mx.array(batch.mask),
            advantage=mx.array(batch.advantage),
            weight=mx.array(batch.weight),
            old=_device(batch.old),
            sampler=_device(batch.sampler),
            ref=_device(batch.ref),
            entropy=entropy,
        )

    def metrics(self, work: StepWork) -> StepMetrics:
        """The step's rewards and lengths, and its updates' statistics."""
        return step_metrics(work, self.objective, self.judge.weights)

    def samples(self, work: StepWork) -> Sequence[Mapping[str, Any]]:
        """Every rollout of the step; those of groups that dynamic sampling replaced are marked."""
        replaced = [{**row, "discarded": True} for row in sample_rows(work.discarded, work.step)]
        return [*sample_rows(work.groups, work.step), *replaced]

    def evaluate(self, step: int, watch: Watch) -> Evaluation:
        """One greedy completion of each held-out prompt in one batch, judged by the run's rewards."""
        prompts, examples = [prompt for prompt, _ in self.held_out], [example for _, example in self.held_out]
        sampling = self.config.sampling
        with watch.timed(step, "eval"):
            rollouts = self.guard.sampled(
                len(prompts),
                lambda rows_at_once: sample(
                    self.policy,
                    prompts,
                    1,
                    max_tokens=sampling.max_completion_tokens,
                    temperature=sampling.temperature,
                    seed=self.config.run.seed,
                    step=step,
                    greedy=True,
                    rows_at_once=rows_at_once,
                    alive=watch.alive,
                ),
            )
            groups = self.judge.groups(prompts, examples, rollouts, step)
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


def step_completions(groups: Sequence[Group], mask_cut: bool = False) -> list[Row]:
    """Every completion of the step as a row, group after group; its index is its place in this list. With `mask_cut` those that
    were cut at the limit train nothing and leave the token counts, but still count in N."""
    rows: list[Row] = []
    for number, group in enumerate(groups):
        found = advantages_of(group) or (0.0,) * len(group.rollouts)  # none yet: the rows are to be scored
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, found, strict=True):
            rows.append(
                Row(
                    index=len(rows),
                    prompt=group.prompt.token_ids,
                    tokens=rollout.token_ids,
                    group=number,
                    sampler=rollout.logprobs,
                    advantage=advantage,
                    excluded=reward is None or (mask_cut and rollout.finish == "length"),
                )
            )
    return rows


def of_high_entropy(rows: Sequence[Row], entropy: Sequence[Floats], share: float) -> list[Row]:
    """The rows with the advantage 0 at every token whose entropy is below the batch's quantile: only the `share` of tokens with
    the highest entropy is trained by the policy term, the normaliser stays (Beyond the 80/20 Rule, 2506.01939, Eq. 5)."""
    trained = [entropy[row.index] for row in rows if not row.excluded]
    least = top_entropy(trained, share) if trained else 0.0
    return [replace(row, advantage=tuple(np.where(entropy[row.index] >= least, row.advantage, 0.0).tolist())) for row in rows]


def sampler_logprobs(rows: Sequence[Row]) -> list[Floats]:
    """What the sampler reported of each row, [C] each."""
    return [np.array(row.sampler, dtype=np.float32) for row in rows]


def _device(values: Any) -> mx.array | None:
    return None if values is None else mx.array(values)
